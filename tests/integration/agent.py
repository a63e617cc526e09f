"""The hypervisor with a hook at every step of a create: it dies there, or fills its disk.

Started with one argument, a JSON object: ``flags`` for the settings, ``control``: the path of a
JSON file that says what to do where, read at every point::

    {"where": "inside", "step": "root", "do": "kill" | "fill"}
"""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from smallstack.daemon.run import Runtime, run
from smallstack.hypervisor.daemon import SETTINGS, serve
from smallstack.machine import process
from smallstack.settings import load
from smallstack.telemetry.log import setup

FILLER = "filler"
SLICES = (1 << 20, 4096, 512)


def fill(directory: Path) -> None:
    """Take every byte of the directory's file system."""
    fd = os.open(directory / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in SLICES:
            block = b"\xff" * size
            try:
                while True:
                    os.write(fd, block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(fd)
    finally:
        os.close(fd)


class Hook:
    """Called at every point of every create."""

    def __init__(self, control: Path, state: Path) -> None:
        self._control = control
        self._state = state

    def __call__(self, where: str, step: str) -> None:
        try:
            wanted = json.loads(self._control.read_text())
        except (OSError, ValueError):
            return
        if (wanted["where"], wanted["step"]) != (where, step):
            return
        self._control.unlink()
        if wanted["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        fill(self._state)


def main() -> None:
    """The program."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    setup("debug")
    values = load(SETTINGS, told["flags"])
    process.EXIT_LIMIT = told.get("exit_limit", process.EXIT_LIMIT)
    hook = Hook(Path(told["control"]), Path(told["flags"]["state_dir"]))

    async def work(runtime: Runtime) -> None:
        await serve(values, runtime, hook, told.get("acknowledge_seconds", 15.0))

    sys.exit(run(work))


if __name__ == "__main__":
    main()
