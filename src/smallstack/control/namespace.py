"""A private world for a demo or a benchmark: own PID, mount and network namespace.

Everything started inside dies with it: ``unshare --kill-child`` ends the first process inside when
its parent goes (also on ``kill -9``), the kernel then ends every process of the PID namespace, and
with the last of them the network namespace goes, with its bridges, taps and rules, and the mounts.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smallstack.telemetry.errors import SmallStackError, describe

CLONE_NEWNS = 0x20000  # <sched.h>
# <sys/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
INSIDE = "SMALLSTACK_NAMESPACE"


class NamespaceError(SmallStackError):
    """cannot {what}: {reason}; the demo and the benchmarks need root and namespaces"""


def unshare_command(command: Sequence[str]) -> list[str]:
    """The argument vector that runs ``command`` as the first process of new namespaces."""
    return [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        # In a chroot "/" is no mount point, and unshare's own change of propagation fails there:
        # make_mounts_private.
        "--propagation",
        "unchanged",
        "--",
        *command,
    ]


def inside() -> bool:
    """Whether this process is the first one inside, started by ``unshare_command``."""
    return os.environ.get(INSIDE) == "1" and os.getpid() == 1


def run_in_namespaces(command: Sequence[str], keep_open: Sequence[int] = ()) -> int:
    """Run ``command`` as the first process of new namespaces; its exit status.

    SIGTERM is handed on to it, and SIGINT unless it comes from the terminal, which tells everybody.
    With this process, however it ends, everything inside ends. ``keep_open`` are descriptors that
    it inherits. Raises NamespaceError.
    """
    caught = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def follow_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)

    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    vector = unshare_command(command)
    try:
        process = subprocess.Popen(
            vector,
            env={**os.environ, INSIDE: "1"},
            pass_fds=keep_open,
            preexec_fn=follow_parent,  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        raise NamespaceError(what="run unshare", reason=describe(error)) from None
    while process.poll() is None:
        got = signal.sigwaitinfo(caught)
        sent = got.si_code <= 0  # SI_USER and its like, not SI_KERNEL: sigaction(2)
        if got.si_signo == signal.SIGTERM or (got.si_signo == signal.SIGINT and sent):
            _end_inside(process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end_inside(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for the first process inside; unshare itself minds none."""
    children = first_inside(process.pid)
    if not children:
        process.kill()
    for child in children:
        os.kill(child, signal.SIGTERM)


def first_inside(unshare_pid: int) -> list[int]:
    """The process that ``unshare`` has started, as this PID namespace counts; none if it has not.

    Of the caller's own children only.
    """
    path = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children")
    return [int(word) for word in path.read_text().split()]


def become_init() -> None:
    """Inside: leave a first process behind that only reaps, and go on in a child of it.

    Orphans of the namespace (a QEMU whose agent was restarted) become the first process's children.
    It hands SIGTERM and SIGINT on and ends with the child's status, and with it the namespace.
    """
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        # A terminal's Ctrl-C reaches the child by itself: only SIGTERM is handed on.
        signal.signal(number, lambda got, _: _hand_on(child, got))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _hand_on(child: int, number: int) -> None:
    if number == signal.SIGTERM:
        os.kill(child, number)


def prepare(private: Path | None = None, size_mib: int = 0) -> None:
    """Inside: mounts that reach nobody else, /proc of the new PID namespace, loopback up.

    ``private``, if given, becomes an empty directory in memory of at most ``size_mib`` MiB, which
    vanishes with the namespace. Raises NamespaceError.
    """
    make_mounts_private()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if private:
        private.mkdir(parents=True, exist_ok=True)
        mount("tmpfs", str(private), "tmpfs", MS_NOSUID | MS_NODEV, f"size={size_mib}m,mode=755")
    loopback_up()


def private_mounts_command(command: Sequence[str]) -> list[str]:
    """The argument vector that runs ``command`` where its mounts reach nobody and die with it."""
    own = [sys.executable, "-m", "smallstack.control.namespace"]
    return ["unshare", "--mount", "--propagation", "unchanged", "--", *own, *command]


def make_mounts_private() -> None:
    """In a mount namespace of one's own, also in a chroot: what is mounted from now on stays here.

    The mount that a chroot lies on has no path inside it. Entering the namespace that one is in
    already leads to its true root, from where every mount can be reached. Raises NamespaceError;
    the process must have one thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    root, here = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in ("/", "."))
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        if libc.setns(own, CLONE_NEWNS):
            reason = os.strerror(ctypes.get_errno())
            raise NamespaceError(what="reach the root of the mounts", reason=reason)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
    finally:
        for fd in (root, here, own):
            os.close(fd)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2), for a process in a mount namespace of its own; raises NamespaceError."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None):
        reason = os.strerror(ctypes.get_errno())
        raise NamespaceError(what=f"mount {kind or 'privately'} on {target}", reason=reason)


def loopback_up() -> None:
    """Bring the loopback interface of this network namespace up; raises OSError."""
    # SIOCGIFFLAGS / SIOCSIFFLAGS of <linux/sockios.h> on struct ifreq: pyroute2 would cost 0.3 s.
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, 0x8913, request), 16)[0]
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))


if __name__ == "__main__":
    make_mounts_private()
    os.execvp(sys.argv[1], sys.argv[1:])
