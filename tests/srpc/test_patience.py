"""Waits that end: in the order they began, one timer for all."""

import asyncio

from smallstack.srpc.patience import SLOWEST, Patience


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def test_a_wait_that_is_over_fails_and_one_in_time_does_not() -> None:
    patience = Patience(0.05)
    never, soon = _future(), _future()
    waits = asyncio.gather(patience.wait(never), patience.wait(soon))
    await asyncio.sleep(0)
    soon.set_result(None)
    assert list(await waits) == [False, True]


async def test_each_wait_has_its_full_time() -> None:
    patience = Patience(0.1)
    loop = asyncio.get_running_loop()

    async def wait() -> float:
        begun = loop.time()
        assert not await patience.wait(_future())
        return loop.time() - begun

    first = asyncio.create_task(wait())
    await patience.wait(_done_after(0.05))
    second = asyncio.create_task(wait())
    # A loop's clock has a resolution of a millisecond.
    assert min(await asyncio.gather(first, second)) > 0.097


def _done_after(seconds: float) -> "asyncio.Future[None]":
    future = _future()
    asyncio.get_running_loop().call_later(seconds, future.set_result, None)
    return future


async def test_a_cancelled_wait_is_forgotten() -> None:
    patience = Patience(0.02)
    task = asyncio.create_task(patience.wait(_future()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert not await patience.wait(_future())


async def test_bytes_buy_time_at_a_rate() -> None:
    patience = Patience(1.0)
    now = asyncio.get_running_loop().time()
    assert not patience.is_over(now - 0.5, 0)
    assert patience.is_over(now - 2.5, 0)
    assert patience.is_over(now - 2.5, SLOWEST)
    assert not patience.is_over(now - 2.5, 2 * SLOWEST)
