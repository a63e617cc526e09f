"""RPC, TLS and pages on one port; who may see which page."""

import asyncio
import ctypes
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator

import pytest

from smallstack.daemon.errors import ListenError
from smallstack.daemon.listener import bind
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc.client import dial
from smallstack.srpc.errors import AccessDeniedError, CallError
from tests.network.world import private_namespace

from .conftest import Site, Start


async def _cpus(address: tuple[str, int], site: Site | None) -> int:
    async with await dial(address, site.user if site else None) as client:
        request, kind = hypervisor.GetCapacityRequest(), hypervisor.GetCapacityResponse
        return (await client.request("Hypervisor.GetCapacity", request, kind)).num_cpus


def _get(path: str, host: str = "x") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def _anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_rpc_and_pages_share_a_port(start: Start, site: Site) -> None:
    async with start(site.server) as daemon:
        assert await _cpus(daemon.address, site) == 2
        answer = await daemon.exchange(_get("/healthz"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nOK\n")
        answer = await daemon.exchange(_get("/healthz"), ssl=site.user.context)
        assert answer.endswith(b"OK\n")
        methods = await daemon.exchange(_get("/_goSRPC_/listMethods"))
        assert methods.endswith(
            b"\r\n\r\n.LocalUpgradeToUnix\nHypervisor.GetCapacity\nHypervisor.PowerOff\n"
        )
        methods = await daemon.exchange(_get("/_goSRPC_/listPublicMethods"))
        assert methods.endswith(b"\r\n\r\nHypervisor.GetCapacity\n")
        name = await daemon.exchange(_get("/_goSRPC_/getHostname"))
        assert name.endswith(socket.gethostname().encode() + b"\n")
        assert (await daemon.exchange(_get("/none"))).startswith(b"HTTP/1.1 404 ")
        assert (
            await daemon.exchange(b"DELETE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        ).startswith(b"HTTP/1.1 405 ")


async def test_the_index_is_escaped(start: Start) -> None:
    async with start() as daemon:
        answer = (await daemon.exchange(_get("/"))).decode()
        assert "<h1>Agent &lt;1&gt;</h1><p>a &amp; b</p>" in answer
        assert "<td>&lt;b&gt;x&lt;/b&gt;</td>" in answer
        assert "Content-Security-Policy" in answer


async def test_metrics_count_calls_and_refusals(start: Start, site: Site) -> None:
    async with start(site.server) as daemon:
        await _cpus(daemon.address, site)
        async with await dial(daemon.address, site.user) as client:
            with pytest.raises(AccessDeniedError):
                async with client.raw("Hypervisor.PowerOff"):
                    pass
            with pytest.raises(CallError):
                async with client.raw("Hypervisor.Nope"):
                    pass
        assert (await daemon.exchange(b"CONNECT /none HTTP/1.0\n\n")).startswith(b"HTTP/1.0 404")
        text = (await daemon.exchange(_get("/metrics"))).decode()
        for line in (
            'smallstack_rpc_calls_denied_total{method="Hypervisor.PowerOff"} 1.0',
            'smallstack_rpc_call_seconds_count{method="Hypervisor.GetCapacity",outcome="ok"} 1.0',
            'smallstack_rpc_connections_rejected_total{reason="404"} 1.0',
            "smallstack_rpc_connections_opened_total 2.0",
            "smallstack_rpc_connections 0.0",
        ):
            assert f"{line}\n" in text
        assert "process_resident_memory_bytes" in text


@pytest.fixture
def outside() -> Iterator[str]:
    """An address of this machine that is not loopback's: what a neighbour sees."""
    address = "198.51.100.9"
    with private_namespace():
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        yield address


@pytest.mark.root
async def test_pages_from_elsewhere_need_a_certificate(
    outside: str, start: Start, site: Site
) -> None:
    async with start(site.server, host=outside) as daemon:
        assert (await daemon.exchange(_get("/healthz"))).endswith(b"OK\n")
        for path in ("/", "/metrics", "/_goSRPC_/listMethods", "/none"):
            answer = await daemon.exchange(_get(path))
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"client certificate" in answer
            answer = await daemon.exchange(_get(path), ssl=_anonymous())
            assert answer.startswith(b"HTTP/1.1 403 ")
            answer = await daemon.exchange(_get(path), ssl=site.user.context)
            assert answer.startswith(b"HTTP/1.1 404 " if path == "/none" else b"HTTP/1.1 200 ")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await daemon.exchange(_get("/"), ssl=site.stranger.context)
    async with start(site.server, host=outside, open_pages=True) as daemon:
        assert (await daemon.exchange(_get("/metrics"))).startswith(b"HTTP/1.1 200 ")


async def test_sick_daemon(start: Start) -> None:
    async with start(healthy=lambda: "image server is away") as daemon:
        answer = await daemon.exchange(_get("/healthz"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"image server is away\n")


async def test_several_requests_on_one_tls_connection(start: Start, site: Site) -> None:
    async with start(site.server) as daemon:
        reader, writer = await asyncio.open_connection(*daemon.address, ssl=site.user.context)
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(3) == b"OK\n"
        writer.close()


async def test_too_many_page_connections(start: Start) -> None:
    async with start(listener_options={"max_page_connections": 1}) as daemon:
        reader, writer = await asyncio.open_connection(*daemon.address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"OK\n")
        assert (await daemon.exchange(_get("/healthz"))).startswith(b"HTTP/1.0 503 ")
        writer.close()


async def test_many_sockets_on_every_family(start: Start) -> None:
    async with start(host="") as daemon:
        assert {host for host, _ in daemon.listener.addresses} == {"::", "0.0.0.0"}
        port = daemon.address[1]
        assert await _cpus(("127.0.0.1", port), None) == 2
        assert await _cpus(("::1", port), None) == 2
        for sock in bind("127.0.0.1", 0):
            await daemon.listener.add(sock)
        assert await _cpus(daemon.listener.addresses[-1], None) == 2


def test_bind_says_what_is_wrong() -> None:
    (sock,) = bind("127.0.0.1", 0)
    with sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ListenError, match="Cannot assign"):
        bind("203.0.113.77", 0)
    with pytest.raises(ListenError, match=r"cannot listen on nowhere\.invalid:1"):
        bind("nowhere.invalid", 1)


@pytest.mark.root
async def test_a_socket_of_another_network_namespace(start: Start) -> None:
    """One listener serves its own namespace and another one, where nothing else runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made: list[socket.socket] = []
    answers: list[bytes] = []
    ready, go = threading.Event(), threading.Event()

    def live_elsewhere() -> None:
        clone_newnet = 0x40000000
        if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "address", "add", "198.51.100.254/32", "dev", "lo"], check=True)
        made.extend(bind("198.51.100.254", 80))
        ready.set()
        go.wait()
        with socket.create_connection(("198.51.100.254", 80), timeout=20) as sock:
            sock.sendall(_get("/healthz"))
            while data := sock.recv(4096):
                answers.append(data)

    thread = threading.Thread(target=live_elsewhere)
    thread.start()
    await asyncio.to_thread(ready.wait)
    async with start() as daemon:
        await daemon.listener.add(made[0])
        go.set()
        await asyncio.to_thread(thread.join)
        assert b"".join(answers).endswith(b"OK\n")
        assert await _cpus(daemon.address, None) == 2
