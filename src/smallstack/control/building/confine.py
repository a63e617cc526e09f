"""Runs actions inside namespaces of their own and follows what they tell.

The process inside (`inside`) has the read end of a pipe whose only write end is here: however this
process ends, the one inside ends too, the kernel then ends everything in its PID namespace, and
the mounts go with their namespace.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from smallstack.control.building.actions import HEADING, Action, Request, Told
from smallstack.outlast import outlast
from smallstack.telemetry.errors import SmallStackError, describe

MAX_LOG: Final = 64 << 20
TAIL_LINES: Final = 4
_CHUNK: Final = 1 << 16
_MAX_TOLD: Final = 1 << 20


class BuildError(SmallStackError):
    """the build failed: {step} {detail}"""


class BuildLog:
    """What the build's commands print: in a file of at most 64 MiB, and perhaps on a terminal."""

    def __init__(self, path: Path, echo: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._file = path.open("wb")
        self._echo = echo
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = b""
        self.error: OSError | None = None
        """Why output is missing: a full disk, a terminal that went away."""

    def write(self, data: bytes) -> None:
        """More output. What goes beyond the limit is not kept; see ``error``."""
        try:
            room = MAX_LOG - self._file.tell()
            self._file.write(data[: max(room, 0)])
            self._split(data)
        except OSError as error:  # whoever writes must be read to the end all the same
            self.error = self.error or error

    def _split(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_CHUNK:]
        for line in lines:
            text = line.decode(errors="replace").strip()
            if text.startswith(HEADING):
                self._tail.clear()
            elif text:
                self._tail.append(text[:500])
            if self._echo is not None:
                self._echo(line.decode(errors="replace"))

    def tail(self) -> str:
        """The last lines of the present action, in one."""
        return " / ".join(self._tail)

    def flush(self) -> None:
        """What was written is in the file."""
        self._file.flush()

    def close(self) -> None:
        """Write everything out."""
        self._file.close()


class Confinement:
    """Where a build's actions run: the image's tree, what it may see, its environment."""

    def __init__(self, work: Path, log: BuildLog, begin: Callable[[str], None]) -> None:
        """``work`` is the build's own directory; ``begin`` is called with every action's title."""
        self._work = work
        self._log = log
        self._begin = begin

    async def run(
        self,
        actions: Sequence[Action],
        environment: dict[str, str],
        *,
        root: Path | None = None,
        manifest: Path | None = None,
        debs: Path | None = None,
        network: bool = False,
        epoch: int = 0,
    ) -> None:
        """Do the actions in new namespaces, in the image if ``root`` is given.

        Raises BuildError that names the first one that failed, with the end of its output.
        """
        told, telling = os.pipe2(os.O_CLOEXEC)
        request = Request(
            actions=list(actions),
            environment=environment,
            status_fd=telling,
            root=str(root or ""),
            manifest=str(manifest.absolute()) if manifest else "",
            debs=str(debs or ""),
            network=network,
            epoch=epoch,
        )
        path = self._work / "request"
        path.write_bytes(msgspec.json.encode(request))
        command = ["unshare", "--mount", "--propagation", "unchanged", "--uts", "--ipc", "--pid"]
        command += ["--fork", "--kill-child", *([] if network else ["--net"]), "--", sys.executable]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "-m",
                "smallstack.control.building.inside",
                str(path),
                stdin=asyncio.subprocess.PIPE,  # the lifeline
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[telling],
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except OSError as error:
            os.close(told)
            raise BuildError(step="unshare", detail=f"cannot run: {describe(error)}") from error
        finally:
            os.close(telling)
        with open(told, "rb", buffering=0) as status:  # noqa: ASYNC230, PTH123 - a pipe
            try:
                failed = await self._follow(process, status.fileno())
            finally:
                assert process.stdin is not None
                process.stdin.close()
                await outlast(process.wait())
        if failed is not None:
            tail = self._log.tail()
            detail = failed.detail + (f": {tail}" if tail else "")
            raise BuildError(step=failed.title, detail=detail)
        if self._log.error is not None:
            raise BuildError(step="the log", detail=f"is cut: {describe(self._log.error)}")
        if process.returncode:
            detail = f"ended with status {process.returncode}: {self._log.tail()}"
            raise BuildError(step="namespaces", detail=detail)

    async def _follow(self, process: asyncio.subprocess.Process, status: int) -> Told | None:
        """Read output and status to their ends; the action that failed."""
        assert process.stdout is not None
        reader = asyncio.StreamReader(limit=_MAX_TOLD)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(os.dup(status), "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        copying = asyncio.create_task(self._copy(process.stdout))
        failed = None
        try:
            while line := await reader.readline():
                told = msgspec.json.decode(line, type=Told)
                if told.event == "begin":
                    self._begin(told.title)
                elif told.event == "failed":
                    failed = told
            await copying
        finally:
            transport.close()
            copying.cancel()
            await asyncio.wait([copying])
        return failed

    async def _copy(self, output: asyncio.StreamReader) -> None:
        while data := await output.read(_CHUNK):
            self._log.write(data)
