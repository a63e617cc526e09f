"""CPU time at a stretch is found, wall time is not."""

import asyncio
import logging
import time

import pytest

from smallstack.daemon.watchdog import LoopWatchdog, Stretch, watch_callbacks


def _burn(milliseconds: float) -> None:
    end = time.thread_time_ns() + int(milliseconds * 1e6)
    while time.thread_time_ns() < end:
        pass


async def test_a_long_stretch_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Stretch] = []
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def report(stretch: Stretch) -> None:
        found.append(stretch)
        loop.call_soon_threadsafe(seen.set)

    with caplog.at_level(logging.WARNING, "smallstack"), LoopWatchdog(report) as watchdog:
        _burn(80)
        await seen.wait()
    assert watchdog.stretches == 1
    assert found[0].cpu_ns > 5_000_000
    assert "_burn" in found[0].where
    assert "the event loop was held for" in caplog.text


async def test_waiting_and_short_work_are_no_stretch() -> None:
    with LoopWatchdog(limit_ns=20_000_000) as watchdog:
        time.sleep(0.08)  # noqa: ASYNC251 - wall time without CPU time is the point
        for _ in range(100):
            _burn(0.5)
            await asyncio.sleep(0)
    assert watchdog.stretches == 0


def test_callbacks_are_measured_exactly() -> None:
    async def main() -> None:
        _burn(1)
        await asyncio.sleep(0)
        _burn(12)
        await asyncio.sleep(0)

    with watch_callbacks(10_000_000) as found:
        asyncio.run(main())
    assert len(found) == 1
    assert "main" in found[0].where
