"""Container images as VMs: from an archive to a port, with nothing in the image but a program."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.proto.enums import State
from smallstack.srpc.connection import Connection
from tests.images.containers import Thing, directory, image_archive, layer
from tests.integration.cloud import IMAGE, SECOND, Cloud
from tests.integration.test_debian import console_until

pytestmark = [pytest.mark.root, pytest.mark.qemu]

HERE = Path(__file__).parent
PORT = 8080


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The container's only file, statically linked."""
    made = tmp_path_factory.mktemp("program") / "program"
    source = HERE / "container_program.c"
    subprocess.run(["gcc", "-static", "-Os", "-s", "-o", made, source], check=True)
    return made.read_bytes()


async def add(cloud: Cloud, name: str, archive: bytes, *options: str) -> None:
    path = cloud.directory / f"{name}.oci.tar"
    path.write_bytes(archive)
    await cloud.add_image(name, path, "--platform", IMAGE, *options)


async def say(ip: str, words: bytes) -> None:
    _, writer = await asyncio.open_connection(ip, PORT)
    writer.write(words)
    await writer.drain()
    writer.close()


@asynccontextmanager
async def client_of_console(cloud: Cloud, ip: str) -> AsyncIterator[Connection]:
    """A connection to the console, once it says what was said before."""
    async with cloud.client() as client, client.connect_serial(ip) as console:
        yield console


async def rest_of(console: Connection) -> str:
    """All that a console says up to the machine's end."""
    seen = b""
    while b"smallstack: going down" not in seen:
        data = await console.read_some()
        assert data, seen
        seen += data
    return seen.decode(errors="replace").replace("\r", "")


async def stopped(cloud: Cloud, ip: str) -> None:
    while (await cloud.states())[ip] is not State.STOPPED:
        async with cloud.client() as client:  # each look is an RPC: no busy loop
            await client.get_capacity()


async def test_a_program_alone_in_its_image(cloud: Cloud, program: bytes) -> None:
    config = {
        "Entrypoint": ["program", "--serve"],
        "Cmd": ["two words"],
        "Env": ["PATH=/nowhere:/app", "GREETING=hello there"],
        "WorkingDir": "/srv/data",
        "User": "worker",
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"8080/tcp": {}},
    }
    accounts = [
        Thing("etc/passwd", b"worker:x:1234:50::/home/worker:/none\n"),
        Thing("etc/group", b"more:x:60:worker\n"),
    ]
    layers = (
        layer(Thing("app/program", b"old", mode=0o755), Thing("etc/old", b"old")),
        layer(Thing("etc/.wh.old"), Thing("app/program", program, mode=0o755), *accounts),
    )
    await add(cloud, "app", image_archive(*layers, config=config, form="zstd"))
    began = time.monotonic()
    made = await cloud.create(image_name="app", hostname="first")
    ip = made.ip_address
    async with cloud.client() as client:
        assert await client.probe_vm_port(ip, PORT, 60 * SECOND)
        print(f"\ncreate to port {PORT}: {(time.monotonic() - began) * 1000:.0f} ms")
        said = (await console_until(cloud, ip, b"program: /dev/stdout")).replace("\r", "")
        for line in (
            "program: 3 arguments, last two words",
            "program: in /srv/data as 1234:50 +60",
            "program: PATH=/nowhere:/app",
            "program: GREETING=hello there",
            "program: HOME=/home/worker",
            "program: /dev/stdout opens",
        ):
            assert f"\n{line}\n" in said
        assert "cannot" not in said
        assert "# " not in said
        async with client_of_console(cloud, ip) as console:
            await client.stop_vm(ip)
            said = await rest_of(console)
        assert "\nprogram: told to quit\nsmallstack: program ended with status 0\n" in said

        await client.start_vm(ip)
        assert await client.probe_vm_port(ip, PORT, 60 * SECOND)
        async with client_of_console(cloud, ip) as console:
            await say(ip, b"end 7")
            assert "\nsmallstack: program ended with status 7\n" in await rest_of(console)
    await stopped(cloud, ip)


async def test_a_script_by_the_containers_own_shell(cloud: Cloud, appliance: Path) -> None:
    """With user data, an overlay, and a program that comes again."""
    script = b"""#!/bin/sh
/bin/busybox echo "script: $(/bin/busybox cat /etc/overlay) $(/bin/busybox id -u)"
/bin/busybox cat /etc/resolv.conf /run/kept
[ -e /run/second ] || { /bin/busybox touch /run/second; exit 3; }
exec /bin/busybox httpd -f -p 8080 -h /bin
"""
    busybox = (appliance / "bin" / "busybox").read_bytes()
    tree = layer(
        directory("bin"),
        Thing("bin/busybox", busybox, mode=0o755),
        Thing("bin/sh", busybox, mode=0o755),
        Thing("bin/start", script, mode=0o755),
        Thing("etc/resolv.conf", b"nameserver 203.0.113.200\n"),
        Thing("run/kept", b"script: its own run\n"),
        Thing("sbin/init", b"not ours", mode=0o755),
    )
    config = {"Cmd": ["/bin/start"]}
    await add(cloud, "script", image_archive(tree, config=config), "--at-end", "restart")
    made = await cloud.create(
        image_name="script",
        overlay_files={"/etc/overlay": b"overlaid"},
        user_data=b"#!/bin/sh\necho user-data: by the shell of the container\n",
    )
    ip = made.ip_address
    async with cloud.client() as client:
        assert await client.probe_vm_port(ip, PORT, 60 * SECOND)
    await console_until(cloud, ip, b"smallstack: /run/user-data ended with status 0")
    said = await console_until(cloud, ip, b"smallstack: /bin/start ended with status 3")
    said = said.replace("\r", "")
    assert "script: overlaid 0\n" in said
    assert "script: its own run\n" in said
    assert "203.0.113.200" not in said
    assert (await cloud.states())[ip] is State.RUNNING
