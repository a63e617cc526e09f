"""Names of the interfaces that the agent makes; an interface name has at most 15 characters."""

import hashlib

TAP_BY_IP = "ss-"
TAP_BY_MAC = "ssm"
TAP_PREFIXES = (TAP_BY_IP, TAP_BY_MAC)
MAXIMUM = 15


def service_name(bridge: str) -> str:
    """The bridge's end of the metadata service's cable: ``<bridge>-ll``, shortened if need be."""
    name = bridge + "-ll"
    if len(name) <= MAXIMUM:
        return name
    return f"{bridge[:7]}{hashlib.blake2b(bridge.encode(), digest_size=2).hexdigest()}-ll"
