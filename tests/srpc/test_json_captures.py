"""JSON sessions captured from another implementation, object by object."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from smallstack.proto.hypervisor.every import (
    CreateVmRequest,
    CreateVmResponse,
    GetCapacityRequest,
    GetCapacityResponse,
    GetVmInfoRequest,
    GetVmInfoResponse,
    ListVMsRequest,
    ListVMsResponse,
)
from smallstack.proto.srpc import LocalUpgradeToUnixRequestOne, LocalUpgradeToUnixResponseOne
from smallstack.proto.vm import VmInfo
from smallstack.srpc.json_coder import Decoder, Encoder, from_json, to_json

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]

# What each file holds: C->S and S->C objects in order, and whether ours is the same text.
SESSIONS: dict[str, list[tuple[str, Any, bool]]] = {
    "json-createvm.log": [
        (
            "C->S",
            CreateVmRequest(
                dhcp_timeout=60_000_000_000,
                minimum_free_bytes=16 << 20,
                roundup_power=24,
                skip_bootloader=True,
                image_timeout=10_000_000_000,
                vm_info=VmInfo(
                    hostname="j1",
                    image_name="small/v1",
                    memory_in_mib=128,
                    milli_cpus=100,
                    subnet_id="net0",
                    tags={"Name": "j1"},
                ),
            ),
            False,
        ),
        ("S->C", CreateVmResponse(progress_message="getting image"), True),
        ("S->C", CreateVmResponse(progress_message="unpacking image: small/v1"), True),
        ("S->C", CreateVmResponse(progress_message="waiting for test memory allocation"), True),
        (
            "S->C",
            CreateVmResponse(ip_address="10.77.0.6", progress_message="starting VM 10.77.0.6"),
            True,
        ),
        ("S->C", CreateVmResponse(final=True, ip_address="10.77.0.6"), True),
        ("C->S", ListVMsRequest(), False),
    ],
    "json-listvms.log": [
        ("C->S", ListVMsRequest(sort=True), False),
        ("S->C", ListVMsResponse(), True),
        ("C->S", GetCapacityRequest(), True),
        (
            "S->C",
            GetCapacityResponse(
                available_memory_in_mib=23138,
                memory_in_mib=24105,
                num_cpus=2,
                total_volume_bytes=270553174016,
            ),
            True,
        ),
        ("C->S", GetVmInfoRequest(ip_address="10.77.0.99"), True),
        ("S->C", GetVmInfoResponse(error="no VM with IP address: 10.77.0.99 found"), True),
        ("C->S", LocalUpgradeToUnixRequestOne(client_cookie=bytes(range(8))), True),
        (
            "S->C",
            LocalUpgradeToUnixResponseOne(
                server_cookie=bytes.fromhex("21e79dc352a388dd"), socket_pathname="@SRPC.7287"
            ),
            True,
        ),
    ],
}


def objects(name: str) -> list[tuple[str, bytes]]:
    found = []
    for line in (VECTORS / name).read_text().splitlines():
        match = re.fullmatch(r"([CS]->[CS]) .*?(b'.*')", line)
        assert match, line
        data = ast.literal_eval(match[2])
        start = data.find(b"{")
        if start >= 0:
            found.append((match[1], data[start:]))
    return found


def test_every_captured_session_is_accounted_for() -> None:
    assert {path.name for path in VECTORS.glob("json-*.log")} == set(SESSIONS)


@pytest.mark.parametrize("name", SESSIONS)
def test_objects_are_equal(name: str) -> None:
    captured = objects(name)
    assert len(captured) == len(SESSIONS[name])
    for (way, data), (expected_way, value, same_text) in zip(captured, SESSIONS[name], strict=True):
        assert way == expected_way
        decoder = Decoder()
        decoder.feed(data)
        assert decoder.decode(type(value)) == value
        assert decoder.take_rest() == b""
        assert from_json(to_json(value), type(value)) == value
        if same_text:
            assert Encoder().encode(value).strip() == data.strip()
