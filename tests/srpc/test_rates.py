"""Limits per user: who calls too often waits, while others are there, and only then."""

import asyncio

import pytest

from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc.client import Client, dial
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.rates import COMPANY_SECONDS, MAX_USERS, Rates

from .conftest import Certificates, Serve


async def _info(client: Client) -> None:
    request = hypervisor.GetVmInfoRequest(ip_address="198.51.100.1")
    await client.request("Hypervisor.GetVmInfo", request, hypervisor.GetVmInfoResponse)


def test_a_second_at_once_then_the_rate() -> None:
    rates = Rates(10)
    rates.delay("bob", 100.0)
    assert [rates.delay("alice", 100.0) for _ in range(10)] == [0.0] * 10
    assert rates.delay("alice", 100.0) == pytest.approx(0.1)
    assert rates.delay("alice", 100.0) == pytest.approx(0.2)
    assert rates.delay("bob", 100.0) == 0.0
    assert rates.delay("alice", 100.3) == pytest.approx(0.0)
    assert rates.delay("alice", 200.0) == 0.0


def test_alone_there_is_no_limit_and_no_debt() -> None:
    rates = Rates(10)
    assert all(rates.delay("alice", 100.0) == 0.0 for _ in range(1000))
    assert rates.delay("bob", 100.0) == 0.0
    # Now there is company: alice has used up her second, no more.
    assert rates.delay("alice", 100.0) == pytest.approx(0.1)
    assert rates.delay("alice", 101.0 + COMPANY_SECONDS) == 0.0


def test_zero_is_no_limit() -> None:
    rates = Rates(0)
    rates.delay("bob", 1.0)
    assert all(rates.delay("alice", 1.0) == 0.0 for _ in range(1000))


def test_the_users_kept_in_mind_are_bounded() -> None:
    rates = Rates(10)
    for number in range(20_000):
        rates.delay(f"user-{number}", 100.0 + number / 1000)
    assert len(rates._due) <= MAX_USERS


async def test_a_flood_waits_and_others_do_not(serve: Serve, certificates: Certificates) -> None:
    """Three connections of one user share her limit; another user's call is answered at once."""
    delayed: list[bool] = []
    async with serve(certificates.server, calls_per_second=20) as running:
        running.server.observer.delayed = lambda: delayed.append(True)  # type: ignore[method-assign]
        alice, bob = certificates.user("alice"), certificates.user("bob")
        async with await dial(running.address, bob) as other:
            await _info(other)
            crowd = [await dial(running.address, alice) for _ in range(3)]

            async def flood(client: Client) -> None:
                while True:
                    await _info(client)

            floods = [asyncio.create_task(flood(client)) for client in crowd]
            while not delayed:
                await _info(other) if len(running.trace.calls) < 25 else await asyncio.sleep(0)
            before = len(running.trace.calls)
            await _info(other)
            names = [call.peer.username for call in running.trace.calls[before:]]
            assert names.count("alice") <= 3  # at most what each of her connections had begun
            for task in floods:
                task.cancel()
            await asyncio.wait(floods)
            for client in crowd:
                await client.close()


async def test_one_user_cannot_have_all_connections(
    serve: Serve, certificates: Certificates
) -> None:
    async with serve(certificates.server, max_user_connections=2) as running:
        alice, bob = certificates.user("alice"), certificates.user("bob")
        async with (
            await dial(running.address, alice) as one,
            await dial(running.address, alice) as two,
        ):
            await _info(one)
            await _info(two)
            with pytest.raises(ConnectionClosedError):
                async with await dial(running.address, alice) as three:
                    await _info(three)
            async with await dial(running.address, bob) as other:
                await _info(other)
        await running.server.wait_empty()
        async with await dial(running.address, alice) as client:
            await _info(client)
