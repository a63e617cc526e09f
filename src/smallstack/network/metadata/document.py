"""The identity document: a VM's record as JSON."""

from smallstack.proto.vm import VmInfo
from smallstack.srpc.json_coder import to_json


def identity_document(info: VmInfo) -> bytes:
    """The record as upstream writes it: JSON, indented by four spaces, with a line end."""
    return to_json(info, indent=4) + b"\n"
