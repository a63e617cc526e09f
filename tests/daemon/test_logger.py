"""A daemon's log from afar: over a real connection, from any thread, however much there is."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from smallstack.client.errors import ServiceError
from smallstack.client.logger import LoggerClient
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.logger import (
    MAX_EXPRESSION,
    MAX_LINE,
    MAX_WAITING,
    MAX_WATCHERS,
    LoggerService,
    _Watcher,
)
from smallstack.proto import logger as proto
from smallstack.srpc.errors import CallError, ConnectionClosedError
from smallstack.srpc.server import Server
from smallstack.telemetry import log
from tests.conftest import Watch

ROOM = logging.getLogger("smallstack.room")


@dataclass
class Daemon:
    """A running server with its log."""

    server: Server
    port: int
    stream: io.StringIO

    @asynccontextmanager
    async def client(self) -> AsyncIterator[LoggerClient]:
        async with await LoggerClient.connect(("127.0.0.1", self.port), None) as client:
            yield client

    @asynccontextmanager
    async def watching(self, **request: object) -> AsyncIterator["Lines"]:
        async with self.client() as client, client.client.raw("Logger.Watch") as conn:
            conn.encode(proto.WatchRequest(**request))  # type: ignore[arg-type]
            await conn.flush()
            client.check(await conn.decode(proto.WatchResponse))
            yield Lines(client)
            conn.abort()

    @property
    def told(self) -> list[str]:
        return [line.partition("Z ")[2] for line in self.stream.getvalue().splitlines()]


@dataclass
class Lines:
    """What a watcher gets, without the time."""

    client: LoggerClient

    async def next(self) -> str:
        line = (await self.client.client.conn.read_line()).decode()
        return line.partition("Z ")[2] or line


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger("smallstack")
    before = (root.handlers[:], root.level, root.propagate)
    stream = io.StringIO()
    log.setup("info", stream)
    yield stream
    root.handlers[:], root.level, root.propagate = before


@pytest.fixture
async def daemon(stream: io.StringIO) -> AsyncIterator[Daemon]:
    server = Server(insecure=True)
    service = LoggerService()
    server.register("Logger", service.handlers())
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    try:
        yield Daemon(server, listener.addresses[0][1], stream)
    finally:
        await listener.close(grace=1)
        service.close()


async def test_lines_written_from_afar(daemon: Daemon) -> None:
    async with daemon.client() as client:
        await client.print(["two", "words\nand a line"])
        await client.debug(0, ["not yet"])
        await client.set_debug_level(3)
        await client.debug(3, ["now"])
        await client.debug(4, ["too much"])
        await client.set_debug_level(-1)
        await client.debug(0, ["no more"])
    texts = [line.partition(" by ")[2].partition(": ")[2] for line in daemon.told]
    assert texts == ["two words?and a line", "", "now", ""]
    assert [line.split()[0] for line in daemon.told] == ["INFO", "INFO", "DEBUG", "INFO"]


async def test_a_log_that_is_not_there(daemon: Daemon) -> None:
    async with daemon.client() as client:
        with pytest.raises(CallError, match="unknown logger: other"):
            await client.call("Print", proto.PrintRequest(name="other"), proto.PrintResponse)
        with pytest.raises(ServiceError, match="unknown logger: other"):
            async with daemon.watching(name="other"):
                pass
    assert daemon.told == []


async def test_watching(daemon: Daemon) -> None:
    before = logging.getLogger("smallstack").handlers[:]
    async with (
        daemon.watching(debug_level=-1) as plain,
        daemon.watching(debug_level=2, exclude_regex="noise") as deep,
        daemon.watching(debug_level=0, include_regex=r"a\d+b", exclude_regex="a1b") as chosen,
    ):
        for watcher, others in ((plain, 3), (deep, 2)):
            for _ in range(others):
                assert "Logger.Watch(" in await watcher.next()
        ROOM.info("a1b")
        ROOM.debug("a22b")
        ROOM.log(8, "deep noise")
        ROOM.log(8, "deep")
        await asyncio.to_thread(ROOM.warning, "from a thread: a333b")
        assert [await plain.next() for _ in range(2)] == [
            "INFO room: a1b",
            "WARNING room: from a thread: a333b",
        ]
        assert [await deep.next() for _ in range(4)] == [
            "INFO room: a1b",
            "DEBUG room: a22b",
            "DEBUG room: deep",
            "WARNING room: from a thread: a333b",
        ]
        assert [await chosen.next() for _ in range(2)] == [
            "DEBUG room: a22b",
            "WARNING room: from a thread: a333b",
        ]
    assert [line for line in daemon.told if "room" in line] == [
        "INFO room: a1b",
        "WARNING room: from a thread: a333b",
    ], "the daemon's own log tells no more than before"
    await daemon.server.wait_empty()
    assert logging.getLogger("smallstack").level == logging.INFO
    assert logging.getLogger("smallstack").handlers == before


async def test_the_client_follows_a_log(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # What pytest's own handlers keep goes to another process of it, as UTF-8.
    root = logging.getLogger("smallstack")
    kept = [one for one in root.handlers if type(one).__module__ != "_pytest.logging"]
    monkeypatch.setattr(root, "handlers", kept)
    async with daemon.client() as client, aclosing(client.watch()) as lines:
        assert "Logger.Watch(-1)" in await anext(lines)
        # By hand: what else pytest listens with cannot have such text.
        record = logging.makeLogRecord({"name": ROOM.name, "levelno": 20, "msg": "seen \udcff"})
        (watcher,) = (h for h in logging.getLogger("smallstack").handlers if type(h) is _Watcher)
        watcher.handle(record)
        assert (await anext(lines)).endswith(r" room: seen \udcff")


async def test_who_does_not_read_misses_lines_and_is_told(daemon: Daemon) -> None:
    async with daemon.watching() as slow:
        assert "Logger.Watch" in await slow.next()
        # All in one go of the loop: nothing can be taken meanwhile.
        for number in range(2 * MAX_WAITING // 1000):
            ROOM.info("%d %s", number, "x" * 1000)
        ROOM.info("y" * 2 * MAX_LINE)
        got = 0
        while not (line := await slow.next()).startswith("("):
            assert line.startswith(f"INFO room: {got} x")
            got += 1
        assert 200 < got < 300
        assert line.startswith(f"({2 * MAX_WAITING // 1000 + 1 - got} lines are missing here")
        ROOM.info("z" * 2 * MAX_LINE)
        assert len(await slow.next()) == MAX_LINE - len("2026-01-01T00:00:00.000Z ")


async def test_a_line_that_cannot_be_made_harms_nobody(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    async with daemon.watching() as watcher:
        assert "Logger.Watch" in await watcher.next()
        (handler,) = (h for h in logging.getLogger("smallstack").handlers if type(h) is _Watcher)
        handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
        ROOM.info("on it goes")
        assert await watcher.next() == "INFO room: on it goes"


async def test_watchers_and_expressions_have_bounds(daemon: Daemon) -> None:
    for pattern, why in (
        ("a" * (MAX_EXPRESSION + 1), f"an expression may have {MAX_EXPRESSION} characters"),
        ("(", "no regular expression"),
        (r"(a)\1", "no regular expression"),
        ("((a{1,100}){1,100}){1,100}", "no regular expression"),
    ):
        with pytest.raises(ServiceError, match=why):
            async with daemon.watching(exclude_regex=pattern):
                pass

    opened = [daemon.watching(include_regex="nothing") for _ in range(MAX_WATCHERS)]
    for one in opened:
        await one.__aenter__()
    with pytest.raises(ServiceError, match=f"{MAX_WATCHERS} watch the log already"):
        async with daemon.watching():
            pass
    for one in opened:
        await one.__aexit__(None, None, None)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_no_expression_takes_long(daemon: Daemon, keeps_loop_free: Watch) -> None:
    async def hostile(_number: int) -> None:
        """What takes other engines years."""
        async with daemon.watching(include_regex="(a+)+$|(a|a)*b|.*.*.*.*x"):
            for _ in range(20):
                ROOM.info("a" * MAX_LINE + "!")
                await asyncio.sleep(0)

    await keeps_loop_free(hostile)


async def test_where_everything_is(daemon: Daemon) -> None:
    async with daemon.watching(), daemon.watching(), daemon.client() as client:
        text = await client.get_stack_trace()
    assert "thread MainThread:" in text
    assert "in LoggerService.get_stack_trace" in text
    (watching,) = [part for part in text.split("\n\n") if "in _Watcher.send" in part]
    assert watching.startswith("2 tasks:"), "tasks at one place are told once"


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_thousands_of_tasks_are_looked_at_beside_the_loop(
    daemon: Daemon, keeps_loop_free: Watch
) -> None:
    held = asyncio.Event()
    tasks = [asyncio.create_task(held.wait()) for _ in range(5000)]

    async def look(_number: int) -> None:
        async with daemon.client() as client:
            assert "\n5000 tasks:\n" in await client.get_stack_trace()

    await keeps_loop_free(look)
    held.set()
    await asyncio.gather(*tasks)


async def test_a_server_that_ends_does_not_wait_for_watchers(daemon: Daemon) -> None:
    async with daemon.watching() as lines:
        assert "Logger.Watch" in await lines.next()
        await daemon.server.close(grace=3600)
        with pytest.raises(ConnectionClosedError):
            await lines.next()
