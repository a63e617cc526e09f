"""The load of ``./dev bench rpc``: it counts only right answers, and says what is wrong."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.rpc import Load, compile_load, median_run, row
from smallstack.daemon.listener import Listener, bind
from smallstack.identity import pki
from smallstack.identity.credentials import Pair, ServerCredentials
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc import framing, gob
from smallstack.srpc.json_coder import from_json, to_json
from smallstack.srpc.server import Call, Server

ENDPOINTS = [framing.TLS_GOB, framing.TLS_JSON, framing.PLAIN_GOB]
REQUEST = proto.GetVmInfoRequest(ip_address="198.51.100.2")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("load") / "rpc_load"
    compile_load(made)
    return made


@asynccontextmanager
async def _serving(directory: Path, answer: Any) -> AsyncIterator[int]:
    authority = pki.make_ca(directory / "ca")
    pair = Pair(*pki.issue(authority, "server", server=True).write(directory / "server"))
    pki.issue(authority, "demo").write(directory / "user")
    credentials = ServerCredentials(pair, directory / "ca" / "ca.pem")
    server = Server(credentials, allow_unauthenticated_reads=True)
    server.register("Hypervisor", {"GetVmInfo": answer})
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    try:
        yield listener.addresses[0][1]
    finally:
        await listener.close()


async def _load(
    program: Path, directory: Path, port: int, endpoint: framing.Endpoint, method: str
) -> tuple[int, str, str]:
    """Exit status, output and what it complains of."""
    request = directory / "request"
    request.write_bytes(
        to_json(REQUEST) + b"\n" if endpoint.json else gob.Encoder().encode(REQUEST)
    )
    keys = [str(directory / "user" / name) for name in ("cert.pem", "key.pem")]
    process = await asyncio.create_subprocess_exec(
        *(str(program), "call", str(port), "3", "0.1", endpoint.path),
        *(keys if endpoint.tls else ["-", "-"]),
        *(method, str(request), "json" if endpoint.json else "gob"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.path)
async def test_it_counts_calls(program: Path, tmp_path: Path, endpoint: framing.Endpoint) -> None:
    calls = itertools.count()

    async def answer(_call: Call, request: proto.GetVmInfoRequest) -> proto.GetVmInfoResponse:
        next(calls)
        return proto.GetVmInfoResponse(error=f"no VM {request.ip_address}")

    async with _serving(tmp_path, answer) as port:
        status, out, err = await _load(program, tmp_path, port, endpoint, "Hypervisor.GetVmInfo")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    figures = json.loads(first)
    assert set(figures) == {"calls", "seconds", "p50_us", "p99_us"}
    assert 0 < figures["calls"] <= next(calls)
    reply = bytes.fromhex(second)
    assert reply[:1] == b"\n"
    if endpoint.json:
        value: Any = from_json(reply[1:], proto.GetVmInfoResponse)
    else:
        decoder = gob.Decoder()
        decoder.feed(reply[1:])
        value = decoder.decode(proto.GetVmInfoResponse)
    assert value.error == "no VM 198.51.100.2"


async def test_a_reply_that_is_not_the_first_ones_is_an_error(
    program: Path, tmp_path: Path
) -> None:
    calls = itertools.count()

    async def answer(_call: Call, _request: Any) -> proto.GetVmInfoResponse:
        return proto.GetVmInfoResponse(error=f"{next(calls)}")

    async with _serving(tmp_path, answer) as port:
        found = await _load(program, tmp_path, port, framing.TLS_GOB, "Hypervisor.GetVmInfo")
    assert found == (1, "", "rpc_load: a reply is not what the first one was\n")


async def test_a_refusal_is_an_error(program: Path, tmp_path: Path) -> None:
    async with _serving(tmp_path, None) as port:
        found = await _load(program, tmp_path, port, framing.TLS_GOB, "Hypervisor.Nope")
    assert found == (1, "", "rpc_load: refused: Hypervisor: unknown method: Nope\n\n")


def test_times_are_those_of_the_median_run() -> None:
    slow, middle, best = (
        Load(100, 900, 9000, 12),
        Load(200, 500, 5000, 11),
        Load(300, 300, 3000, 10),
    )
    assert median_run([best, slow, middle]) == middle
    assert median_run([best, slow]) == slow
    text = row("a case", [best, middle, slow])
    assert "200.0 /s (100.0 … 300.0)" in text
    assert "p50   500 µs  p99  5000 µs  server   10.0 µs of CPU" in text
