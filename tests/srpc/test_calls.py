"""Calls of every shape between our client and our server, plain and over TLS, gob and JSON."""

# ruff: noqa: SIM117 - the server outlives each client in the text as in time

import asyncio
from pathlib import Path

import pytest

from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.client import Client, dial
from smallstack.srpc.errors import (
    AccessDeniedError,
    BadCertificateError,
    CallError,
    CertificateRequiredError,
    ConnectError,
    ConnectionClosedError,
    NoEndpointError,
)

from .conftest import Certificates, Serve

ALL = [framing.TLS_GOB, framing.TLS_JSON, framing.PLAIN_GOB, framing.PLAIN_JSON]
INFO = "Hypervisor.GetVmInfo"


async def _info(client: Client, address: str = "198.51.100.1") -> str:
    request = hypervisor.GetVmInfoRequest(ip_address=address)
    reply = await client.request(INFO, request, hypervisor.GetVmInfoResponse)
    return reply.error


@pytest.mark.parametrize("endpoint", ALL, ids=lambda e: e.path)
async def test_every_shape(
    serve: Serve, certificates: Certificates, endpoint: framing.Endpoint
) -> None:
    user = certificates.user("alice", groups=["dev"])
    server = certificates.server if endpoint.tls else None
    async with serve(server) as running:
        client = await dial(running.address, user, endpoints=[endpoint])
        async with client:
            assert await _info(client) == "no VM 198.51.100.1"
            await client.ping()
            async with client.raw("Hypervisor.CreateVm") as conn:
                conn.encode(hypervisor.CreateVmRequest(image_data_size=300_000))
                conn.write(b"x" * 300_000)
                await conn.flush()
                replies: list[hypervisor.CreateVmResponse] = []
                while not replies or not replies[-1].final:
                    replies.append(await conn.decode(hypervisor.CreateVmResponse))
            assert [r.progress_message for r in replies] == ["one", "two", ""]
            assert running.trace.requests[1][1] == b"x" * 300_000
            with pytest.raises(CallError, match="StopVm: no such VM, really"):
                await client.request(
                    "Hypervisor.StopVm", hypervisor.StopVmRequest(), hypervisor.StopVmResponse
                )
            assert await _info(client, "198.51.100.3") == "no VM 198.51.100.3"
            async with client.raw("Hypervisor.ConnectToVmSerialPort") as conn:
                conn.encode(hypervisor.ConnectToVmSerialPortRequest())
                await conn.flush()
                await conn.decode(hypervisor.ConnectToVmSerialPortResponse)
                conn.write(b"hello\n")
                await conn.flush()
                assert await conn.read_exactly(6) == b"HELLO\n"
                conn.close()
    peer = running.trace.calls[0].peer
    assert peer.username == ("alice" if endpoint.tls else "")
    assert peer.groups == (frozenset({"dev"}) if endpoint.tls else frozenset())
    assert peer.have_method_access is not endpoint.tls
    assert peer.is_loopback
    assert running.server.connections == 0


async def test_refusals_keep_the_connection(serve: Serve, certificates: Certificates) -> None:
    async with serve(certificates.server) as running:
        async with await dial(running.address, certificates.user("alice")) as client:
            for method, text in (
                ("abc", "malformed Service.Method: abc"),
                ("a.b.c", "malformed Service.Method: a.b.c"),
                ("Nope.X", "unknown service: Nope"),
                ("Hypervisor.Nope", "Hypervisor: unknown method: Nope"),
                ("Hypervisor.PowerOff", "access to method denied"),
            ):
                with pytest.raises(CallError) as caught:
                    async with client.raw(method):
                        raise AssertionError("it was accepted")
                assert caught.value.text == text
            with pytest.raises(AccessDeniedError, match="lacks the right"):
                await client.request(
                    "Hypervisor.PowerOff",
                    hypervisor.PowerOffRequest(),
                    hypervisor.PowerOffResponse,
                )
            assert await _info(client) == "no VM 198.51.100.1"


async def test_powers_and_giving_them_up(serve: Serve, certificates: Certificates) -> None:
    operator = certificates.user("operator", methods=["Hypervisor.*"])
    request, kind = hypervisor.PowerOffRequest(), hypervisor.PowerOffResponse
    async with serve(certificates.server) as running:
        async with await dial(running.address, operator) as client:
            await client.request("Hypervisor.PowerOff", request, kind)
            await _info(client)
        async with await dial(running.address, operator, use_method_powers=False) as client:
            await _info(client)
            with pytest.raises(AccessDeniedError):
                await client.request("Hypervisor.PowerOff", request, kind)
    assert [c.peer.have_method_access for c in running.trace.calls] == [True, False]


async def test_a_bug_in_a_handler_is_one_line(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as running, await dial(running.address, None) as client:
        with pytest.raises(CallError, match="internal error"):
            await client.request(
                "Hypervisor.StopVm",
                hypervisor.StopVmRequest(ip_address="198.51.100.66"),
                hypervisor.StopVmResponse,
            )
        assert "a bug" in caplog.text
        await _info(client)


async def test_a_failing_raw_method_closes(serve: Serve) -> None:
    async with serve() as running, await dial(running.address, None) as client:
        with pytest.raises(ConnectionClosedError):
            async with client.raw("Hypervisor.GetVmUserData") as conn:
                await conn.read_exactly(1)


@pytest.mark.parametrize("tls", [False, True])
async def test_the_server_notices_who_goes_away(
    serve: Serve, certificates: Certificates, tls: bool
) -> None:
    credentials = certificates.user("alice") if tls else None
    for method, event in (("TraceVmMetadata", "gone"), ("GetUpdates", "cancelled")):
        async with serve(certificates.server if tls else None) as running:
            client = await dial(running.address, credentials)
            async with client.raw(f"Hypervisor.{method}") as conn:
                await running.trace.entered.wait()
                conn.abort()
                await running.trace.release.wait()
            assert running.trace.events == [event]


async def test_calls_on_one_client_wait_for_each_other(serve: Serve) -> None:
    async with serve() as running, await dial(running.address, None) as client:
        texts = await asyncio.gather(*(_info(client, f"198.51.100.{n}") for n in range(20)))
        assert texts == [f"no VM 198.51.100.{n}" for n in range(20)]


async def test_cancelling_a_call_closes_its_connection(serve: Serve) -> None:
    async with serve() as running:
        client = await dial(running.address, None)

        async def wait() -> None:
            async with client.raw("Hypervisor.TraceVmMetadata") as conn:
                await conn.read_some()

        task = asyncio.create_task(wait())
        await running.trace.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running.trace.release.wait()
        with pytest.raises(ConnectionClosedError):
            await _info(client)


async def test_who_is_turned_away_at_the_door(
    serve: Serve, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("other")
    pki.issue(pki.make_ca(place / "ca", "X"), "mallory", methods=["*.*"]).write(place / "m")
    mallory = ClientCredentials.load(place / "m")
    pki.issue(pki.make_ca(place / "twin"), "molly", methods=["*.*"]).write(place / "n")
    molly = ClientCredentials.load(place / "n")
    async with serve(certificates.server) as running:
        with pytest.raises(CertificateRequiredError, match="demands TLS"):
            await dial(running.address, None)
        with pytest.raises(BadCertificateError, match="unknown ca"):
            async with await dial(running.address, mallory) as client:
                await _info(client)
        with pytest.raises(BadCertificateError, match="decrypt error"):
            async with await dial(running.address, molly) as client:
                await _info(client)
        plain = [framing.PLAIN_GOB]
        with pytest.raises(CertificateRequiredError):
            await dial(running.address, certificates.user("alice"), endpoints=plain)
    async with serve() as running:
        with pytest.raises(NoEndpointError, match="is TLS set up"):
            await dial(running.address, mallory)
        async with await dial(running.address, mallory, plain_fallback=True) as client:
            await _info(client)
    with pytest.raises(ConnectError, match="refused"):
        await dial(running.address, None)


async def test_unauthenticated_reads(serve: Serve, certificates: Certificates) -> None:
    async with serve(certificates.server, allow_unauthenticated_reads=True) as running:
        async with await dial(running.address, None) as client:
            assert await _info(client) == "no VM 198.51.100.1"
            with pytest.raises(AccessDeniedError):
                async with client.raw("Hypervisor.CreateVm"):
                    pass


async def test_tls_on_every_connection(serve: Serve, certificates: Certificates) -> None:
    """A server that does TLS before anything: the client finds out and CONNECTs inside."""
    user = certificates.user("alice")
    async with serve(certificates.server) as running:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = await reader.read(4096)
            if first.startswith(b"CONNECT"):  # what a TLS server says to plain text
                writer.write(bytes.fromhex("15030100020232"))
                writer.close()
                return
            onward = await running.plain()
            onward[1].write(first)

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(copy(reader, onward[1]), copy(onward[0], writer))

        front = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = front.sockets[0].getsockname()[1]
        async with await dial(("127.0.0.1", port), user) as client:
            await _info(client)
        assert running.trace.calls[0].peer.username == "alice"
        front.close()


async def test_what_stands_behind_a_star_is_for_people(serve: Serve) -> None:
    """As upstream's addresses have it: ``name*suffix:port`` leads to ``name:port``."""
    async with (
        serve(None) as running,
        await dial(f"localhost*rack-7.example:{running.port}", None) as client,
    ):
        assert await _info(client) == "no VM 198.51.100.1"
        assert client.address == f"localhost:{running.port}"


@pytest.mark.parametrize("endpoint", [framing.PLAIN_GOB, framing.PLAIN_JSON], ids=lambda e: e.path)
async def test_pings_as_others_write_them(serve: Serve, endpoint: framing.Endpoint) -> None:
    async with serve(None) as running:
        reader, writer = await running.plain()
        writer.write(framing.connect_request(endpoint) + b"\n\r\n  \nHypervisor.Nope\r\n\n")
        assert await reader.readuntil(b"\n\n") == framing.CONNECTED
        assert await reader.readexactly(3) == b"\n\n\n"
        assert await reader.readline() == b"Hypervisor: unknown method: Nope\n"
        assert await reader.readline() == b"\n"
        writer.close()


async def test_no_certificate_inside_tls_is_a_401(serve: Serve, certificates: Certificates) -> None:
    import ssl

    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    async with serve(certificates.server) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=bare)
        writer.write(framing.connect_request(framing.TLS_GOB))
        assert (await reader.read()).startswith(b"HTTP/1.0 401 Unauthorized\r\n")
        writer.close()


async def test_the_certificate_that_this_server_accepts(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    """Those of two sites in one directory: the one with more powers is the other site's."""
    other = pki.make_ca(tmp_path / "other")
    pki.issue(other, "elsewhere", methods=["*.*"]).write(tmp_path / "ssl", "other")
    pki.issue(certificates.authority, "alice").write(tmp_path / "ssl", "here")
    user = ClientCredentials.load(tmp_path / "ssl")
    assert user.pair.key.stem == "other"
    async with serve(certificates.server) as running:
        async with await dial(running.address, user) as client:
            await _info(client)
        assert running.trace.calls[0].peer.username == "alice"
        (tmp_path / "ssl" / "here.key").unlink()
        pki.issue(other, "molly").write(tmp_path / "ssl", "third")
        with pytest.raises(BadCertificateError):
            await dial(running.address, ClientCredentials.load(tmp_path / "ssl"))


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([404, 404, 404, 200], ALL),
        ([404, 404, 404, 404], ALL),
        ([404, 405], ALL[:2]),
        ([401], ALL[:1]),
        ([400], ALL[:1]),
        ([404, 404, 503], ALL[:3]),
    ],
    ids=str,
)
async def test_endpoints_are_tried_in_order_after_a_404_only(
    certificates: Certificates, answers: list[int], asked: list[framing.Endpoint]
) -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\n\n"))
        code = answers[len(heard) - 1]
        writer.write(framing.CONNECTED if code == 200 else framing.refusal(code))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialling = dial(("127.0.0.1", port), certificates.user("alice"), plain_fallback=True)
    if answers[-1] == 200:
        client = await dialling
        assert client.conn.json
        client.conn.abort()
    else:
        with pytest.raises(ConnectError):
            await dialling
    assert heard == [f"CONNECT {endpoint.path} HTTP/1.0\n\n".encode() for endpoint in asked]
    server.close()
