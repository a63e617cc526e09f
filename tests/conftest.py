"""Fixtures for every room."""

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from smallstack.daemon.watchdog import LIMIT_NS, watch_callbacks

# No daemon of a test may ask the metadata service of the machine that runs the tests.
os.environ["SMALLSTACK_SRPC_TRUST_VM_OWNERS"] = "false"

PASSES = 3

Scenario = Callable[[int], Coroutine[None, None, None]]
"""What is watched; it is given the number of its pass, for names and directories of its own."""
Watch = Callable[[Scenario], Awaitable[None]]


@pytest.fixture
def keeps_loop_free() -> Watch:
    """Awaits a scenario and fails if callbacks of asyncio's own loop took over 5 ms of CPU time.

    Code that holds the loop does so in every pass. A machine that serves an interrupt, or wakes up
    from a colder cache, charges it to whoever runs, once: so only what is over the limit in each of
    three passes fails the test; the first pass without ends it. The garbage collector is off
    meanwhile: a test process has far more objects than a daemon.
    """

    async def watch(scenario: Scenario) -> None:
        assert isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        told = []
        for number in range(PASSES):
            gc.collect()
            gc.disable()
            try:
                with watch_callbacks() as found:
                    await asyncio.create_task(scenario(number))
            finally:
                gc.enable()
            if not found:
                return
            told += [f"{s.cpu_ns / 1e6:.1f} ms in {s.where} (pass {number + 1})" for s in found]
        limit = f"{LIMIT_NS / 1e6:.0f} ms"
        pytest.fail(f"the event loop was held for over {limit} at a stretch: {'; '.join(told)}")

    return watch
