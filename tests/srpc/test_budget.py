"""Large messages of one user: in turn, and never more of them in memory than may be."""

import asyncio

import pytest

from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.budget import LARGE, Budget
from smallstack.srpc.client import dial

from .conftest import Serve

INFO = b"Hypervisor.GetVmInfo\n"


async def test_one_alone_is_let_in_and_others_wait_in_turn() -> None:
    budget = Budget(100)
    await budget.take(1000)
    order: list[int] = []

    async def large(number: int, size: int) -> None:
        await budget.take(size)
        order.append(number)

    tasks = [asyncio.create_task(large(n, size)) for n, size in enumerate((60, 30, 20))]
    await asyncio.sleep(0)
    assert order == []
    budget.give(1000)
    await asyncio.wait(tasks[:2])
    assert order == [0, 1]
    assert budget.used == 90
    budget.give(60)
    await tasks[2]
    assert budget.used == 50


async def test_who_gives_up_waiting_takes_nothing() -> None:
    budget = Budget(100)
    await budget.take(100)
    task = asyncio.create_task(budget.take(50))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    budget.give(100)
    assert budget.used == 0


async def test_what_holds_room_grows_beside_others_only_while_there_is_some() -> None:
    budget = Budget(100)
    await budget.take(40)
    assert budget.grow(40, 1000)
    budget.give(1040)
    await budget.take(40)
    await budget.take(40)
    assert budget.grow(40, 20)
    assert not budget.grow(60, 1)


@pytest.mark.parametrize("json", [False, True], ids=["gob", "json"])
async def test_large_requests_of_one_user_come_in_turn(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, json: bool
) -> None:
    """Two of 0.6 of the budget are never there at once; small ones do not wait for them."""
    size = 6 * LARGE
    large = b"{" + b" " * size if json else b"\xfd" + size.to_bytes(3, "big")
    endpoint = framing.PLAIN_JSON if json else framing.PLAIN_GOB
    monkeypatch.setattr(Budget.__init__, "__defaults__", (10 * LARGE,))
    asked: asyncio.Queue[Budget] = asyncio.Queue()
    take = Budget.take

    async def noted(self: Budget, size: int) -> None:
        asked.put_nowait(self)
        await take(self, size)

    monkeypatch.setattr(Budget, "take", noted)
    async with serve() as running:
        writers = []
        for _ in range(2):
            reader, writer = await running.plain()
            writer.write(framing.connect_request(endpoint) + INFO)
            await reader.readexactly(len(framing.CONNECTED) + 1)
            writer.write(large)  # announced, or all but its end
            budget = await asked.get()
            writers.append(writer)
        async with await dial(running.address, None, endpoints=[endpoint]) as client:
            request = hypervisor.GetVmInfoRequest(ip_address="198.51.100.1")
            kind = hypervisor.GetVmInfoResponse
            reply = await client.request("Hypervisor.GetVmInfo", request, kind)
            assert reply.error == "no VM 198.51.100.1"
            assert LARGE < budget.used <= budget.limit
        for writer in writers:
            writer.transport.abort()
        await running.server.wait_empty()
        assert budget.used == 0
