"""Fixtures for every room."""

import gc
from collections.abc import Iterator

import pytest

from smallstack.daemon.watchdog import LIMIT_NS, watch_callbacks


@pytest.fixture
def responsive_loop() -> Iterator[None]:
    """Fails the test if any callback of asyncio's own loop took over 5 ms of CPU time.

    The garbage collector is off meanwhile: a test process has far more objects than a daemon.
    """
    gc.collect()
    gc.disable()
    try:
        with watch_callbacks() as found:
            yield
    finally:
        gc.enable()
    told = "; ".join(f"{s.cpu_ns / 1e6:.1f} ms in {s.where}" for s in found)
    assert not found, (
        f"the event loop was held for over {LIMIT_NS / 1e6:.0f} ms at a stretch: {told}"
    )
