"""The Hypervisor's client against handlers that answer as a Hypervisor does."""

import asyncio
import gc
import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from smallstack.client.errors import ServiceError, SourceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.vm import Address, Subnet, VmInfo
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.server import Call

from .conftest import Serve

IP = "198.51.100.7"


class Agent:
    """Handlers, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.fail_create = ""
        self.gone = asyncio.Event()

    def handlers(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in dir(type(self))
            if name[0].isupper() and not name.startswith("_")
        }

    async def CreateVm(self, call: Call) -> None:  # noqa: N802
        conn = call.conn
        request = await conn.decode(proto.CreateVmRequest)
        if self.fail_create:
            conn.encode(proto.CreateVmResponse(error=self.fail_create))
            await conn.flush()
            return
        image = await conn.read_exactly(request.image_data_size)
        self.seen.append(
            (request.vm_info.hostname, image, await conn.read_exactly(request.user_data_size))
        )
        for text in ("getting image", f"starting VM {IP}"):
            conn.encode(proto.CreateVmResponse(progress_message=text, ip_address=IP))
            await conn.flush()
        if request.vm_info.hostname == "slow":
            await conn.peer_gone()
            self.gone.set()
        conn.encode(proto.CreateVmResponse(final=True, ip_address=IP))

    async def AcknowledgeVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        return proto.AcknowledgeVmResponse()

    async def ListVMs(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        return proto.ListVMsResponse(ip_addresses=[IP])

    async def GetVmInfo(self, call: Call, request: Any) -> Any:  # noqa: N802
        if request.ip_address != IP:
            return proto.GetVmInfoResponse(error=f"no VM with IP: {request.ip_address} found")
        return proto.GetVmInfoResponse(vm_info=VmInfo(hostname="h", address=Address(ip_address=IP)))

    async def GetVmInfos(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.GetVmInfosResponse(vm_infos=[VmInfo(hostname="h")])

    async def StartVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.StartVmResponse(dhcp_timed_out=request.dhcp_timeout > 0)

    async def StopVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.StopVmResponse()

    async def RebootVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.RebootVmResponse()

    async def DestroyVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.DestroyVmResponse(
            error="" if request.access_token else "no access to resource"
        )

    async def ProbeVmPort(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.ProbeVmPortResponse(port_is_open=request.port_number == 80)

    async def GetCapacity(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.GetCapacityResponse(num_cpus=2)

    async def ChangeAddressPool(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        return proto.ChangeAddressPoolResponse()

    async def UpdateSubnets(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        return proto.UpdateSubnetsResponse()

    async def ListSubnets(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.ListSubnetsResponse(subnets=[Subnet(id="s1")])

    async def ConnectToVmSerialPort(self, call: Call) -> None:  # noqa: N802
        conn = call.conn
        request = await conn.decode(proto.ConnectToVmSerialPortRequest)
        error = "" if request.port_number == 0 else "invalid port number"
        conn.encode(proto.ConnectToVmSerialPortResponse(error=error))
        await conn.flush()
        while not error and (data := await conn.read_some()):
            conn.write(data)
            await conn.flush()

    async def TraceVmMetadata(self, call: Call) -> None:  # noqa: N802
        await call.conn.decode(proto.TraceVmMetadataRequest)
        call.conn.encode(proto.TraceVmMetadataResponse())
        call.conn.write(b"/latest/user-data\nVM destroyed\n\n")

    async def GetUpdates(self, call: Call) -> None:  # noqa: N802
        call.conn.encode(proto.Update(health_status="one"))
        call.conn.encode(proto.Update(health_status="two"))
        await call.conn.flush()
        await call.conn.peer_gone()
        self.gone.set()

    async def GetVmUserData(self, call: Call) -> None:  # noqa: N802
        request = await call.conn.decode(proto.GetVmUserDataRequest)
        if request.ip_address != IP:
            call.conn.encode(proto.GetVmUserDataResponse(error="no such VM"))
            return
        call.conn.encode(proto.GetVmUserDataResponse(length=500_000))
        call.conn.write(b"u" * 500_000)

    async def ReplaceVmUserData(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.seen.append(await call.conn.read_exactly(request.size))
        return proto.ReplaceVmUserDataResponse()


async def test_every_method(serve: Serve, tmp_path: Path) -> None:
    agent = Agent()
    image = tmp_path / "image"
    image.write_bytes(b"i" * 700_000)
    async with (
        serve("Hypervisor", agent.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        request = proto.CreateVmRequest(vm_info=VmInfo(hostname="new"))
        replies = [r async for r in client.create_vm(request, image, b"data")]
        assert [r.progress_message for r in replies] == ["getting image", f"starting VM {IP}", ""]
        assert [r.final for r in replies] == [False, False, True]
        assert agent.seen.pop() == ("new", b"i" * 700_000, b"data")
        await client.acknowledge_vm(IP)
        assert agent.seen.pop() == proto.AcknowledgeVmRequest(ip_address=IP)
        assert await client.list_vms(tags={"Name": ["x"]}, owner_users=["a"]) == [IP]
        assert agent.seen.pop() == proto.ListVMsRequest(
            sort=True, owner_users=["a"], vm_tags_to_match={"Name": ["x"]}
        )
        assert (await client.get_vm_info(IP)).hostname == "h"
        with pytest.raises(ServiceError, match=r"^no VM with IP: 198\.51\.100\.8 found$"):
            await client.get_vm_info("198.51.100.8")
        assert [vm.hostname for vm in await client.get_vm_infos()] == ["h"]
        assert await client.start_vm(IP)
        assert not await client.start_vm(IP, dhcp_timeout=1)
        await client.stop_vm(IP)
        assert await client.reboot_vm(IP)
        with pytest.raises(ServiceError, match="no access to resource"):
            await client.destroy_vm(IP)
        await client.destroy_vm(IP, access_token=b"x" * 32)
        assert await client.probe_vm_port(IP, 80)
        assert not await client.probe_vm_port(IP, 81)
        assert (await client.get_capacity()).num_cpus == 2
        pool = proto.ChangeAddressPoolRequest(addresses_to_add=[Address(ip_address=IP)])
        await client.change_address_pool(pool)
        assert agent.seen.pop() == pool
        subnets = proto.UpdateSubnetsRequest(add=[Subnet(id="s1")])
        await client.update_subnets(subnets)
        assert agent.seen.pop() == subnets
        assert [s.id for s in await client.list_subnets()] == ["s1"]
        paths = [path async for path in client.trace_vm_metadata(IP)]
        assert paths == ["/latest/user-data", "VM destroyed"]
        assert await client.get_vm_user_data(IP) == b"u" * 500_000
        with pytest.raises(ServiceError, match="no such VM"):
            await client.get_vm_user_data("198.51.100.8")
        await client.replace_vm_user_data(IP, b"new data")
        assert agent.seen.pop() == b"new data"
        async with client.connect_serial(IP) as port:
            port.write(b"echo")
            await port.flush()
            assert await port.read_exactly(4) == b"echo"


async def test_a_refused_create_is_told_and_the_connection_goes_on(serve: Serve) -> None:
    agent = Agent()
    agent.fail_create = "no free addresses"
    async with (
        serve("Hypervisor", agent.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        with pytest.raises(ServiceError, match=r"^no free addresses$"):
            async for _ in client.create_vm(proto.CreateVmRequest()):
                raise AssertionError("it went on")
        assert await client.list_vms() == [IP]


async def test_a_create_refused_in_the_middle_of_its_data(serve: Serve) -> None:
    """The data never fits into any buffer, so the client is still sending when it is told."""
    agent = Agent()
    agent.fail_create = "image too large"
    async with (
        serve("Hypervisor", agent.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        with pytest.raises(ServiceError, match="image too large"):
            async for _ in client.create_vm(proto.CreateVmRequest(), b"x" * 100_000_000):
                raise AssertionError("it went on")


async def test_leaving_a_create_early_is_noticed(serve: Serve) -> None:
    agent = Agent()
    async with serve("Hypervisor", agent.handlers()) as address:
        client = await HypervisorClient.connect(address, None)
        request = proto.CreateVmRequest(vm_info=VmInfo(hostname="slow"))
        async with aclosing(client.create_vm(request)) as messages:
            async for message in messages:
                if message.ip_address:
                    break
        await agent.gone.wait()
        with pytest.raises(ConnectionClosedError):
            await client.list_vms()


@pytest.mark.parametrize("left", ["closed", "dropped", "failed"])
async def test_a_create_left_after_its_connection_broke_says_nothing(
    serve: Serve, left: str, tmp_path: Path
) -> None:
    """Its data are still being sent then: nobody asks what became of that."""
    loop = asyncio.get_running_loop()
    logged: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: logged.append(context))

    async def refuse_to_read(call: Call) -> None:
        await call.conn.decode(proto.CreateVmRequest)
        call.conn.encode(proto.CreateVmResponse(progress_message="getting image"))
        await call.conn.flush()
        await told.wait()
        call.conn.abort()

    data = tmp_path / "data"
    data.touch()
    os.truncate(data, 64 << 20)
    told = asyncio.Event()
    before = asyncio.all_tasks()
    async with (
        serve("Hypervisor", {"CreateVm": refuse_to_read}) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        creating = client.create_vm(proto.CreateVmRequest(), user_data=data)
        await anext(creating)
        (sending,) = (t for t in asyncio.all_tasks() if "_send" in repr(t.get_coro()))
        told.set()
        await asyncio.wait([sending])
        assert "ConnectionClosedError" in repr(sending)
        match left:
            case "closed":
                await creating.aclose()
            case "dropped":
                del creating
            case _:
                with pytest.raises(ConnectionClosedError):
                    await anext(creating)
        del sending
        gc.collect()
    while asyncio.all_tasks() - before:
        await asyncio.wait(asyncio.all_tasks() - before)
    gc.collect()
    assert logged == []


async def test_closing_does_not_wait_for_a_create_that_was_left(serve: Serve) -> None:
    gone = asyncio.Event()

    async def never_reads(call: Call) -> None:
        await call.conn.decode(proto.CreateVmRequest)
        call.conn.encode(proto.CreateVmResponse(progress_message="getting image"))
        await call.conn.flush()
        await gone.wait()

    async with serve("Hypervisor", {"CreateVm": never_reads}) as address:
        client = await HypervisorClient.connect(address, None)
        creating = client.create_vm(proto.CreateVmRequest(), user_data=bytes(64 << 20))
        await anext(creating)
        async with asyncio.timeout(30):
            await client.close()
        gone.set()
        await creating.aclose()


async def test_updates_until_one_has_seen_enough(serve: Serve) -> None:
    agent = Agent()
    async with serve("Hypervisor", agent.handlers()) as address:
        client = await HypervisorClient.connect(address, None)
        seen = []
        async with aclosing(client.get_updates()) as updates:
            async for update in updates:
                seen.append(update.health_status)
                if len(seen) == 2:
                    break
        assert seen == ["one", "two"]
        await agent.gone.wait()


async def test_serial_port_refusal_and_missing_file(serve: Serve, tmp_path: Path) -> None:
    agent = Agent()
    async with serve("Hypervisor", agent.handlers()) as address:
        client = await HypervisorClient.connect(address, None)
        with pytest.raises(SourceError, match="No such file"):
            await client.replace_vm_user_data(IP, tmp_path / "none")
        with pytest.raises(ServiceError, match="invalid port number"):
            async with client.connect_serial(IP, 1):
                raise AssertionError("it connected")
