"""Starting QEMU: open what it needs, spawn it, remember how to find it. Blocking; no event loop.

Everything QEMU uses is opened here and inherited, so its user needs access to nothing. The three
sockets listen and have the agent's connection waiting before QEMU exists: there is nothing to
poll for, and the first byte of the guest is not lost.

In the machine's directory (names of upstream where it has them)::

    machine.json     what `find` has to know: machine type, boot id of the host, control group
    pidfile          "<pid> <start time>\\n", written by the new process itself before its exec
    monitor.sock  serial0.sock  agent0.sock
    console/         the console's log           console.old/   the boot before
    qemu.log         QEMU's stdout and stderr    qemu.log.old
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from smallstack.machine import command, spawn
from smallstack.machine.cgroup import remove_group
from smallstack.machine.console import rotate_log
from smallstack.machine.errors import QemuMissingError, SpawnError, SpecError
from smallstack.machine.spec import MachineSpec, MachineType
from smallstack.telemetry.errors import describe

_log = logging.getLogger("smallstack.machine")
RECORD = "machine.json"
PIDFILE = "pidfile"
QEMU_LOG = "qemu.log"
CONSOLE = "console"
OPEN_FILES = 4096

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KVM = Path("/dev/kvm")
_ENVIRONMENT = [b"PATH=/usr/sbin:/usr/bin:/sbin:/bin", b"LANG=C"]
_WORLD_READ = 0o004
_WORLD_READ_WRITE = 0o006

# Two spawns at once could leave this process non-dumpable (csrc/spawn.c); each takes a millisecond.
_one_at_a_time = threading.Lock()


class Started(NamedTuple):
    """A QEMU process and the agent's ends of its sockets; all descriptors are the caller's."""

    machine_type: MachineType
    pid: int
    pidfd: int
    sockets: dict[str, socket.socket]
    started_ns: int
    """time.monotonic_ns just before the process was made."""
    cpu_group: Path | None = None
    """Its control group, where it has one of its own."""


def start(spec: MachineSpec) -> Started:
    """Spawn QEMU for ``spec``; returns as soon as its exec has succeeded.

    Raises SpecError, QemuMissingError, SpawnError; then nothing is left running or open.
    """
    fds = command.descriptors(spec)
    arguments = command.command_line(spec, fds)
    program = shutil.which(spec.qemu)
    if program is None:
        raise QemuMissingError(name=spec.name, program=spec.qemu)
    if spec.uid is None and os.geteuid() == 0:
        raise SpecError(name=spec.name, detail="QEMU may not run as root: give a uid and gid")
    sockets: dict[str, socket.socket] = {}
    cpu_group = None
    with ExitStack() as ours, ExitStack() as theirs:
        try:
            directory = os.open(spec.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            theirs.callback(os.close, directory)
            inherited = []
            for role in fds:
                if role in _SOCKETS:
                    listener = theirs.enter_context(_listen(directory, _SOCKETS[role]))
                    sockets[role] = ours.enter_context(connect(directory, _SOCKETS[role]))
                    inherited.append(listener.fileno())
                else:
                    inherited.append(_open(spec, role, theirs))
            rotate_log(spec.directory / CONSOLE)
            log = _open_log(spec.directory)
            theirs.callback(os.close, log)
            record = os.open(
                spec.directory / PIDFILE,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
                0o644,
            )
            theirs.callback(os.close, record)
            _write_record(spec)
        except OSError as error:
            raise SpawnError(
                name=spec.name,
                program=program,
                stage="what it needs could not be opened",
                detail=describe(error),
            ) from error
        group = _open_group(spec, theirs)
        started_ns = time.monotonic_ns()

        def run() -> tuple[int, int]:
            with _one_at_a_time:
                return spawn.spawn(
                    os.fsencode(program),
                    [os.fsencode(argument) for argument in arguments],
                    _ENVIRONMENT,
                    b"/",
                    inherited,
                    log,
                    record,
                    _identity(spec),
                    OPEN_FILES,
                    group,
                )

        try:
            try:
                pid, pidfd = run()
            except OSError as error:
                if error.filename != spawn.GROUP_STAGE:
                    raise
                _warn_of_group(spec, error)
                group = None
                pid, pidfd = run()
        except OSError as error:
            forget(spec.directory)
            raise SpawnError(
                name=spec.name, program=program, stage=error.filename, detail=error.strerror
            ) from error
        ours.pop_all()
        if group is not None and spec.cpu is not None:
            cpu_group = spec.cpu.path
        return Started(spec.machine_type, pid, pidfd, sockets, started_ns, cpu_group)


def find_process(directory: Path) -> Started | None:
    """The machine that a `start` of this or an earlier agent left running, connected again.

    A pid that belongs to another process by now is never taken: its start time tells.
    """
    try:
        record = json.loads((directory / RECORD).read_text())
        pid_text, start_text = (directory / PIDFILE).read_text().split()
        pid, start_time = int(pid_text), int(start_text)
    except (OSError, ValueError):
        return None
    match record:
        case {"boot_id": boot_id, "machine_type": ("microvm" | "q35") as machine_type}:
            if boot_id != _BOOT_ID.read_text().strip():
                return None
        case _:
            return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    sockets: dict[str, socket.socket] = {}
    with ExitStack() as ours:
        ours.callback(os.close, pidfd)
        # Opened first, compared then: what the descriptor names can no longer change.
        if process_start_time(pid) != start_time:
            return None
        try:
            folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        with ExitStack() as theirs:
            theirs.callback(os.close, folder)
            for role, name in _SOCKETS.items():
                with suppress(OSError):
                    sockets[role] = ours.enter_context(connect(folder, name))
        ours.pop_all()
        ns = time.monotonic_ns()
        group = _recorded_group(record)
        if group is not None and not group.is_dir():
            group = None  # it started without: see `start`
        return Started(machine_type, pid, pidfd, sockets, ns, group)


def process_start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process (field 22 of proc(5)'s stat).

    None if there is none, or if it has ended and only waits to be reaped.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def forget(directory: Path) -> None:
    """Remove what leads to a process that has ended, its control group first. Blocks."""
    with suppress(OSError, ValueError):
        group = _recorded_group(json.loads((directory / RECORD).read_text()))
        if group is not None:
            remove_group(group)
    for name in (PIDFILE, RECORD, *_SOCKETS.values()):
        (directory / name).unlink(missing_ok=True)


def last_words(directory: Path, lines: int = 3) -> str:
    """The last lines that QEMU wrote on stderr, as one; empty if it wrote none."""
    try:
        with (directory / QEMU_LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    said = [line.strip() for line in text.splitlines()]
    return " | ".join([line for line in said if line and ": info: " not in line][-lines:])


_SOCKETS = {"monitor": "monitor.sock", "serial0": "serial0.sock", "agent0": "agent0.sock"}


def _recorded_group(record: object) -> Path | None:
    match record:
        case {"cpu_group": str(path)}:
            return Path(path)
    return None


def _open_group(spec: MachineSpec, theirs: ExitStack) -> tuple[int, bytes | None] | None:
    """The control group to start in. A machine without one is better than none at all."""
    if spec.cpu is None:
        return None
    try:
        fd = spec.cpu.open()
    except OSError as error:
        _warn_of_group(spec, error)
        return None
    theirs.callback(os.close, fd)
    return fd, spec.cpu.entrance


def _warn_of_group(spec: MachineSpec, error: OSError) -> None:
    assert spec.cpu is not None
    _log.warning(
        "%s: starts without its share of the processors: %s: %s",
        spec.name,
        spec.cpu.path,
        error.strerror,
    )


def _listen(directory: int, name: str) -> socket.socket:
    # Through the descriptor: the path itself may be longer than the 107 bytes of a socket's name.
    path = f"/proc/self/fd/{directory}/{name}"
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def connect(directory: int, name: str) -> socket.socket:
    """The agent's end of a socket in ``directory`` (a descriptor), non-blocking. Raises OSError."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        end.setblocking(False)
        end.connect(f"/proc/self/fd/{directory}/{name}")
    except OSError:
        end.close()
        raise
    return end


def _open(spec: MachineSpec, role: str, theirs: ExitStack) -> int:
    """A descriptor for ``role``; opened ones are closed with ``theirs``, taps stay as they are."""
    kind, _, rest = role.partition(".")
    name, number = kind.rstrip("0123456789"), kind[len(kind.rstrip("0123456789")) :]
    if name == "net":
        return spec.nics[int(number)].tap_fds[int(rest)]
    if name == "vhost":
        return spec.nics[int(number)].vhost_fds[int(rest)]
    if name == "disk":
        disk = spec.disks[int(number)]
        if rest == "backing":
            assert disk.backing is not None
            fd = os.open(disk.backing, os.O_RDONLY | os.O_CLOEXEC)
        else:
            fd = os.open(disk.path, (os.O_RDONLY if disk.read_only else os.O_RDWR) | os.O_CLOEXEC)
    else:
        path: Path = getattr(spec, role)
        mode = os.O_RDWR if role == "firmware_vars" else os.O_RDONLY
        fd = os.open(path, mode | os.O_CLOEXEC)
        if role in {"kernel", "initrd"} and not os.fstat(fd).st_mode & _WORLD_READ:
            theirs.callback(os.close, fd)
            fd = _copy(fd, role)
    theirs.callback(os.close, fd)
    return fd


def _copy(source: int, name: str) -> int:
    """An anonymous copy that anybody may open.

    QEMU opens kernel and initrd again, by /proc/self/fd, and then the file's mode counts.
    """
    copy = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.fchmod(copy, 0o444)
        while os.sendfile(copy, source, None, 1 << 30):
            pass
    except OSError:
        os.close(copy)
        raise
    return copy


def _open_log(directory: Path) -> int:
    path = directory / QEMU_LOG
    with suppress(FileNotFoundError):
        path.replace(directory / (QEMU_LOG + ".old"))
    return _create(path)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _write_record(spec: MachineSpec) -> None:
    # Not fsynced: it tells of a process, which does not survive what would lose it.
    record = {
        "name": spec.name,
        "machine_type": spec.machine_type,
        "boot_id": _BOOT_ID.read_text().strip(),
        "accelerator": spec.verdict.accelerator,
        "cpu_group": None if spec.cpu is None else str(spec.cpu.path),
    }
    new = spec.directory / (RECORD + "~")
    new.write_text(json.dumps(record, indent=2) + "\n")
    new.replace(spec.directory / RECORD)


def _identity(spec: MachineSpec) -> tuple[int, int, list[int]] | None:
    if spec.uid is None or spec.gid is None:
        return None
    groups = []
    if spec.verdict.accelerator == "kvm":
        # QEMU opens the device itself; its group, "kvm" on Debian, is what lets it.
        with suppress(OSError):
            status = _KVM.stat()
            if status.st_mode & _WORLD_READ_WRITE != _WORLD_READ_WRITE and status.st_gid != 0:
                groups.append(status.st_gid)
    return spec.uid, spec.gid, groups
