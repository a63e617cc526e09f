"""Kills a process that fills a cache at every one of its writes, then looks at what is left.

A program of its own, started with ``killer.c`` preloaded: it forks from a state with one thread.
Prints the number of kill points.
"""

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smallstack.objects.cache import ObjectCache
from tests.objects.disk import objects_on_disk
from tests.objects.sources import MemorySource, digest

OBJECTS = [bytes([n]) * 300 for n in range(1, 13)] + [b"L" * (1 << 21)]
QUOTA = (1 << 21) + 3100
CALLS = ("write", "rename", "open", "unlink", "ftruncate", "fsync", "mkdir", "posix_fallocate")


class Killer:
    """Counts the calls that change the disk; the one that is due happens half, or not at all."""

    def __init__(self, due: int) -> None:
        self.due = due
        self.count = 0

    def wrap(self, name: str) -> None:
        inner: Callable[..., Any] = getattr(os, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.due:
                if name == "write":
                    inner(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*arguments, **options)

        setattr(os, name, counted)


def fill(directory: Path, due: int) -> int:
    """Fetch, evict, drop, compact; the number of calls it took."""
    killer = ctypes.CDLL(None)
    killer.counted.restype = ctypes.c_long
    killer.arm(ctypes.c_long(due))
    cache = ObjectCache(directory, QUOTA)

    async def work() -> None:
        source = MemorySource(*OBJECTS)
        items = list(source.objects().items())
        await cache.ensure(dict(items[:9]), source)
        await cache.ensure(dict(items[2:]), source)
        await cache.drop([items[4][0]])
        await cache.ensure(dict(items[4:5]), source)

    asyncio.run(work())
    cache.close()
    return int(killer.counted())


def check(directory: Path) -> None:
    """All that the cache believes to have is right, and what lacks can be fetched."""
    cache = ObjectCache(directory, QUOTA)
    for data in OBJECTS:
        if digest(data) in cache and cache.place(digest(data)).path.exists():
            assert b"".join(cache.place(digest(data)).read()) == data

    async def work() -> None:
        await cache.sweep()
        assert cache.used_bytes <= QUOTA
        source = MemorySource(*OBJECTS)
        wanted = dict(list(source.objects().items())[3:])
        await cache.ensure(wanted, source)
        for hash_ in wanted:
            assert b"".join(cache.place(hash_).read()) == source.contents[hash_]

    asyncio.run(work())
    assert objects_on_disk(cache) == set(cache._held)
    assert list((directory / ".incoming").iterdir()) == []
    cache.close()
    assert sorted(p.name for p in directory.iterdir() if p.name.startswith(".")) == [
        ".flat",
        ".incoming",
        ".index",
        ".lock",
        ".packs",
    ]


def in_a_child(work: Callable[[], object]) -> int:
    """The wait status of a child that did this."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def every_kill_point(
    change: Callable[[Path, int], object], check: Callable[[Path], object]
) -> None:
    """``change`` killed at each of its writes in turn, and every time ``check`` of what is left."""
    logging.disable(logging.CRITICAL)
    base = Path(sys.argv[1])
    due = 1
    while True:
        directory = base / str(due)
        status = in_a_child(lambda: change(directory, due))  # noqa: B023 - it is over before
        assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        assert in_a_child(lambda: check(directory)) == 0, f"kill point {due}"  # noqa: B023
        shutil.rmtree(directory)
        if status == 0:
            break
        due += 1
    print(due - 1)


if __name__ == "__main__":
    every_kill_point(fill, check)
