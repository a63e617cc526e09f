"""What upstream's programs sent to their own agent, sent to this one: a VM comes of it.

The captured bytes are sent as they are, but for the plain endpoint in place of the TLS one, and
for the VM's address, which has to lie in a network that tests may use. One conversation is not
here: a refusal (hv-denied) takes a caller who lacks a right, see tests/srpc/test_replay.py.
"""

import asyncio
from pathlib import Path
from typing import TypeVar

import pytest

from smallstack.proto.enums import State
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.hypervisor.every import ChangeAddressPoolRequest, UpdateSubnetsRequest
from smallstack.proto.kinds import Message
from smallstack.proto.vm import Subnet
from smallstack.srpc import gob
from smallstack.srpc.coder import NEED_MORE
from tests.integration.cloud import GATEWAY, PORT, Cloud, addresses

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]
M = TypeVar("M", bound=Message)
THEIRS, OURS = bytes([10, 77, 0, 4]), bytes([198, 51, 100, 4])


def sent(name: str) -> list[bytes]:
    """The calls of a captured client, each with its method line; the first one is CONNECT."""
    data = (VECTORS / f"{name}.01.c2s.bin").read_bytes()
    data = data.replace(b"/_go_TLS_SRPC_/", b"/_goSRPC_/").replace(THEIRS, OURS)
    head, _, calls = data.partition(b"\n\n")
    parts = [b"Hypervisor." + call for call in calls.split(b"Hypervisor.") if call]
    return [head + b"\n\n", *parts]


class Talk:
    """One connection on which captured bytes are sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, connect: bytes) -> "Talk":
        talk = cls(*await asyncio.open_connection("127.0.0.1", PORT))
        talk._writer.write(connect)
        expected = b"HTTP/1.0 200 Connected to Go SRPC\n\n"
        assert await talk._reader.readexactly(len(expected)) == expected
        return talk

    async def call(self, data: bytes, lines: int) -> gob.Decoder:
        """Send a call; the decoder of what comes behind so many empty lines."""
        self._writer.write(data)
        assert await self._reader.readexactly(lines) == b"\n" * lines
        return gob.Decoder()

    async def value(self, decoder: gob.Decoder, type_: type[M]) -> M:
        """The next value."""
        while (value := decoder.decode(type_)) is NEED_MORE:
            data = await self._reader.read(65536)
            assert data
            decoder.feed(data)
        return value

    def end(self) -> None:
        self._writer.transport.abort()


async def no_control_port(cloud: Cloud, ip: str) -> None:
    """Without certificates guests do not get the agent's port beside their metadata."""
    async with cloud.plain_client() as client, client.connect_serial(ip) as port:
        port.write(b"wget -qO- http://169.254.169.254:6976/healthz; echo en''ded\n")
        await port.flush()
        seen = b""
        while b"ended" not in seen:
            seen += await port.read_some()
    assert b"Connection refused" in seen


async def test_captured_clients(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor(insecure="true", allow_unauthenticated_reads="true")
    # The image server is asked in plain text by an insecure agent: it gets one of its own.
    assert cloud.image_server is not None
    await cloud.image_server.stop()
    await cloud.start_image_server(insecure=True)
    await cloud.add_image("small/v1", insecure=True)

    for name, method, request, reply in (
        ("hv-getcap", "GetCapacity", proto.GetCapacityRequest, proto.GetCapacityResponse),
        ("hv-list-empty", "ListVMs", proto.ListVMsRequest, proto.ListVMsResponse),
        ("hv-getinfo-novm", "GetVmInfo", proto.GetVmInfoRequest, proto.GetVmInfoResponse),
    ):
        connect, call = sent(name)
        assert call.startswith(f"Hypervisor.{method}\n".encode())
        assert request.__name__.startswith(method)
        talk = await Talk.begin(connect)
        answer = await talk.value(await talk.call(call, 2), reply)
        if isinstance(answer, proto.GetVmInfoResponse):
            assert answer.error == "no VM with IP address: 10.77.0.99 found"
        if isinstance(answer, proto.GetCapacityResponse):
            assert answer.memory_in_mib > 0
        talk.end()

    async with cloud.plain_client() as client:
        subnet = Subnet(id="net0", ip_gateway=GATEWAY, ip_mask="255.255.255.0")
        await client.update_subnets(UpdateSubnetsRequest(add=[subnet]))
        await client.change_address_pool(
            ChangeAddressPoolRequest(addresses_to_add=addresses(3)[2:])
        )
    connect, call = sent("hv-addsubnet-dup")
    talk = await Talk.begin(connect)
    refused = await talk.value(await talk.call(call, 2), proto.UpdateSubnetsResponse)
    assert refused.error == "subnet: net0 already exists"
    talk.end()

    connect, create, acknowledge = sent("hv-create")
    talk = await Talk.begin(connect)
    decoder = await talk.call(create, 1)
    messages: list[proto.CreateVmResponse] = []
    while not (messages and messages[-1].final):
        messages.append(await talk.value(decoder, proto.CreateVmResponse))
        assert not messages[-1].error
    assert [m.progress_message for m in messages] == [
        "getting image",
        "unpacking image: small/v1",
        "starting VM 198.51.100.4",
        "",
    ]
    done = await talk.value(await talk.call(acknowledge, 2), proto.AcknowledgeVmResponse)
    assert done.error == ""
    talk.end()
    await no_control_port(cloud, "198.51.100.4")

    connect, call = sent("hv-list")
    talk = await Talk.begin(connect)
    listed = await talk.value(await talk.call(call, 2), proto.ListVMsResponse)
    assert listed.ip_addresses == ["198.51.100.4"]
    talk.end()

    connect, call = sent("hv-getinfo")
    talk = await Talk.begin(connect)
    shown = await talk.value(await talk.call(call, 2), proto.GetVmInfoResponse)
    assert (shown.error, shown.vm_info.hostname, shown.vm_info.state) == ("", "vm2", State.RUNNING)
    talk.end()

    connect, look, destroy = sent("hv-destroy")
    talk = await Talk.begin(connect)
    found = await talk.value(await talk.call(look, 2), proto.GetVmInfoResponse)
    assert (found.error, found.vm_info.state) == ("", State.RUNNING)
    assert found.vm_info.tags == {"k": "v", "Name": "vm2"}
    assert found.vm_info.owner_users == ["alice"]
    assert found.vm_info.volumes[0].size == 1 << 28
    gone = await talk.value(await talk.call(destroy, 2), proto.DestroyVmResponse)
    assert gone.error == ""
    talk.end()
