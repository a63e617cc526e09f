"""A small cloud of real daemons in the test's own network namespace."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from smallstack.client.hypervisor import HypervisorClient
from smallstack.client.imageserver import ImageServerClient
from smallstack.control.namespace import private_mounts_command
from smallstack.control.sandbox import Daemon, start_daemon
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials
from smallstack.machine.process import EXIT_LIMIT
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.every import (
    ChangeAddressPoolRequest,
    CreateVmRequest,
    CreateVmResponse,
    UpdateSubnetsRequest,
)
from smallstack.proto.vm import Address, Subnet, VmInfo
from tests.integration import leaks
from tests.network.world import settled

GATEWAY = "198.51.100.1"
SUBNET = Subnet(id="test", ip_gateway=GATEWAY, ip_mask="255.255.255.0")
BRIDGE = "br0"
IMAGE = "appliance"
SECOND = 10**9
PORT = 6976
IMAGE_PORT = 6971


def addresses(count: int) -> list[Address]:
    """The first addresses of the subnet behind the gateway."""
    return [
        Address(ip_address=f"198.51.100.{n}", mac_address=f"52:54:c6:33:64:{n:02x}")
        for n in range(2, 2 + count)
    ]


def request(**changes: Any) -> CreateVmRequest:
    """A small appliance; ``changes`` are fields of the request or of its VM."""
    info = {"hostname": "guest", "image_name": IMAGE, "memory_in_mib": 128, "milli_cpus": 10}
    made = {"dhcp_timeout": 60 * SECOND, "minimum_free_bytes": 16 << 20, "skip_bootloader": True}
    for name, value in changes.items():
        (info if name in VmInfo.__struct_fields__ else made)[name] = value
    return CreateVmRequest(vm_info=VmInfo(**info), **made)  # type: ignore[arg-type]


class Cloud:
    """PKI, image server, hypervisor. State lies below ``directory``, or where ``state`` says."""

    def __init__(self, directory: Path, appliance: Path, state: Path | None = None) -> None:
        self.directory = directory
        self.state = state or directory / "hypervisor"
        self.control = directory / "control.json"
        self.appliance = appliance
        self.hypervisor: Daemon | None = None
        self.image_server: Daemon | None = None
        self.image_address = f"localhost:{IMAGE_PORT}"
        self._keys = directory / "pki"
        self._starts = 0

    @property
    def credentials(self) -> ClientCredentials:
        """Those of a user with every power."""
        return ClientCredentials.load(self._keys / "user")

    def user(self, name: str) -> ClientCredentials:
        """Those of a user without powers."""
        place = self._keys / name
        if not place.exists():
            pki.issue(self._authority, name).write(place)
        return ClientCredentials.load(place)

    @property
    def pid(self) -> int:
        """The hypervisor's."""
        assert self.hypervisor is not None
        return self.hypervisor.process.pid

    @property
    def log(self) -> str:
        """What the latest hypervisor has logged."""
        assert self.hypervisor is not None
        return self.hypervisor.log.read_text(errors="replace")

    def make_keys(self) -> None:
        """An authority, and certificates of both daemons and of a user."""
        self._authority = pki.make_ca(self._keys / "ca")
        methods = {
            "imageserver": [],
            "hypervisor": ["ImageServer.*", "ObjectServer.GetObjects"],
        }
        for name, allowed in methods.items():
            pki.issue(
                self._authority, name, server=True, methods=allowed, names=["localhost"]
            ).write(self._keys / name)
        pki.issue(self._authority, "user", methods=["*.*"]).write(self._keys / "user")

    def _tls(self, name: str) -> dict[str, str]:
        return {
            "ca_file": str(self._keys / "ca" / "ca.pem"),
            "cert_file": str(self._keys / name / "cert.pem"),
            "key_file": str(self._keys / name / "key.pem"),
        }

    async def start_image_server(
        self, *, insecure: bool = False, anybody_reads: bool = False, **flags: str
    ) -> None:
        """Start it."""
        command = [sys.executable, "-m", "smallstack.cli.smallstack", "imageserver"]
        state = {"state_dir": str(self.directory / "imageserver"), **self._tls("imageserver")}
        for name, value in (state | flags).items():
            command += ["--" + name.replace("_", "-"), value]
        if insecure:
            command.append("--insecure")
        if anybody_reads:
            command.append("--allow-unauthenticated-reads")
        log = self.directory / "imageserver.log"
        self.image_server = await start_daemon("imageserver", command, log, self.directory)

    async def add_image(
        self,
        name: str = IMAGE,
        tree: Path | None = None,
        *options: str,
        insecure: bool = False,
    ) -> None:
        """Add an image of a directory or archive, as a user would, and the directory it is in."""
        tool = [sys.executable, "-m", "smallstack.cli.imagetool"]
        tool += ["--plain"] if insecure else ["--cert-directory", str(self._keys / "user")]
        if "/" in name:
            making = await asyncio.create_subprocess_exec(
                *tool, "mkdir", name.rpartition("/")[0], stdin=asyncio.subprocess.DEVNULL
            )
            assert await making.wait() == 0
        command = [*tool, "add", *options, name]
        process = await asyncio.create_subprocess_exec(
            *command,
            str(tree or self.appliance),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def start_hypervisor(
        self,
        acknowledge_seconds: float = 15.0,
        exit_limit: float = EXIT_LIMIT,
        script: str = "",
        **flags: str,
    ) -> None:
        """Start it, with a log of its own; it makes the bridge if need be.

        A shell runs ``script`` first, in a mount namespace that the hypervisor stays in.
        """
        self._starts += 1
        told = {
            "flags": {
                "state_dir": str(self.state),
                "image_server": self.image_address,
                "bridge": BRIDGE,
                "bridge_address": f"{GATEWAY}/24",
                "accelerator": "tcg",
                "image_url_hosts": "* localhost",  # the tests' own servers
                **self._tls("hypervisor"),
                **flags,
            },
            "control": str(self.control),
            "acknowledge_seconds": acknowledge_seconds,
            "exit_limit": exit_limit,
        }
        command = [sys.executable, "-m", "tests.integration.agent", json.dumps(told)]
        if script:
            command = private_mounts_command(["sh", "-c", script + '; exec "$@"', "sh", *command])
        log = self.directory / f"hypervisor.{self._starts}.log"
        self.hypervisor = await start_daemon("hypervisor", command, log, self.directory)

    async def set_up(self, count: int = 4) -> None:
        """One subnet with some addresses."""
        async with self.client() as client:
            await client.update_subnets(UpdateSubnetsRequest(add=[SUBNET]))
            await client.change_address_pool(
                ChangeAddressPoolRequest(addresses_to_add=addresses(count))
            )

    @asynccontextmanager
    async def client(
        self, credentials: ClientCredentials | None = None
    ) -> AsyncIterator[HypervisorClient]:
        """A connection to the hypervisor."""
        address = f"localhost:{PORT}"
        async with await HypervisorClient.connect(
            address, credentials or self.credentials
        ) as client:
            yield client

    @asynccontextmanager
    async def plain_client(self) -> AsyncIterator[HypervisorClient]:
        """A connection to a hypervisor that was started insecure."""
        async with await HypervisorClient.connect(f"localhost:{PORT}", None) as client:
            yield client

    @asynccontextmanager
    async def images(self) -> AsyncIterator[ImageServerClient]:
        """A connection to the image server."""
        address = f"localhost:{IMAGE_PORT}"
        async with await ImageServerClient.connect(address, self.credentials) as client:
            yield client

    async def create(
        self, wanted: CreateVmRequest | None = None, user_data: bytes = b"", **changes: Any
    ) -> CreateVmResponse:
        """Create a VM and acknowledge it; the last message."""
        async with self.client() as client:
            async for reply in client.create_vm(wanted or request(**changes), user_data=user_data):
                last = reply
            await client.acknowledge_vm(last.ip_address)
        return last

    async def destroy(self, ip: str) -> None:
        """Destroy a VM."""
        async with self.client() as client:
            await client.destroy_vm(ip)

    async def states(self) -> dict[str, State]:
        """State of every VM by its address."""
        async with self.client() as client:
            return {info.address.ip_address: info.state for info in await client.get_vm_infos()}

    async def kill_hypervisor(self) -> None:
        """SIGKILL."""
        assert self.hypervisor is not None
        self.hypervisor.process.kill()
        await self.hypervisor.process.wait()

    async def stop_hypervisor(self) -> None:
        """SIGTERM."""
        assert self.hypervisor is not None
        await self.hypervisor.stop()

    async def died(self) -> int:
        """Wait for the hypervisor's end; its status."""
        assert self.hypervisor is not None
        return await self.hypervisor.process.wait()

    def at(self, where: str, step: str, do: str) -> None:
        """At the next create: at this point, do that."""
        self.control.write_text(json.dumps({"where": where, "step": step, "do": do}))

    def look(self) -> leaks.Snapshot:
        """What is there now."""
        return leaks.take(self.pid, [self.state])

    def left(self, before: leaks.Snapshot) -> str:
        """What has changed since ``before``, "" for nothing; given some time to settle."""
        difference = ""

        def none() -> bool:
            nonlocal difference
            difference = before.difference(self.look())
            return not difference

        settled(none)
        return difference

    def qemu_pids(self) -> list[int]:
        """Every QEMU in this namespace."""
        return [pid for pid, _, name in leaks.processes() if name.startswith("qemu")]

    async def close(self) -> None:
        """End the daemons, then every machine."""
        for daemon in (self.hypervisor, self.image_server):
            if daemon is not None:
                await daemon.stop()
        for pid, _, _ in list(leaks.processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
