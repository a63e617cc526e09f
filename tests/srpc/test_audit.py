"""Refusals in the log: who, what, from where; a flood makes few lines and hides nobody."""

import logging

import pytest

from smallstack.hypervisor.errors import NoAccessError, StateError
from smallstack.hypervisor.methods.base import answering
from smallstack.network.errors import SubnetAccessError
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.audit import LINES_AT_ONCE, MAX_CALLERS, SECONDS_A_LINE, Audit
from smallstack.srpc.client import dial
from smallstack.srpc.errors import AccessDeniedError, CallError, CertificateRequiredError

from .conftest import Certificates, Serve


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "smallstack.audit"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "smallstack.audit")
    return caplog


async def test_a_refused_call_and_a_refused_connection(
    serve: Serve, certificates: Certificates, log: pytest.LogCaptureFixture
) -> None:
    async with serve(certificates.server) as running:
        async with await dial(running.address, certificates.user("alice")) as client:
            port = client.conn.peer_name.rpartition(":")[2]
            assert port == str(running.port)
            with pytest.raises(AccessDeniedError):
                await client.request(
                    "Hypervisor.PowerOff",
                    hypervisor.PowerOffRequest(),
                    hypervisor.PowerOffResponse,
                )
        with pytest.raises(CertificateRequiredError):
            await dial(running.address, None)
        reader, writer = await running.plain()
        writer.write(framing.connect_request(framing.TLS_GOB) + b"not TLS at all")
        await reader.read()
        await running.server.wait_empty()
    first, second, third = (line.partition(" from 127.0.0.1:") for line in _lines(log))
    assert first[0] == "refused: alice@127.0.0.1"
    assert first[2].partition(": ")[2] == "Hypervisor.PowerOff: access to method denied"
    assert second[0] == third[0] == "refused: (nobody)@127.0.0.1"
    assert second[2].partition(": ")[2] == "405 Method Not Allowed"
    assert "TLS" in third[2]


def test_a_flood_is_a_few_lines_and_a_count(log: pytest.LogCaptureFixture) -> None:
    audit = Audit()
    for number in range(10_000):
        audit.refused("mallory", f"198.51.100.9:{number}", "Hypervisor.PowerOff", now=100.0)
    assert len(_lines(log)) == LINES_AT_ONCE
    audit.refused("alice", "198.51.100.9:1", "Hypervisor.PowerOff", now=100.0)
    assert _lines(log)[-1] == "refused: alice@198.51.100.9 from 198.51.100.9:1: Hypervisor.PowerOff"
    audit.refused("mallory", "198.51.100.9:2", "Hypervisor.PowerOff", now=100.0 + SECONDS_A_LINE)
    assert _lines(log)[-1].endswith(f" (and {10_000 - LINES_AT_ONCE} times more, not shown)")


def test_a_flood_from_everywhere_is_bounded(log: pytest.LogCaptureFixture) -> None:
    audit = Audit()
    for number in range(20_000):
        audit.refused("", f"[2001:db8::{number:x}]:1", "TLS failed", now=100.0)
    assert len(_lines(log)) <= MAX_CALLERS + LINES_AT_ONCE
    assert len(audit._callers) <= MAX_CALLERS + 1
    later = 100.0 + SECONDS_A_LINE * (LINES_AT_ONCE + 1)
    audit.refused("alice", "198.51.100.9:1", "Hypervisor.PowerOff", now=later)
    assert _lines(log)[-1].startswith("refused: alice@198.51.100.9 ")
    assert len(audit._callers) < 10


def test_a_name_cannot_forge_a_line(log: pytest.LogCaptureFixture) -> None:
    Audit().refused("eve\nrefused: alice", "198.51.100.9:1", "x\r\ny", now=1.0)
    assert _lines(log) == ["refused: eve?refused: alice@198.51.100.9 from 198.51.100.9:1: x??y"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoAccessError(), str(NoAccessError())),
        (SubnetAccessError(subnet="hers"), "no access to subnet: hers"),
        (StateError(text="it is running"), ""),
    ],
)
async def test_what_is_kept_from_a_caller_by_a_method(
    serve: Serve,
    certificates: Certificates,
    log: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
) -> None:
    """In the reply, as the line before it, or by closing the connection: it is audited."""

    async def replies(*_: object) -> None:
        raise error

    async with serve(certificates.server) as running:
        running.server.register(
            "Hypervisor", {"DestroyVm": answering(replies), "StopVm": replies, "CopyVm": replies}
        )
        async with await dial(running.address, certificates.user("alice")) as client:
            reply = await client.request(
                "Hypervisor.DestroyVm", hypervisor.DestroyVmRequest(), hypervisor.DestroyVmResponse
            )
            assert reply.error == str(error)
            with pytest.raises(CallError, match=str(error)):
                await client.request(
                    "Hypervisor.StopVm", hypervisor.StopVmRequest(), hypervisor.StopVmResponse
                )
            async with client.raw("Hypervisor.CopyVm") as conn:
                await conn.peer_gone()
    expected = [f"Hypervisor.{name}: {said}" for name in ("DestroyVm", "StopVm", "CopyVm")]
    lines = [line.partition(" from 127.0.0.1:") for line in _lines(log)]
    assert [line[2].partition(": ")[2] for line in lines] == (expected if said else [])
    assert {line[0] for line in lines} <= {"refused: alice@127.0.0.1"}
