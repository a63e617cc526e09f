"""Our tools as processes against what upstream's daemons are: what they said, as it was captured.

The server here says to each method what an upstream daemon said to it, byte for byte, over TLS. It
has upstream's endpoints and errors and none of our own methods. The tools choose among certificates
in a directory as users have it, and what they ask is looked at as well.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smallstack.identity import pki
from smallstack.identity.credentials import Pair, ServerCredentials
from smallstack.proto import objectserver
from smallstack.proto.enums import State
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.proto.kinds import Hash
from smallstack.proto.methods import METHODS, Shape
from smallstack.srpc import framing
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError, TlsError
from smallstack.srpc.gob import Decoder
from tests.srpc.test_gob_captures import CONVERSATIONS, VECTORS

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]
MISSING = b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"
AGENT = (
    *("hv-addsubnet-dup.01", "hv-create.01", "hv-denied.01", "hv-destroy.01", "hv-getcap.01"),
    *("hv-getinfo.01", "hv-list.01"),
)
IMAGES = ("hv-to-is.01", "is-ins-get.01", "is-ins-list.01", "is-ins-mkdir.01", "vc-to-is.01")


def replies(name: str) -> Iterator[tuple[str, bytes]]:
    """Each method of a conversation, and all that the server sent behind its accepting line."""
    rest = (VECTORS / f"{name}.s2c.bin").read_bytes().removeprefix(framing.CONNECTED)
    for call in CONVERSATIONS[name].calls:
        line, _, rest = rest.partition(b"\n")
        if call.refused:
            yield call.method, line
            continue
        begin = rest
        decoder = Decoder()
        if METHODS[call.method].shape is Shape.REQUEST_REPLY:
            assert rest.startswith(b"\n")
            rest = rest[1:]
        decoder.feed(rest)
        for reply in call.replies:
            assert decoder.decode(type(reply)) == reply
        rest = decoder.take_rest()[len(call.raw + call.text) :]
        yield call.method, begin[: len(begin) - len(rest)]


def contents() -> dict[Hash, bytes]:
    """The objects that captured image servers sent."""
    found: dict[Hash, bytes] = {}
    for conversation in CONVERSATIONS.values():
        for call in conversation.calls:
            if isinstance(call.request, objectserver.GetObjectsRequest):
                data = call.raw
                answer = call.replies[0]
                assert isinstance(answer, objectserver.GetObjectsResponse)
                for hash_, size in zip(call.request.hashes, answer.object_sizes, strict=True):
                    found[hash_], data = data[:size], data[size:]
    return found


@dataclass
class Upstream:
    """One daemon, and what it was asked."""

    credentials: ServerCredentials
    names: tuple[str, ...]
    denied: tuple[str, ...] = ()
    paths: list[str] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._answers = {method: data for name in self.names for method, data in replies(name)}
        self._objects = contents()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def asked(self) -> list[tuple[str, Any]]:
        """What was called since the last look, with the requests."""
        found, self.calls = self.calls, []
        return found

    async def _listen(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        daemon = self

        class Serving(Connection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                task = asyncio.ensure_future(daemon._serve(self))
                daemon._tasks.add(task)
                task.add_done_callback(daemon._tasks.discard)

        self._server = await self._loop.create_server(Serving, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, conn: Connection) -> None:
        try:
            while (head := framing.parse_request_head(conn.peek())) is None:
                if not await conn.more():
                    return
            conn.skip(head.size)
            self.paths.append(head.path)
            if head.path != framing.TLS_GOB.path:
                conn.write(MISSING)
                await conn.flush()
                return
            conn.write(framing.CONNECTED)
            await conn.flush()
            await conn.start_tls(self.credentials.context, server_side=True)
            while True:
                await self._call(conn, (await conn.read_line()).decode())
        except (ConnectionClosedError, TlsError):
            pass
        finally:
            conn.close()

    async def _call(self, conn: Connection, name: str) -> None:
        service, _, method = name.partition(".")
        known = METHODS.get(name)
        if not name:
            conn.write(b"\n")
        elif name == "ObjectServer.GetObjects":
            await self._get_objects(conn)
        elif name in self.denied:
            self.calls.append((name, None))
            conn.write(self._answers[name] + b"\n")
        elif known is None or name not in self._answers or known.rights_of:
            self.calls.append((name, None))
            conn.write(f"{service}: unknown method: {method}\n".encode())
        else:
            conn.begin_call()
            conn.write(b"\n")
            await conn.flush()
            assert known.request is not None
            self.calls.append((name, await conn.decode(known.request)))
            conn.write(self._answers[name])
        await conn.flush()

    async def _get_objects(self, conn: Connection) -> None:
        conn.begin_call()
        conn.write(b"\n")
        await conn.flush()
        request = await conn.decode(objectserver.GetObjectsRequest)
        found = [self._objects[hash_] for hash_ in request.hashes]
        conn.encode(objectserver.GetObjectsResponse(object_sizes=[len(one) for one in found]))
        conn.write(b"".join(found))


@dataclass
class Site:
    """Both daemons, and a user's home."""

    agent: Upstream
    images: Upstream
    home: Path

    def run(self, tool: str, *words: str | Path, status: int = 0) -> str:
        """What a tool prints on standard output, and nothing else; or its one line of error."""
        done = self.tell(tool, *words)
        assert done.returncode == status, done
        assert done.stderr.count("\n") == (1 if status else 0), done
        return done.stderr if status else done.stdout

    def tell(self, tool: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A tool run by a user whose certificates are where the tools look for them."""
        place = self.images.port if tool == "imagetool" else self.agent.port
        option = "--image-server" if tool == "imagetool" else "--hypervisor"
        module = f"smallstack.cli.{tool.replace('-', '_')}"
        command = [sys.executable, "-m", module, option, f"127.0.0.1:{place}", *map(str, words)]
        environment = {**os.environ, "HOME": str(self.home)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("upstream")
    authority = pki.make_ca(directory / "ca")
    stranger = pki.make_ca(directory / "other")
    pair = Pair(*pki.issue(authority, "server", server=True).write(directory / "server"))
    credentials = ServerCredentials(pair, directory / "ca" / "ca.pem")
    ssl = directory / ".ssl"
    ssl.mkdir(mode=0o700)
    # Of another site, with more rights than ours: tried first, and not accepted.
    issued = pki.issue(stranger, "alice", methods=["*.*"]).write(directory / "issued")
    for made, name in zip(issued, ("site.cert", "site.key"), strict=True):
        made.rename(ssl / name)
    pki.issue(authority, "alice").write(ssl)
    agent = Upstream(credentials, AGENT, denied=("Hypervisor.ChangeAddressPool",))
    images = Upstream(credentials, IMAGES)
    for daemon in (agent, images):
        daemon.start()
    yield Site(agent, images, directory)
    for daemon in (agent, images):
        daemon.stop()


def test_vm_control(site: Site) -> None:
    assert site.run("vm-control", "list-vms") == "10.77.0.3\n10.77.0.4\n"
    assert set(site.agent.paths) == {framing.TLS_GOB.path}
    ((method, _),) = site.agent.asked()
    assert method == "Hypervisor.ListVMs"
    shown = json.loads(site.run("vm-control", "get-vm-info", "10.77.0.4"))
    assert (shown["Hostname"], shown["State"], shown["Tags"]) == (
        "vm2",
        State.RUNNING.text,
        {"Name": "vm2", "k": "v"},
    )
    assert site.run("vm-control", "destroy-vm", "10.77.0.4") == ""
    requests = [request for method, request in site.agent.asked() if "Destroy" in method]
    assert requests == [hypervisor.DestroyVmRequest(ip_address="10.77.0.4")]


def test_creating_a_vm(site: Site) -> None:
    words = ["--hostname", "vm2", "--image-name", "small/v1", "--memory", "256M"]
    done = site.tell("vm-control", "create-vm", *words, "--owner-group", "team-a", "--tag", "k=v")
    assert (done.returncode, done.stdout) == (0, "10.77.0.4\n")
    assert [line.split(" ", 2)[2] for line in done.stderr.splitlines()] == [
        f"creating VM on 127.0.0.1:{site.agent.port}",
        "getting image",
        "unpacking image: small/v1",
        "waiting for test memory allocation",
        "starting VM 10.77.0.4",
        "Received DHCP ACK",
    ]
    (create, acknowledge) = site.agent.asked()
    assert create[0] == "Hypervisor.CreateVm"
    assert create[1].vm_info.hostname == "vm2"
    assert create[1].vm_info.tags == {"Name": "vm2", "k": "v"}
    assert acknowledge == (
        "Hypervisor.AcknowledgeVm",
        hypervisor.AcknowledgeVmRequest(ip_address="10.77.0.4"),
    )


def test_hyper_control(site: Site) -> None:
    shown = site.run("hyper-control", "get-capacity")
    assert "24105" in shown
    subnet = ["net0", "10.77.0.1", "255.255.255.0", "10.77.0.1"]
    refused = site.run("hyper-control", "add-subnet", *subnet, status=1)
    assert "subnet: net0 already exists" in refused
    denied = site.run("hyper-control", "add-address", "", "10.77.0.9", status=1)
    assert "access to method denied" in denied


def test_imagetool(site: Site, tmp_path: Path) -> None:
    assert site.run("imagetool", "list") == ""
    site.run("imagetool", "mkdir", "small")
    assert site.run("imagetool", "find-latest", "tiny") == "tiny/v1\n"
    assert "45120" in site.run("imagetool", "estimate-usage", "tiny/v1")
    site.images.asked()
    site.run("imagetool", "get", "small/v1", tmp_path / "out")
    assert (tmp_path / "out/usr/bin/hello").read_bytes() == b"hello\n"
    assert (tmp_path / "out/usr/bin/hi").readlink() == Path("hello")
    names = [method for method, _ in site.images.asked()]
    assert names.count("ImageServer.GetImage") == 1
    # What upstream does not have is asked for at most, and done without.
    assert set(names) <= {".LocalUpgradeToUnix", "ImageServer.GetImage"}


def test_what_upstream_does_not_have(site: Site, tmp_path: Path) -> None:
    told = site.run("imagetool", "get-archive", "small/v1", tmp_path / "archive", status=1)
    assert "ImageServer: unknown method: GetImageArchive" in told
    assert not (tmp_path / "archive").exists()


def test_clear_text_only_when_asked_for_and_served(site: Site) -> None:
    site.agent.paths.clear()
    plain = site.run("vm-control", "--plain", "list-vms", status=1)
    assert "no endpoint" in plain
    assert site.agent.paths == [endpoint.path for endpoint in framing.PLAIN]
