"""Work goes on to its end whoever is cancelled, and its failure comes first."""

import asyncio

import pytest

from smallstack.outlast import outlast


async def test_a_cancelled_caller_waits_for_the_end() -> None:
    over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    done: list[str] = []
    caller = asyncio.create_task(outlast(over, done.append))
    for _ in range(2):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    over.set_result("written")
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["written"]


async def test_a_failure_is_told_also_to_who_was_cancelled() -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    caller = asyncio.create_task(outlast(over))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    over.set_exception(OSError("full"))
    with pytest.raises(OSError, match="full"):
        await caller


async def test_the_result_comes_back() -> None:
    assert await outlast(asyncio.to_thread(lambda: 5)) == 5


async def test_work_that_is_cancelled_itself_ends_it() -> None:
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(over.cancel)
    with pytest.raises(asyncio.CancelledError):
        await outlast(over)
