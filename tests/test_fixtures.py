"""The fixture that watches the loop can fail, and forgives what happens once."""

import asyncio
import time

import pytest

from tests.conftest import Watch


def _burn(milliseconds: int) -> None:
    end = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < end:
        pass


async def test_what_holds_the_loop_in_every_pass_fails(keeps_loop_free: Watch) -> None:
    passes = []

    async def always(number: int) -> None:
        passes.append(number)
        await asyncio.sleep(0)
        _burn(9)
        await asyncio.sleep(0)

    with pytest.raises(pytest.fail.Exception, match=r"over 5 ms .* in .*always.*\(pass 3\)"):
        await keeps_loop_free(always)
    assert passes == [0, 1, 2]


async def test_what_holds_the_loop_once_is_forgiven(keeps_loop_free: Watch) -> None:
    passes = []

    async def once(number: int) -> None:
        passes.append(number)
        await asyncio.sleep(0)
        _burn(0 if number else 9)
        await asyncio.sleep(0)

    await keeps_loop_free(once)
    assert passes[:2] == [0, 1]
