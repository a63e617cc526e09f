"""Slots that users share: turn by turn, and none for one user alone."""

import asyncio

from smallstack.srpc.slots import Slots


async def _rounds() -> None:
    """Whoever can go on has gone on."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Calls of users, and who has got a slot, in order."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """By each of these calls, ``user`` and a digit."""

        async def call(name: str) -> None:
            await self.slots.take(name[:-1])
            self.served.append(name)

        for name in names:
            self.tasks[name] = asyncio.create_task(call(name))
        await _rounds()

    async def end(self, *users: str) -> list[str]:
        """A slot of each of these is given back; who got one for it."""
        before = len(self.served)
        for user in users:
            self.slots.give(user)
        await _rounds()
        return self.served[before:]


async def test_one_user_leaves_some_for_others() -> None:
    crowd = Crowd(Slots(4, 2))
    await crowd.ask("a1", "a2", "a3", "a4")
    assert crowd.served == ["a1", "a2"]
    await crowd.ask("b1", "c1", "c2", "d1")
    assert crowd.served == ["a1", "a2", "b1", "c1"]
    assert crowd.slots.used == 4


async def test_free_slots_go_round_the_users() -> None:
    crowd = Crowd(Slots(2, 2))
    await crowd.ask("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1")
    assert crowd.served == ["a1", "a2"]
    assert await crowd.end("a", "a") == ["a3", "b1"]
    assert await crowd.end("a", "b") == ["c1", "a4"]
    assert await crowd.end("c", "a") == ["b2", "a5"]
    assert await crowd.end("a", "b") == []
    assert crowd.slots.used == 0


async def test_who_gives_up_holds_nothing() -> None:
    crowd = Crowd(Slots(1, 1))
    await crowd.ask("a1", "b1", "b2", "c1")
    crowd.tasks["b1"].cancel()
    await _rounds()
    assert await crowd.end("a") == ["b2"]
    # One that is cancelled and another whose turn has just come, both before they can see it.
    await crowd.ask("d1")
    crowd.tasks["c1"].cancel()
    assert await crowd.end("b") == ["d1"]
    await crowd.ask("e1", "f1")
    crowd.slots.give("d")
    crowd.tasks["e1"].cancel()
    await _rounds()
    assert crowd.served[-1] == "f1"
    assert await crowd.end("f") == []
    assert crowd.slots.used == 0


async def test_a_slot_is_given_back_whatever_happens() -> None:
    slots = Slots(1, 1)
    for _ in range(2):
        try:
            async with slots.hold("a"):
                assert slots.used == 1
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert slots.used == 0
