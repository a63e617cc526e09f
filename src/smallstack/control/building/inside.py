"""The first process of a build's namespaces: makes the little world, then acts in it.

Run as ``unshare … python -m smallstack.control.building.inside REQUEST``. Standard input is the
lifeline: when its other end closes, because the tool has ended in whatever way, this process ends,
and with it everything in its PID namespace. Mounts end with the namespace. Once the image is the
root nothing can be imported any more.
"""

import ctypes
import os
import selectors
import shutil
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from smallstack.control import namespace
from smallstack.control.building.actions import (
    DEBS,
    HEADING,
    MANIFEST,
    PLACE,
    PLAIN,
    Lay,
    Normalise,
    Request,
    Run,
    Told,
)
from smallstack.images.filter import PathFilter
from smallstack.images.normalise import normalise
from smallstack.telemetry.errors import SmallStackError, describe

HOST_NAME: Final = "image-build"
_MNT_DETACH: Final = 2  # <sys/mount.h>
_PROTECTED: Final = namespace.MS_NOSUID | namespace.MS_NOEXEC
_REMOUNTED: Final = namespace.MS_BIND | namespace.MS_REMOUNT | namespace.MS_RDONLY
_DEVICES: Final = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
"""Names and numbers of Documentation/admin-guide/devices.txt."""
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "fd/0",
    "stdout": "fd/1",
    "stderr": "fd/2",
    "ptmx": "pts/ptmx",
}
_PR_CAPBSET_DROP: Final = 24  # <linux/prctl.h>
_KEPT: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 18, 27, 31})
"""CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SYS_CHROOT, MKNOD, SETFCAP of
<linux/capability.h>: what packages and scripts need. Not DAC_READ_SEARCH, by which a file of the
machine is opened without a path; a node opens nothing, since no place to make one opens any."""
_CAPABILITIES: Final = 64
_MACHINES: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs")
"""What in /proc is the machine's own."""
NO_SERVICES: Final = b"#!/bin/sh\nexit 101\n"
"""policy-rc.d: invoke-rc.d takes 101 for "not allowed" (its specification, /usr/share/doc)."""


class InsideError(SmallStackError):
    """{detail}"""


class World:
    """The namespaces' inside: mounts made, commands run, all of it told on the status pipe."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._made: list[Path] = []
        self._outputs = {
            action.output: os.open(
                action.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            for action in request.actions
            if isinstance(action, Run) and action.output
        }
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ, "lifeline")
        wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(wake, selectors.EVENT_READ, "child")
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def enter(self) -> None:
        """Make the mounts, and the image the root if there is one."""
        socket.sethostname(HOST_NAME)
        namespace.make_mounts_private()
        if not self.request.network:
            namespace.loopback_up()
        if not self.request.root:
            namespace.mount("proc", "/proc", "proc", _PROTECTED | namespace.MS_NODEV)
            return
        resolver = b""
        if self.request.network:
            with suppress(FileNotFoundError):
                resolver = Path("/etc/resolv.conf").read_bytes()
        self._mount_all(self.request.root)
        _make_root(self.request.root)
        self._cover(Path("/usr/sbin/policy-rc.d"), NO_SERVICES)
        if self.request.network:
            self._cover(Path("/etc/resolv.conf"), resolver)

    def _mount_all(self, root: str) -> None:
        for name in ("proc", "sys", "dev", "tmp", "run"):
            point = Path(root, name)
            if not os.path.lexists(point):
                point.mkdir()  # no machine starts without it
                point.chmod(0o1777 if name == "tmp" else 0o755)
            elif point.is_symlink() or not point.is_dir():
                raise InsideError(detail=f"/{name} of the image is no directory")
        bind, only_root = namespace.MS_BIND, _PROTECTED | namespace.MS_NODEV
        namespace.mount(root, root, None, bind)
        # A device node in the image opens no device of the machine.
        plain = bind | namespace.MS_REMOUNT | namespace.MS_NODEV
        namespace.mount(None, root, None, plain)
        flags = namespace.MS_NOSUID | namespace.MS_NODEV
        namespace.mount("tmpfs", f"{root}/run", "tmpfs", flags, "mode=755")
        for place in (MANIFEST, DEBS, PLAIN):
            Path(root + place).mkdir(parents=True)
        namespace.mount(root, root + PLAIN, None, bind)
        for source, place in ((self.request.manifest, MANIFEST), (self.request.debs, DEBS)):
            if source:
                namespace.mount(source, root + place, None, bind)
                read_only = bind | namespace.MS_REMOUNT | namespace.MS_RDONLY
                namespace.mount(None, root + place, None, read_only)
        namespace.mount("proc", f"{root}/proc", "proc", only_root)
        for name in _MACHINES:
            if Path(f"{root}/proc/{name}").exists():
                _make_read_only(f"{root}/proc/{name}", only_root)
        namespace.mount("sysfs", f"{root}/sys", "sysfs", only_root | namespace.MS_RDONLY)
        namespace.mount("tmpfs", f"{root}/tmp", "tmpfs", flags, "mode=1777")
        namespace.mount("tmpfs", f"{root}/dev", "tmpfs", _PROTECTED, "mode=755,size=64k")
        for name, major, minor in _DEVICES:
            device = f"{root}/dev/{name}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
            Path(device).chmod(0o666)
        for name, target in _LINKS.items():
            Path(f"{root}/dev/{name}").symlink_to(target)
        for name in ("pts", "shm"):
            Path(f"{root}/dev/{name}").mkdir()
        options = "newinstance,ptmxmode=0666,mode=620,gid=5"
        namespace.mount("devpts", f"{root}/dev/pts", "devpts", _PROTECTED, options)
        namespace.mount("tmpfs", f"{root}/dev/shm", "tmpfs", only_root, "mode=1777")
        # Devices can be opened here: nobody is to make another one.
        namespace.mount(None, f"{root}/dev", None, _REMOUNTED | _PROTECTED)

    def _cover(self, path: Path, content: bytes) -> None:
        """Show another content at ``path`` for the time of the build."""
        if not path.parent.is_dir():
            return
        if not path.exists():
            with suppress(FileExistsError):  # a link to nowhere
                path.touch(mode=0o644, exist_ok=False)
                self._made.append(path)
        if path.is_file():
            cover = Path(PLACE, path.name)
            cover.write_bytes(content)
            cover.chmod(0o755)
            namespace.mount(str(cover), str(path.resolve()), None, namespace.MS_BIND)

    def leave(self) -> None:
        """Remove the files that were made to be covered."""
        libc = ctypes.CDLL(None)
        while self._made:
            path = self._made.pop()
            libc.umount2(os.fsencode(path), _MNT_DETACH)
            path.unlink()

    def act(self) -> bool:
        """Do every action; whether all went well."""
        for action in self.request.actions:
            title = action.title if isinstance(action, Run) else _title(action)
            self._tell(Told(title=title, event="begin"))
            detail = ""
            try:
                if isinstance(action, Run):
                    detail = self._run(action)
                elif isinstance(action, Lay):
                    lay(action, self.request.epoch)
                else:
                    self.leave()
                    _remove_filtered(Path(PLAIN), action.filter_lines)
                    keep = frozenset(action.keep)
                    normalise(self.request.epoch, action.started_ns, keep, Path(PLAIN))
            except (OSError, SmallStackError) as error:
                detail = describe(error)
            event: Literal["failed", "end"] = "failed" if detail else "end"
            self._tell(Told(title=title, event=event, detail=detail))
            if detail:
                return False
        return True

    def _tell(self, told: Told) -> None:
        if told.event == "begin":
            os.write(1, f"{HEADING}{told.title}\n".encode())
        os.write(self.request.status_fd, msgspec.json.encode(told) + b"\n")

    def _run(self, action: Run) -> str:
        """Run a command to its end, and end what it has left running; what went wrong, or ""."""
        child = os.fork()
        if child == 0:
            _become(action, self.request, self._outputs.get(action.output))
        until = time.monotonic() + action.limit
        status = self._wait(child, until)
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # everything in the namespace but this process
        with suppress(ChildProcessError):
            while True:
                os.wait()
        if status is None:
            return f"took longer than {action.limit} s"
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return f"was ended by signal {-code}"
        return f"ended with status {code}" if code else ""

    def _wait(self, child: int, until: float) -> int | None:
        """The status of ``child``, None when the time is over; reaps all others that end."""
        while True:
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    return status
                if pid == 0:
                    break
            left = until - time.monotonic()
            if left <= 0:
                return None
            for key, _ in self._selector.select(left):
                if key.data == "lifeline":
                    os._exit(1)


def _title(action: Lay | Normalise) -> str:
    return action.directory if isinstance(action, Lay) else "normalise"


def _make_root(root: str) -> None:
    """The mount at ``root`` becomes the root of this namespace, and all else goes.

    A chroot lies somewhere in its mount; entering the own namespace again leads to the true root,
    which alone can be exchanged: pivot_root(2), "pivot_root(".", ".")".
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if (
        libc.setns(own, namespace.CLONE_NEWNS)
        or libc.fchdir(new)
        or libc.pivot_root(b".", b".")
        or libc.umount2(b".", _MNT_DETACH)
        or libc.chdir(b"/")
    ):
        reason = os.strerror(ctypes.get_errno())
        raise namespace.NamespaceError(what="make the image the root", reason=reason)
    os.close(new)
    os.close(own)


def _make_read_only(path: str, flags: int) -> None:
    """A place of a mount, as ``flags`` say, that nobody may write to."""
    namespace.mount(path, path, None, namespace.MS_BIND)
    namespace.mount(None, path, None, _REMOUNTED | flags)


def _become(action: Run, request: Request, output: int | None) -> None:
    """In a child: the command, in a session of its own, with nothing to read.

    With the image as root it gets no more of the machine, not by mounting either.
    """
    command = action.command
    try:
        if request.root:
            libc = ctypes.CDLL(None)
            for capability in range(_CAPABILITIES):
                if capability not in _KEPT:
                    libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if output is not None:
            os.dup2(output, 1)
        os.umask(0o022)
        os.chdir("/")
        os.execvpe(command[0], command, request.environment)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def lay(action: Lay, epoch: int) -> None:
    """Copy a directory of the manifest into the tree, as old as ``epoch`` (s).

    Everything is root's, with the modes it has in the manifest; nobody else may write, so that
    umasks of 022 and 002 give the same. Directories that are there stay as they are.
    """
    top = Path(MANIFEST, action.directory)
    Path(action.under).mkdir(exist_ok=True)
    for where, directories, files in os.walk(top):
        directories.sort()
        for name in sorted((*directories, *files)):
            source = Path(where, name)
            target = Path(action.under, source.relative_to(top))
            _lay_one(source, target, action, epoch)


def _lay_one(source: Path, target: Path, action: Lay, epoch: int) -> None:
    found = source.lstat()
    uid, gid, mode = action.owners.get(str(target), (0, 0, ""))
    bits = int(mode, 8) if mode else found.st_mode & 0o7755
    if stat.S_ISDIR(found.st_mode):
        if target.is_dir():
            if str(target) not in action.owners:
                return
        else:
            target.mkdir()
    elif action.append and target.exists():
        with target.open("ab") as end, source.open("rb") as more:
            shutil.copyfileobj(more, end)
        return
    else:
        if target.is_dir() and not target.is_symlink():
            raise InsideError(detail=f"{target} is a directory in the image")
        target.unlink(missing_ok=True)
        if stat.S_ISLNK(found.st_mode):
            target.symlink_to(source.readlink())
        else:
            shutil.copyfile(source, target)
    os.chown(target, uid, gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        target.chmod(bits)
    if not stat.S_ISDIR(found.st_mode):
        os.utime(target, (epoch, epoch), follow_symlinks=False)


def _remove_filtered(top: Path, lines: list[str]) -> None:
    path_filter = PathFilter(lines)
    for where, directories, files in os.walk(top):
        for name in (*files, *directories):  # a copy: what is removed is not gone into
            path = Path(where, name)
            if path_filter.matches(os.fsencode("/" / path.relative_to(top))):
                if name in directories and not path.is_symlink():
                    shutil.rmtree(path)
                    directories.remove(name)
                else:
                    path.unlink()


def main() -> None:
    """The program."""
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
    os.set_inheritable(request.status_fd, False)
    done = False
    try:
        world = World(request)
        world.enter()
        done = world.act()
        world.leave()
    except (OSError, SmallStackError) as error:
        told = Told(title="namespaces", event="failed", detail=describe(error))
        os.write(request.status_fd, msgspec.json.encode(told) + b"\n")
    os._exit(0 if done else 1)


if __name__ == "__main__":
    main()
