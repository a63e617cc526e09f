"""Names of the interfaces that the agent makes; an interface name has at most 15 characters."""

TAP_BY_IP = "ss-"
TAP_BY_MAC = "ssm"
TAP_PREFIXES = (TAP_BY_IP, TAP_BY_MAC)
SERVICE_SUFFIX = "-ll"
"""The bridge's end of the metadata service's cable is ``<bridge>-ll``."""
PEER_SUFFIX = "-lr"
"""What the other end is called until it is moved into its namespace."""
MAXIMUM = 15
