"""The identity document: a VM's record as JSON."""

import msgspec

from smallstack.proto.vm import VmInfo


def identity_document(info: VmInfo) -> bytes:
    """The record as upstream writes it: JSON, indented by four spaces, with a line end."""
    return msgspec.json.format(msgspec.json.encode(info), indent=4) + b"\n"
