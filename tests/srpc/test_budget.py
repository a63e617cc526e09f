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


async def test_small_ones_go_past_a_large_one_but_not_for_ever() -> None:
    budget = Budget(100)
    await budget.take(40)
    large = asyncio.create_task(budget.take(90))
    await asyncio.sleep(0)
    past = 0
    small = asyncio.create_task(budget.take(20))
    await asyncio.wait((small,))
    while small.done():  # one is always there, for as long as they are let in
        past += 1
        following = asyncio.create_task(budget.take(20))
        await asyncio.sleep(0)
        if past == 3:
            budget.give(40)  # what the large one waited for first
        budget.give(20)
        small = following
        await asyncio.sleep(0)
        assert past < 100, "for ever"
    assert past == 5
    await large
    assert budget.used == 90
    budget.give(90)
    await small
    budget.give(20)
    assert budget.used == 0


async def test_the_next_one_that_waits_is_passed_as_little() -> None:
    budget = Budget(100)
    await budget.take(90)
    order: list[str] = []

    async def ask(name: str, size: int) -> None:
        await budget.take(size)
        order.append(name)

    sizes = {"a": 60, "b": 50, "c": 10, "d": 40, "e": 10}
    tasks = [asyncio.create_task(ask(name, size)) for name, size in sizes.items()]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["c"]
    budget.give(90)
    await asyncio.wait(tasks[:1])
    assert order == ["c", "a", "e"]  # beside b there was room
    budget.give(60)
    await asyncio.wait(tasks[:2])
    assert order == ["c", "a", "e", "b"]
    budget.give(50)
    await asyncio.wait(tasks)
    assert budget.used == 60


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
