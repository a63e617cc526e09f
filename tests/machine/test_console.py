import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.machine import console as console_module
from smallstack.machine.console import (
    CLIENT_BYTES,
    DETACH_KEY,
    HEAD_BYTES,
    SEGMENT_BYTES,
    Console,
    ConsoleLog,
    read_log,
    rotate_log,
)
from smallstack.machine.errors import ConsoleBusyError, ConsoleClosedError


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def pattern(length: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(length // 8 + 1))[:length]


def test_a_short_log_is_whole(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "console")
    log.append(b"one\n")
    log.append(b"two\n")
    assert read_log(tmp_path / "console") == (b"one\ntwo\n", 0, b"")
    assert read_log(tmp_path / "console").joined() == b"one\ntwo\n"
    log.close()


def test_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path / "console").joined() == b""


@pytest.mark.parametrize("chunk", [1000, 4096, 10_000_000])
def test_first_and_last_part_are_kept_within_bounds(tmp_path: Path, chunk: int) -> None:
    directory = tmp_path / "console"
    data = pattern(3_000_000)
    log = ConsoleLog(directory)
    for start in range(0, len(data), chunk):
        log.append(data[start : start + chunk])
        assert disk_bytes(directory) <= HEAD_BYTES + 2 * SEGMENT_BYTES
    head, omitted, tail = read_log(directory)
    assert head == data[:HEAD_BYTES]
    assert tail == data[-SEGMENT_BYTES:]
    assert len(head) + omitted + len(tail) == len(data) == log.total
    text = read_log(directory).joined()
    assert f"\n[{omitted} bytes left out]\n".encode() in text
    log.close()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), restarts=st.sets(st.integers(0, 11)))
def test_a_log_goes_on_after_any_restart(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], restarts: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("log") / "console"
    data = pattern(sum(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console_module, "HEAD_BYTES", 64)
        patch.setattr(console_module, "SEGMENT_BYTES", 256)
        log = ConsoleLog(directory)
        at = 0
        for index, size in enumerate(sizes):
            if index in restarts:
                log.close()
                log = ConsoleLog(directory)
            log.append(data[at : at + size])
            at += size
        log.close()
        head, omitted, tail = read_log(directory)
    assert head == data[:64]
    assert tail == data[64:][-256:]
    assert omitted == len(data) - len(head) - len(tail)


def test_a_full_disk_loses_output_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ConsoleLog(tmp_path / "console")
    log.append(b"before\n")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        log.append(b"lost\n")
    assert log.failed is not None
    log.append(b"after\n")
    assert read_log(tmp_path / "console").joined() == b"before\nafter\n"
    log.close()


def test_the_boot_before_is_set_aside_once(tmp_path: Path) -> None:
    directory = tmp_path / "console"
    for boot in (b"first", b"second", b"third"):
        rotate_log(directory)
        log = ConsoleLog(directory)
        log.append(boot)
        log.close()
    assert read_log(directory).head == b"third"
    assert read_log(tmp_path / "console.old").head == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console", "console.old"]


class WatchedLog(ConsoleLog):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.grown = asyncio.Event()

    def append(self, data: bytes) -> None:
        super().append(data)
        self.grown.set()


async def until(console: Console, length: int) -> None:
    """Wait until the log holds that much."""
    assert isinstance(console.log, WatchedLog)
    while console.log.total < length:
        console.log.grown.clear()
        await console.log.grown.wait()


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[Console, socket.socket]]:
    """A console, and the end where QEMU would be."""
    ours, qemus = socket.socketpair()
    loop = asyncio.get_running_loop()
    console = Console(WatchedLog(tmp_path / "console"))
    ours.setblocking(False)
    qemus.setblocking(False)
    await loop.create_unix_connection(lambda: console, sock=ours)
    yield console, qemus
    console.close()
    await console.closed
    qemus.close()


async def test_output_goes_to_log_and_client(
    ends: tuple[Console, socket.socket], tmp_path: Path
) -> None:
    console, qemu = ends
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(qemu, b"nobody listens\n")
    await until(console, 15)
    async with console.attach() as session:
        await loop.sock_sendall(qemu, b"login: ")
        assert await session.read() == b"login: "
        await session.write(b"root\n\xff\x00")
        assert await loop.sock_recv(qemu, 100) == b"root\n\xff\x00"
    await loop.sock_sendall(qemu, b"again nobody\n")
    await until(console, 35)
    assert read_log(tmp_path / "console").head == b"nobody listens\nlogin: again nobody\n"
    assert console.first_byte_ns is not None


async def test_one_client_at_a_time(ends: tuple[Console, socket.socket]) -> None:
    console, _ = ends
    first = console.attach()
    with pytest.raises(ConsoleBusyError, match="VM already has a serial port connection"):
        console.attach()
    first.close()
    second = console.attach()
    first.close()  # once more: the console stays the second one's
    with pytest.raises(ConsoleBusyError):
        console.attach()
    second.close()


async def test_closing_ends_a_read(ends: tuple[Console, socket.socket]) -> None:
    console, _ = ends
    session = console.attach()
    reading = asyncio.create_task(session.read())
    await asyncio.sleep(0)
    session.close()
    assert await reading == b""
    with pytest.raises(ConsoleClosedError):
        await session.write(b"x")


async def test_the_machine_ends(ends: tuple[Console, socket.socket]) -> None:
    console, qemu = ends
    session = console.attach()
    qemu.send(b"last words")
    qemu.close()
    await console.closed
    assert await session.read() == b"last words"
    assert await session.read() == b""
    with pytest.raises(ConsoleClosedError, match="VM serial port closed"):
        await session.write(b"x")
    with pytest.raises(ConsoleClosedError):
        console.attach()


async def test_a_client_that_does_not_read_loses_output_and_is_told(
    ends: tuple[Console, socket.socket],
) -> None:
    console, qemu = ends
    session = console.attach()
    data = pattern(CLIENT_BYTES + 500_000)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(qemu, data))
    await until(console, len(data))
    await sending
    got = await session.read()
    assert got.startswith(data[:CLIENT_BYTES])
    assert got.endswith(b"\r\n[500000 bytes lost: read too slowly]\r\n")
    qemu.send(b"and on")
    assert await session.read() == b"and on"


async def test_typing_waits_for_a_guest_that_does_not_read(
    ends: tuple[Console, socket.socket],
) -> None:
    console, qemu = ends
    loop = asyncio.get_running_loop()
    session = console.attach()
    typing = asyncio.create_task(session.write(b"x" * 4_000_000))
    await asyncio.sleep(0)
    assert not typing.done()
    received = 0
    while received < 4_000_000:
        received += len(await loop.sock_recv(qemu, 1 << 20))
    await typing


def test_the_detach_key_is_one_control_character() -> None:
    assert len(DETACH_KEY) == 1
    assert DETACH_KEY[0] < 32
