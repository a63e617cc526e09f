"""A file is whole after a crash or an error, and its mode holds from its first byte on."""

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from smallstack.durable import private_directory, replace_by, replace_file


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    replace_file(path, b"old", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, b"new", sync=False)
    assert path.read_bytes() == b"new"


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    replace_file(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_what_a_crash_left_is_not_written_into(tmp_path: Path) -> None:
    left = tmp_path / "key~"
    left.touch(0o644)
    with left.open("rb") as reader:
        replace_file(tmp_path / "key", b"secret", 0o600)
        assert reader.read() == b""
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path, temporary = tmp_path / "disk", tmp_path / ".disk"

    def second(fd: int) -> None:
        pytest.fail("it is being written")

    def first(fd: int) -> None:
        os.write(fd, b"first")
        with pytest.raises(BlockingIOError):
            replace_by(path, second, 0o644, temporary)

    replace_by(path, first, 0o644, temporary)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_comes_as_another_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has opened the other's file and gets its lock: by then that is the file itself."""
    path, temporary = tmp_path / "disk", tmp_path / ".disk"
    filling, may_end = threading.Event(), threading.Event()
    real = fcntl.flock

    def first(fd: int) -> None:
        os.write(fd, b"first")
        filling.set()
        may_end.wait()

    def second(fd: int) -> None:
        assert path.read_bytes() == b"first"
        os.write(fd, b"second")

    def flock(fd: int, operation: int) -> None:
        if threading.current_thread() is threading.main_thread() and not may_end.is_set():
            may_end.set()
            writer.join()
        real(fd, operation)

    writer = threading.Thread(target=replace_by, args=(path, first, 0o644, temporary))
    writer.start()
    filling.wait()
    monkeypatch.setattr(fcntl, "flock", flock)
    replace_by(path, second, 0o600, temporary)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_taken_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "image"
    replace_file(path, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        replace_file(path, b"second", exclusive=True)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("before", "after"), [(None, 0o700), (0o755, 0o750), (0o1777, 0o1770), (0o500, 0o500)]
)
def test_a_private_directory(tmp_path: Path, before: int | None, after: int) -> None:
    """What an owner shares with a group stays shared; the world is shut out."""
    path = tmp_path / "above" / "private"
    if before is not None:
        path.mkdir(parents=True)
        path.chmod(before)
    private_directory(path)
    assert stat.S_IMODE(path.stat().st_mode) == after
