"""The life of a daemon's process: loop, signals, limits, watchdog, an orderly end.

::

    run(main) ─► uvloop ─► main(runtime) sets up, runtime.ready() ─► SIGTERM, SIGINT ─► main returns
                                 │ raises                                   │ a second one
                                 └─► one line, exit 1                       └─► exit 130 at once

SIGHUP calls what `Runtime.on_reload` was given (certificates). systemd is told by its notify
socket (sd_notify(3)) when the daemon is ready and when it stops.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from smallstack.daemon.watchdog import LoopWatchdog, Stretch
from smallstack.telemetry.errors import SmallStackError
from smallstack.telemetry.metrics import Metrics

GC_THRESHOLDS: Final = (2_000, 10, 100)
"""New objects between two young passes, those between two middle ones, and those between full ones:
young and middle passes stay below 5 ms, a full one comes after 2 million objects that stayed."""

_log = logging.getLogger("smallstack.daemon")


def calm_collector() -> None:
    """Keep what exists out of the garbage collector; look through the rest in full rarely:

    a pass over all that 10,000 connections consist of holds the loop for 100 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class Runtime:
    """What a daemon's main function gets: metrics, and when to stop."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._stop = asyncio.Event()
        self._reload: list[Callable[[], None]] = []
        self._watch = ExitStack()
        self._stretches = self.metrics.counter(
            "loop_stretches", "Times the event loop was held for over 5 ms of CPU time."
        )
        self._held = self.metrics.counter(
            "loop_stretch_cpu_seconds", "CPU time of those stretches."
        )

    def ready(self) -> None:
        """The daemon serves: tell systemd, and watch the loop, on which others depend now."""
        calm_collector()
        self._watch.enter_context(LoopWatchdog(self.stretched))
        notify("READY=1")

    async def stopped(self) -> None:
        """Returns when the daemon shall end."""
        await self._stop.wait()

    def stop(self) -> None:
        """Ask the daemon to end; a signal does the same."""
        self._stop.set()

    def close(self) -> None:
        """Watch no longer."""
        self._watch.close()

    def on_reload(self, reload: Callable[[], None]) -> None:
        """Call ``reload`` at every SIGHUP."""
        self._reload.append(reload)

    def stretched(self, stretch: Stretch) -> None:
        """Count a stretch the watchdog found."""
        self._stretches.inc()
        self._held.inc(stretch.cpu_ns / 1e9)

    def hang_up(self) -> None:
        """What SIGHUP does."""
        notify("RELOADING=1")
        for reload in self._reload:
            try:
                reload()
            except SmallStackError as error:
                _log.error("%s", error)
        notify("READY=1")


Main = Callable[[Runtime], Awaitable[None]]


def run(main: Main, *, pid_file: Path | None = None) -> int:
    """Run a daemon to its end; the exit status.

    ``main`` sets up, calls `Runtime.ready`, awaits `Runtime.stopped` and tears down. A
    SmallStackError that leaves it is logged as one line, anything else with its traceback.
    """
    import uvloop

    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_supervise(main, pid_file))
        except SmallStackError as error:
            _log.error("%s", error)
            return 1
        except Exception:
            _log.exception("the daemon failed")
            return 1
    return 0


async def _supervise(main: Main, pid_file: Path | None) -> None:
    loop = asyncio.get_running_loop()
    runtime = Runtime()

    def asked(number: int) -> None:
        name = signal.Signals(number).name
        if runtime._stop.is_set():
            _log.warning("%s again: leaving at once", name)
            os._exit(130)
        _log.info("%s: stopping", name)
        notify("STOPPING=1")
        runtime.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    loop.add_signal_handler(signal.SIGHUP, runtime.hang_up)
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n")
    try:
        await main(runtime)
    finally:
        runtime.close()
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)


def notify(state: str) -> None:
    """Tell systemd, if it wants to know; never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:
            _log.warning("cannot notify systemd: %s", error)


def raise_file_limit() -> None:
    """Take all the open files that may be had: a connection each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
