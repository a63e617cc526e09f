"""The launcher: what a process started by it has, and what it lacks."""

import ctypes
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallstack.machine import spawn
from smallstack.machine.start import process_start_time

NOBODY = 65534
PR_GET_DUMPABLE = 3

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


class Child:
    def __init__(
        self,
        path: Path,
        program: str,
        *,
        fds: list[int] | None = None,
        identity: tuple[int, int, list[int]] | None = (NOBODY, NOBODY, []),
    ) -> None:
        self.output = path / "output"
        self.record = path / "record"
        with self.output.open("ab") as output, self.record.open("wb") as record:
            self.pid, self.pidfd = spawn.spawn(
                b"/bin/sh",
                [b"sh", b"-c", program.encode()],
                [b"COLOUR=green"],
                b"/",
                fds or [],
                output.fileno(),
                record.fileno(),
                identity,
                100,
            )

    def wait(self) -> str:
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        assert ended is not None
        assert ended.si_status == 0, self.output.read_text()
        return self.output.read_text()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="smallstack-test-") as name:
        yield Path(name)


def fields(status: str) -> dict[str, str]:
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in status.split("\n"))
    }


@needs_root
@pytest.mark.root
def test_privileges_are_gone(place: Path) -> None:
    status = fields(Child(place, "cat /proc/self/status").wait())
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert status["Gid"].split() == [str(NOBODY)] * 4
    assert status["Groups"] == ""
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "0" * 16
    }
    assert status["NoNewPrivs"] == "1"
    assert status["SigBlk"] == "0" * 16
    assert status["SigIgn"] == "0" * 16


@needs_root
@pytest.mark.root
def test_groups(place: Path) -> None:
    assert Child(place, "id -G", identity=(1234, 1235, [7, 8])).wait().split() == [
        "1235",
        "7",
        "8",
    ]


def test_own_identity_is_kept_without_capabilities(place: Path) -> None:
    status = fields(Child(place, "cat /proc/self/status", identity=None).wait())
    assert status["Uid"].split()[0] == str(os.getuid())
    assert status["NoNewPrivs"] == "1"
    if os.getuid() != 0:
        assert status["CapEff"] == "0" * 16


def test_descriptors_are_moved_in_place_and_nothing_else_is_inherited(place: Path) -> None:
    ends = [os.pipe() for _ in range(3)]
    for number, (_, write) in enumerate(ends):
        os.set_inheritable(write, True)
        os.write(write, b"pipe %d\n" % number)
    reads = [read for read, _ in ends]
    # Out of order, and onto each other's numbers.
    chosen = [reads[2], reads[0], 1, reads[1]]
    said = Child(
        place, "read a <&3; read b <&4; read c <&6; echo $a, $b, $c; echo to5 >&5; ls /proc/$$/fd",
        fds=chosen,
    ).wait()  # fmt: skip
    lines = said.splitlines()
    assert lines[0] == "pipe 2, pipe 0, pipe 1"
    assert [int(number) for number in lines[1:]][:7] == [0, 1, 2, 3, 4, 5, 6]
    assert set(map(int, lines[1:])) <= {0, 1, 2, 3, 4, 5, 6, 10}, "10 is the shell's own"
    for pair in ends:
        for end in pair:
            os.close(end)


def test_session_directory_environment_and_limits(place: Path) -> None:
    said = Child(
        place, "echo $PPID $$; ps -o sid= -p $$; pwd; env; ulimit -n; ulimit -c; cat <&0"
    ).wait()
    words = said.splitlines()
    assert words[0].split()[0] == str(os.getpid()), "a child of the caller"
    assert words[1].split() == [words[0].split()[1]], "the leader of its own session"
    assert words[2] == "/"
    assert "COLOUR=green" in words
    assert not any(word.startswith("HOME=") for word in words)
    assert words[-2:] == ["100", "0"]


def test_the_record_leads_to_the_process(place: Path) -> None:
    read, write = os.pipe()
    child = Child(place, "read word <&3", fds=[read])
    pid, start_time = child.record.read_text().split()
    assert int(pid) == child.pid
    assert int(start_time) == process_start_time(child.pid)
    os.write(write, b"go\n")
    child.wait()
    os.close(read)
    os.close(write)
    assert process_start_time(child.pid) is None


def test_a_process_that_has_ended_and_is_not_reaped_has_no_start_time(place: Path) -> None:
    child = Child(place, "exit 0")
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert process_start_time(child.pid) is None
    child.wait()


@pytest.mark.parametrize(
    ("path", "directory", "fds", "error", "stage"),
    [
        (b"/nonexistent", b"/", [], FileNotFoundError, 8),
        (b"/etc/passwd", b"/", [], PermissionError, 8),
        (b"/bin/sh", b"/nonexistent", [], FileNotFoundError, 7),
        (b"/bin/sh", b"/", [9999], OSError, 3),
    ],
)
def test_failures_name_their_stage_and_leave_nothing(
    path: bytes, directory: bytes, fds: list[int], error: type[OSError], stage: int
) -> None:
    before = open_descriptors()
    with pytest.raises(error) as raised:
        spawn.spawn(path, [path], [], directory, fds, 1, -1, None, 100)
    assert raised.value.filename == spawn.STAGES[stage]
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_too_many_descriptors() -> None:
    with pytest.raises(OSError, match="too long") as raised:
        spawn.spawn(b"/bin/sh", [b"sh"], [], b"/", [0] * 257, 1, -1, None, 100)
    assert raised.value.filename == spawn.STAGES[0]


def test_arguments_have_to_be_bytes() -> None:
    with pytest.raises(TypeError):
        spawn.spawn(b"/bin/sh", [b"sh", "text"], [], b"/", [], 1, -1, None, 100)  # type: ignore[list-item]


@needs_root
@pytest.mark.root
def test_the_caller_stays_as_it_was(place: Path) -> None:
    prctl = ctypes.CDLL(None).prctl
    before = prctl(PR_GET_DUMPABLE), signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getresuid()
    Child(place, "true").wait()
    assert before == (
        prctl(PR_GET_DUMPABLE),
        signal.pthread_sigmask(signal.SIG_BLOCK, []),
        os.getresuid(),
    )
