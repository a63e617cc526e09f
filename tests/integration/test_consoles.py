"""A VM's display and QEMU's monitor, through the agent, on a machine that has nothing to boot."""

import json
from typing import Any

import pytest

from smallstack.client.errors import ServiceError
from smallstack.hypervisor.methods.reaching import MAX_COMMAND
from smallstack.proto.enums import ConsoleType, State
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import AccessDeniedError
from tests.integration.cloud import Cloud

pytestmark = [pytest.mark.root, pytest.mark.qemu]


async def told(conn: Connection) -> Any:
    return json.loads(await conn.read_line())


async def test_display_and_monitor(cloud: Cloud) -> None:
    ip = (await cloud.create(image_name="", do_not_start=True, owner_users=["olga"])).ip_address

    async def refused() -> str:
        async with cloud.client() as client:
            with pytest.raises(ServiceError) as raised:
                async with client.connect_console(ip):
                    pass
        return str(raised.value)

    assert "VM has no VNC console" in await refused()
    async with cloud.client() as client:
        await client.change_vm_console_type(ip, ConsoleType.VNC)
        assert await refused() == "VM is not running"
        await client.start_vm(ip)
    for _ in range(2):
        async with (
            cloud.client(cloud.user("olga")) as client,
            client.connect_console(ip) as display,
            cloud.client(cloud.user("olga")) as second,
            second.connect_console(ip) as another,
        ):
            for conn in (display, another):
                # RFC 6143, 7.1: versions, then one kind of security: none.
                assert await conn.read_exactly(12) == b"RFB 003.008\n"
                conn.write(b"RFB 003.008\n")
                await conn.flush()
                assert await conn.read_exactly(2) == b"\x01\x01"
                conn.write(b"\x01")
                await conn.flush()
                assert await conn.read_exactly(4) == bytes(4)
                conn.write(b"\x01")
                await conn.flush()
                width, height = (await conn.read_exactly(4))[1::2]
                assert width or height
        # Of a machine that was found again, too.
        await cloud.kill_hypervisor()
        await cloud.start_hypervisor()

    async with cloud.client(cloud.user("olga")) as client:
        with pytest.raises(AccessDeniedError):
            async with client.connect_manager(ip):
                pass
    async with cloud.client() as client, client.connect_manager(ip) as monitor:
        monitor.write(
            b'{"execute": "query-name", "id": 7}\r\n\r{"execute": "nonsense"}\rno JSON\r[]\r'
        )
        await monitor.flush()
        assert await told(monitor) == {"return": {"name": ip}, "id": 7}
        assert (await told(monitor))["error"]["class"] == "CommandNotFound"
        assert "this is no JSON" in (await told(monitor))["error"]["desc"]
        assert "execute" in (await told(monitor))["error"]["desc"]
        monitor.write(b'{"execute": "stop"}\n')
        await monitor.flush()
        lines = [await told(monitor), await told(monitor)]
        assert {"return": {}} in lines
        assert {"event": "STOP", "data": {}} in lines
        async with cloud.client() as other, other.connect_manager(ip) as endless:
            endless.write(b"x" * (MAX_COMMAND + 1))
            await endless.flush()
            assert "a command of more than" in (await told(endless))["error"]["desc"]
            assert await endless.read_some() == b""
        async with cloud.client() as other:
            await other.destroy_vm(ip)
        assert (await told(monitor))["event"] == "SHUTDOWN"
        assert await monitor.read_some() == b""
    assert State.RUNNING not in (await cloud.states()).values()
