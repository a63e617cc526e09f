"""A small cloud of real daemons in a private world: PKI, image server, Hypervisor, one subnet.

The demo and the benchmarks start it; both run inside ``namespace``. The daemons are the shipped
programs, started as a service manager would start them: each tells on NOTIFY_SOCKET when it
serves, and what it logs goes to a file of its own.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from smallstack.client.hypervisor import HypervisorClient
from smallstack.client.imageserver import ImageServerClient
from smallstack.identity.credentials import ClientCredentials
from smallstack.proto.hypervisor.network import ChangeAddressPoolRequest, UpdateSubnetsRequest
from smallstack.proto.vm import Address, Subnet
from smallstack.telemetry.errors import SmallStackError

NETWORK = ipaddress.IPv4Network("198.51.100.0/24")
"""TEST-NET-2 of RFC 5737: nobody's addresses."""
GATEWAY = "198.51.100.1"
FIRST_VM = 2
SUBNET_ID = "demo"
BRIDGE = "smallstack0"
HYPERVISOR = "localhost:6976"
IMAGE_SERVER = "localhost:6971"
USER = "demo"
DAEMON_METHODS = {
    "imageserver": [],
    "hypervisor": [
        "ImageServer.CheckDirectory",
        "ImageServer.FindLatestImage",
        "ImageServer.GetImage",
        "ObjectServer.GetObjects",
    ],
}
"""The daemons, and what each may call at others."""


class DaemonError(SmallStackError):
    """{name} {what}; its log is {log}, which ends:\n{tail}"""

    def __str__(self) -> str:
        """The line, then the log's last lines as they are."""
        return f"{self.name} {self.what}; its log is {self.log}, which ends:\n{self.tail}"


class Daemon:
    """One running daemon: its process, its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def error(self, what: str, lines: int = 12) -> DaemonError:
        """An error that shows the end of the log."""
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        text = "\n".join(f"  {line}" for line in tail)
        return DaemonError(name=self.name, what=what, log=self.log, tail=text)

    async def stop(self) -> None:
        """SIGTERM, then wait for its end."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            await self.process.wait()


async def start_daemon(name: str, command: Sequence[str], log: Path, run: Path) -> Daemon:
    """Start a daemon and return when it says that it serves.

    ``run`` is a directory for the notification socket. Raises DaemonError when it ends first.
    """
    path = run / f"{name}.notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.setblocking(False)
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "NOTIFY_SOCKET": str(path)},
            )
        daemon = Daemon(name, process, log)
        ready = asyncio.create_task(_ready(notify))
        ended = asyncio.create_task(process.wait())
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, ended):
            task.cancel()
        if process.returncode is not None:
            raise daemon.error(f"ended with status {process.returncode} before it served")
    path.unlink(missing_ok=True)
    return daemon


async def _ready(notify: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while b"READY=1" not in await loop.sock_recv(notify, 4096):
        pass


class Sandbox:
    """The daemons, their keys and state below ``directory``, their logs below ``logs``."""

    def __init__(self, directory: Path, logs: Path) -> None:
        self.directory = directory
        self.logs = logs
        self.certificates = directory / "ssl"
        self.hypervisor_state = directory / "hypervisor"
        self._daemons: list[Daemon] = []
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def tool_options(self) -> list[str]:
        """What vm-control and hyper-control need to reach the Hypervisor of this sandbox."""
        return ["--cert-directory", str(self.certificates), "--hypervisor", HYPERVISOR]

    async def start(self, addresses: int, extra: Sequence[str] = ()) -> None:
        """Start everything; the Hypervisor then has ``addresses`` addresses to hand out.

        ``extra`` goes onto the Hypervisor's command line. Raises DaemonError and what the
        Hypervisor refuses.
        """
        await asyncio.to_thread(self._make_keys)
        await self.start_image_server()
        await self.start_hypervisor(extra)
        async with await self.hypervisor() as client:
            subnet = Subnet(id=SUBNET_ID, ip_gateway=GATEWAY, ip_mask=str(NETWORK.netmask))
            await client.update_subnets(UpdateSubnetsRequest(add=[subnet]))
            await client.change_address_pool(
                ChangeAddressPoolRequest(addresses_to_add=list(pool(addresses)))
            )

    async def start_image_server(self) -> None:
        """Start the image server and wait until it serves."""
        state = self.directory / "imageserver"
        state.mkdir(exist_ok=True)
        await self._start("imageserver", ["--state-dir", str(state)])

    async def start_hypervisor(self, extra: Sequence[str] = ()) -> None:
        """Start the Hypervisor and wait until it serves."""
        options = [
            "--state-dir",
            str(self.hypervisor_state),
            "--image-server",
            IMAGE_SERVER,
            "--bridge",
            BRIDGE,
            "--bridge-address",
            f"{GATEWAY}/{NETWORK.prefixlen}",
        ]
        await self._start("hypervisor", [*options, *extra])

    async def hypervisor(self) -> HypervisorClient:
        """A fresh connection to the Hypervisor."""
        return await HypervisorClient.connect(HYPERVISOR, self._credentials())

    async def image_server(self) -> ImageServerClient:
        """A fresh connection to the image server."""
        return await ImageServerClient.connect(IMAGE_SERVER, self._credentials())

    async def stop(self) -> None:
        """Stop the daemons, last started first. Guests end with the namespace."""
        while self._daemons:
            await self._daemons.pop().stop()

    def process_id(self, name: str) -> int:
        """The process of a daemon that was started."""
        return next(daemon.process.pid for daemon in self._daemons if daemon.name == name)

    def failed(self) -> DaemonError | None:
        """The first daemon that has ended by itself, as an error that shows its log."""
        for daemon in self._daemons:
            if daemon.process.returncode is not None:
                return daemon.error(f"ended with status {daemon.process.returncode}")
        return None

    def _credentials(self) -> ClientCredentials:
        return ClientCredentials.load(self.certificates)

    async def _start(self, name: str, options: Sequence[str]) -> None:
        keys = self.directory / "pki" / name
        command = [
            sys.executable,
            "-m",
            "smallstack.cli.smallstack",
            name,
            *options,
            "--ca-file",
            str(self.directory / "pki" / "ca.pem"),
            "--cert-file",
            str(keys / "cert.pem"),
            "--key-file",
            str(keys / "key.pem"),
        ]
        log = self.logs / f"{name}.log"
        self._daemons.append(await start_daemon(name, command, log, self.directory))

    def _make_keys(self) -> None:
        # Imported here: the cryptography package is slow to load and clients never need it.
        from smallstack.identity import pki

        authority = pki.make_ca(self.directory / "pki", "SmallStack sandbox")
        for name, methods in DAEMON_METHODS.items():
            pair = pki.issue(authority, name, server=True, methods=methods, names=["localhost"])
            pair.write(self.directory / "pki" / name)
        pki.issue(authority, USER, methods=["*.*"]).write(self.certificates)


def pool(count: int) -> list[Address]:
    """The first ``count`` VM addresses of the sandbox's subnet, with derived MACs."""
    found = []
    for index in range(FIRST_VM, FIRST_VM + count):
        ip = NETWORK[index]
        mac = ":".join(f"{octet:02x}" for octet in (0x52, 0x54, *ip.packed))
        found.append(Address(ip_address=str(ip), mac_address=mac))
    return found
