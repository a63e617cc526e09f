"""Running a program on files that may be hostile: qemu-img, e2fsck, resize2fs.

It runs as an unprivileged user without capabilities, under limits, in namespaces of its own:
without a network, and with nothing of the machine's files but the system's programs and libraries,
its own directory, devices and /proc. It has two open files, standard input and output, and dies
with the agent. An unprivileged agent takes a user namespace for it; where there is none to be had
nothing is run.
"""

import asyncio
import errno
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from smallstack.outlast import outlast

STDIN: Final = "/proc/self/fd/0"
STDOUT: Final = "/proc/self/fd/1"
"""By these names the program opens its files again: they have to be its user's meanwhile."""
_COVER: Final = """
mount=$1 own=$2; shift 2
for place in /* /dev/shm; do
    case $place in /usr|/bin|/sbin|/lib|/lib32|/lib64|/libx32|/proc|/dev|"$own") continue ;; esac
    if [ -d "$place" ] && ! [ -L "$place" ]; then
        "$mount" -t tmpfs -o ro,nosuid,nodev,noexec,size=4k,mode=555 none "$place" || exit 71
    fi
done
exec "$@"
"""
"""Lays empty directories over what it is not to see; fails with _NOT_COVERED, see sysexits(3)."""
User = tuple[int, int] | None
"""Uid and gid of the program; None where the agent is unprivileged itself."""
_NOT_COVERED: Final = 71
_ADDRESS_SPACE: Final = 2 << 30
_CPU_SECONDS: Final = 120
_CPU_BYTES: Final = 8 << 20
"""A second of processor time more for each of these bytes of the disk."""
_MAX_SAID: Final = 64 << 10


class Done(NamedTuple):
    """How a program ended: its exit code, or minus the signal; what it said is cut off."""

    status: int
    said: bytes


class MissingProgram(Exception):  # noqa: N818 - its caller knows what to say
    """The name of a program that is not installed."""


async def run_confined(
    program: str,
    arguments: Sequence[str],
    reading: int,
    writing: int | None,
    size: int,
    user: User,
) -> Done:
    """Run it to its end; ``size``: bytes of the largest file it writes.

    ``writing`` None: its standard output goes nowhere. Raises MissingProgram, OSError (EPERM: it
    cannot be confined).
    """
    paths = {}
    for name in (program, "prlimit", "unshare", "setpriv", "sh", "mount"):
        found = shutil.which(name)
        if found is None:
            raise MissingProgram(name)
        paths[name] = found
    command = [
        *(paths["setpriv"], "--pdeathsig=KILL"),  # and again below: another user loses it
        paths["prlimit"],
        *("--core=0", "--nofile=64", "--nproc=512", f"--as={_ADDRESS_SPACE}"),
        *(f"--fsize={size}", f"--cpu={_CPU_SECONDS + size // _CPU_BYTES}"),
    ]
    command += [paths["unshare"], "--net", "--ipc", "--uts", "--mount"]
    if user is None:
        command += ["--user", "--map-root-user"]
    own = "/" + Path(paths[program]).absolute().parts[1]
    command += [paths["sh"], "-c", _COVER, "sh", paths["mount"], own, paths["setpriv"]]
    if user is not None:
        command += [f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups"]
    command += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL"]
    command += [paths[program], *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=reading,
        stdout=writing if writing is not None else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": _PATH, "LANG": "C"},
        cwd="/",
        start_new_session=True,
    )
    try:
        said = b""
        assert process.stderr is not None
        while data := await process.stderr.read(_MAX_SAID):
            said = (said + data)[:_MAX_SAID]
        status = await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await outlast(process.wait())
    if status == _NOT_COVERED or (status and said.startswith(b"unshare: ")):
        text = said.decode(errors="replace").strip().partition("\n")[0]
        raise OSError(errno.EPERM, f"{program} cannot be shut in: {text}")
    return Done(status, said)


_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
