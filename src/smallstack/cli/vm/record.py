"""A VM's record as the commands print it."""

import json
from typing import Any

from smallstack.proto.vm import VmInfo
from smallstack.srpc.json_coder import to_json

COLUMNS = ("ip_address", "state", "hostname", "image", "memory_mib", "milli_cpus", "owner")


def vm_record(info: VmInfo) -> dict[str, Any]:
    """The record with the wire's field names and text forms."""
    record: dict[str, Any] = json.loads(to_json(info))
    return record


def summary(info: VmInfo) -> dict[str, Any]:
    """The main fields, flat, for a table."""
    return {
        "ip_address": info.address.ip_address,
        "state": info.state.text,
        "hostname": info.hostname,
        "image": info.image_name,
        "memory_mib": info.memory_in_mib,
        "milli_cpus": info.milli_cpus,
        "owner": info.owner_users[0] if info.owner_users else "",
    }
