"""Running a program on files that may be hostile: qemu-img, e2fsck, resize2fs.

It runs as an unprivileged user without capabilities and without a network, under limits, and has
two open files: standard input and output. It dies with the agent.
"""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from smallstack.outlast import outlast

STDIN: Final = "/proc/self/fd/0"
STDOUT: Final = "/proc/self/fd/1"
"""By these names the program opens its files again: they have to be its user's meanwhile."""
User = tuple[int, int] | None
"""Uid and gid of the program; None where the agent is unprivileged itself."""
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

    ``writing`` None: its standard output goes nowhere. Raises MissingProgram, OSError.
    """
    paths = {}
    for name in (program, "prlimit", "unshare", "setpriv"):
        found = shutil.which(name)
        if found is None:
            raise MissingProgram(name)
        paths[name] = found
    command = [
        paths["prlimit"],
        *("--core=0", "--nofile=64", "--nproc=512", f"--as={_ADDRESS_SPACE}"),
        *(f"--fsize={size}", f"--cpu={_CPU_SECONDS + size // _CPU_BYTES}"),
    ]
    if user is not None:
        command += [paths["unshare"], "--net", "--ipc", "--uts"]
        command += [paths["setpriv"], f"--reuid={user[0]}", f"--regid={user[1]}"]
        command += ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    else:
        command += [paths["setpriv"]]
    command += ["--no-new-privs", "--pdeathsig=KILL", paths[program], *arguments]
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
    return Done(status, said)


_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
