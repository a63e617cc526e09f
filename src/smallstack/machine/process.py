"""One running machine: launch it, find it again, ask it to stop or reboot, quit it, wait for it.

A Machine belongs to one event loop and ends once (states in `lifecycle`). Whoever owns the VM
awaits `Machine.wait` and acts on the reason; ``ExitReason.REBOOT`` means: launch the same spec
again. Nothing here restarts anything by itself.

QEMU 7.2 can hang at its exit if a monitor's session begins at that very moment (its main loop waits
for a dispatcher that was woken in another context). So nothing is asked of a guest before the
monitor is up. For the rest there are signs of an end: SHUTDOWN, a monitor that hangs up, a tap
that has gone. A QEMU that has shown one, and neither ends nor answers its monitor within
`EXIT_LIMIT`, is killed. Silence alone is no sign: a debugger, or a slow disk, may hold QEMU.

The process is the agent's child but lives in its own session: it outlives the agent, and `find`
takes it up again by its directory, after a restart or a ``kill -9`` at any moment.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from smallstack.machine.agent_port import Reader, Request, Word, request
from smallstack.machine.console import Console, ConsoleLog
from smallstack.machine.errors import (
    DisobedientGuestError,
    MachineError,
    MonitorError,
    MonitorLostError,
    NotRunningError,
    StartError,
    StartTimeoutError,
)
from smallstack.machine.lifecycle import Evidence, ExitReason, exit_reason
from smallstack.machine.monitor import Monitor
from smallstack.machine.spec import MachineSpec
from smallstack.machine.start import (
    CONSOLE,
    Started,
    find_process,
    forget,
    last_words,
    start,
)
from smallstack.telemetry.timeline import Timeline

log = logging.getLogger("smallstack.machine")

START_LIMIT = 30.0
"""Seconds until a monitor that does not answer gets its QEMU killed."""
OBEY_LIMIT = 15.0
"""Seconds a guest has to stop or reboot."""
QUIT_LIMIT = 5.0
"""Seconds QEMU has to quit before it is killed."""
EXIT_LIMIT = 30.0
"""Seconds for QEMU to end once it has said that the guest has (it flushes disks meanwhile)."""
DISPLAY = "display"
"""How the names of descriptors for clients of displays begin; no two have the same."""
DRAIN_LIMIT = 1.0
"""Seconds for the last bytes of the sockets of a process that has ended."""

_displays = itertools.count(1)
_CTRL_ALT_DELETE = {"keys": [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]}


async def launch(
    spec: MachineSpec, timeline: Timeline | None = None, *, start_limit: float = START_LIMIT
) -> "Machine":
    """Start a machine; returns when QEMU's exec has succeeded, the guest running by itself.

    The monitor connects in the background. A QEMU that ends at its start, or whose monitor does
    not answer within ``start_limit`` seconds, ends the machine with ``ExitReason.FAILED`` and
    ``Machine.error`` set; `Machine.started` waits for either.
    Raises SpecError, QemuMissingError, SpawnError.
    """
    timeline = timeline or Timeline()
    with timeline.phase("spawn"):
        started = await _in_thread(spec)
    machine = Machine(spec.name, spec.directory, started, timeline)
    try:
        await machine._begin(start_limit)
    except BaseException:
        machine.kill()
        raise
    return machine


async def find(directory: Path, name: str | None = None) -> "Machine | None":
    """The machine that runs in ``directory``, whoever started it; None if there is none.

    Then nothing of it is left: its pid file and sockets are removed. A machine that is found is
    never killed for the silence of its monitor.
    """
    started = await asyncio.to_thread(find_process, directory)
    if started is None:
        await asyncio.to_thread(forget, directory)
        return None
    machine = Machine(name or directory.name, directory, started, Timeline())
    try:
        await machine._begin(None)
        machine._call_guest()
    except BaseException:
        await machine.release()
        raise
    return machine


async def _in_thread(spec: MachineSpec) -> Started:
    """`start` in the thread pool; cancelled, it is waited for and what it started is killed."""
    task = asyncio.ensure_future(asyncio.to_thread(start, spec))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(MachineError):
            started = await task
            _kill(started.pidfd)
            with suppress(ChildProcessError):
                await asyncio.to_thread(os.waitid, os.P_PIDFD, started.pidfd, os.WEXITED)
            os.close(started.pidfd)
            for sock in started.sockets.values():
                sock.close()
            await asyncio.to_thread(forget, spec.directory)
        raise


class _AgentPort(asyncio.Protocol):
    """The agent's end of ``agent0.sock``."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        for word in self._reader.feed(data):
            self._machine._on_word(word)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, asked: Request) -> bool:
        if self._transport is None:
            return False
        self._transport.write(request(asked))
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Machine:
    """One QEMU process and its guest. Made by `launch` and `find`."""

    def __init__(self, name: str, directory: Path, started: Started, timeline: Timeline) -> None:
        self.name = name
        self.directory = directory
        self.pid = started.pid
        self.machine_type = started.machine_type
        self.cpu_group = started.cpu_group
        """The control group that it has for itself, if any."""
        self.timeline = timeline
        """Phase ``spawn``, then the instants ``monitor`` and ``guest ready``."""
        self.started_ns = started.started_ns
        """time.monotonic_ns just before the process was made."""
        self.error: MachineError | None = None
        """Set when the machine ends with FAILED or DIED: what QEMU said."""
        self._pidfd = started.pidfd
        self._sockets = started.sockets
        self._start_limit = 0.0
        self._seen = Evidence(started.machine_type)
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[ExitReason] = loop.create_future()
        self._monitor = Monitor(name, self._on_event)
        self._monitor_task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._changed: dict[Word | str, asyncio.Event] = {}
        self.listeners: list[Callable[[str, Mapping[str, object]], None]] = []
        """Called with the name and the data of each event that QEMU reports."""
        self._limit: asyncio.TimerHandle | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._guest_is_ready = False
        self._ending: asyncio.Task[None] | None = None
        self.console: Console = Console(ConsoleLog(directory / CONSOLE))
        self._port = _AgentPort(self)

    def __repr__(self) -> str:
        return f"<Machine {self.name} pid {self.pid} {self.reason or 'running'}>"

    @property
    def reason(self) -> ExitReason | None:
        """How the machine ended; None while it runs."""
        over = self._exit.done() and not self._exit.cancelled()
        return self._exit.result() if over else None

    async def started(self) -> None:
        """Wait until the monitor answers; raises `error` if the machine ends before."""
        await self._or_end(self._up)
        if self.error is not None:
            raise self.error

    async def wait(self) -> ExitReason:
        """Wait for the end of the process; any number may wait."""
        return await asyncio.shield(self._exit)

    async def stop(self, timeout: float = OBEY_LIMIT) -> ExitReason:
        """Ask the guest to stop; quit it if it has not after ``timeout`` seconds.

        Cancelled, it leaves a guest that may still stop, and no timer.
        """
        try:
            async with asyncio.timeout(timeout):
                if self.machine_type == "microvm":
                    await self._ask(Request.STOP)
                else:
                    await self._monitor.execute("system_powerdown")
                return await self.wait()
        except TimeoutError:
            log.info("%s: the guest did not stop within %g s: quitting it", self.name, timeout)
        except (MonitorError, MonitorLostError) as error:
            log.info("%s: the guest cannot be asked to stop, quitting it: %s", self.name, error)
        return await self.quit()

    async def reboot(self, timeout: float = OBEY_LIMIT) -> None:
        """Ask the guest to reboot, and wait until it does.

        On q35 the machine goes on in the same process. On microvm it ends, `wait` gives
        ``ExitReason.REBOOT``, and its owner launches it again. Raises DisobedientGuestError after
        ``timeout`` seconds (nothing is quit), NotRunningError if it ends in any other way.
        """
        self._require_running()
        try:
            async with asyncio.timeout(timeout):
                if self.machine_type == "microvm":
                    await self._ask(Request.REBOOT)
                    reason = await self.wait()
                    if reason is not ExitReason.REBOOT:
                        raise NotRunningError(name=self.name, reason=reason.value)
                else:
                    reset = self._event("RESET")
                    await self._monitor.execute("send-key", _CTRL_ALT_DELETE)
                    await self._first_of(reset)
        except TimeoutError:
            raise DisobedientGuestError(name=self.name, asked="reboot", limit=timeout) from None

    async def ping(self, timeout: float = OBEY_LIMIT) -> None:
        """Wait for the guest's init to answer on its port (microvm only).

        Raises DisobedientGuestError after ``timeout`` seconds, NotRunningError.
        """
        self._require_running()
        pong = self._event(Word.PONG)
        try:
            async with asyncio.timeout(timeout):
                await self._ask(Request.PING)
                await self._first_of(pong)
        except TimeoutError:
            raise DisobedientGuestError(name=self.name, asked="answer", limit=timeout) from None

    async def answer(self, text: str) -> dict[str, object]:
        """Ask QEMU's monitor in its own words; see `Monitor.answer`. Raises MonitorLostError."""
        return await self._monitor.answer(text)

    async def open_display(self) -> socket.socket:
        """A new client of the machine's VNC display: a stream of RFB (RFC 6143), the caller's.

        Raises MonitorError where there is no such display, MonitorLostError.
        """
        ours, theirs = socket.socketpair()
        name = f"{DISPLAY}-{next(_displays)}"
        try:
            with theirs:
                await self._monitor.send_descriptor(theirs.fileno(), name)
            await self._monitor.execute(
                "add_client", {"protocol": "vnc", "fdname": name, "skipauth": True}
            )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return ours

    async def quit(self) -> ExitReason:
        """End the process now: by its monitor, else by SIGKILL. No word to the guest."""
        self._seen.quit_asked = True
        try:
            async with asyncio.timeout(QUIT_LIMIT):
                with suppress(MonitorError, MonitorLostError):
                    await self._monitor.execute("quit")
                    return await self.wait()
        except TimeoutError:
            log.warning("%s: QEMU does not quit: killing it", self.name)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL, to this process and no other."""
        if not self._exit.done():
            _kill(self._pidfd)

    def doubt(self) -> None:
        """There is a sign that QEMU is ending: let it end, or answer, or be killed in time."""
        if not self._is_over and self._doubt is None:
            self._doubt = asyncio.create_task(self._wait_for_a_word())

    @property
    def _is_over(self) -> bool:
        return self._exit.done() or self._ending is not None

    async def _wait_for_a_word(self) -> None:
        """Ask the monitor: a hanging QEMU does not answer, one whose monitor is lost cannot."""
        try:
            async with asyncio.timeout(EXIT_LIMIT):
                try:
                    await self._monitor.execute("query-status")
                except MonitorError:
                    pass
                except MonitorLostError:
                    await self.wait()
        except TimeoutError:
            log.warning("%s: QEMU hangs at its end: killing it", self.name)
            self.kill()
        finally:
            self._doubt = None

    async def release(self) -> None:
        """Let go of a machine that shall run on: close every descriptor, end every task.

        Whoever still waits for its end is cancelled.
        """
        if self._exit.done():
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exit.cancel()
        await self._close()

    async def _begin(self, start_limit: float | None) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._on_process_end)
        if start_limit is not None:
            self._start_limit = start_limit
            self._set_limit(start_limit, self._on_start_limit)
        await self._open("serial0", self.console)
        await self._open("agent0", self._port)
        if "monitor" in self._sockets:
            self._monitor_task = asyncio.create_task(self._hold_monitor())
        else:
            self._monitor.lost()

    async def _hold_monitor(self) -> None:
        # Taken not before: a task that is cancelled at once never gets here.
        sock = self._sockets.pop("monitor")
        if await self._monitor.run(sock, self._on_monitor_up):
            self.doubt()

    def _call_guest(self) -> None:
        """Have a guest answer that may not have noticed that its port was closed for a moment:
        then it has no reason to say again that it is ready."""
        if self.machine_type == "microvm":
            self._port.send(Request.PING)

    async def _open(self, role: str, protocol: asyncio.Protocol) -> None:
        sock = self._sockets.pop(role, None)
        if sock is None:
            protocol.connection_lost(None)
        else:
            await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=sock)

    def _require_running(self) -> None:
        if self._exit.done():
            raise NotRunningError(name=self.name, reason=self._exit.result().value)

    async def _ask(self, asked: Request) -> None:
        with suppress(MonitorLostError):
            await self._monitor.up()
        if not self._port.send(asked) and not self._exit.done():
            raise MonitorLostError(name=self.name, detail="the agent's port is closed")

    def _event(self, key: Word | str) -> asyncio.Event:
        """An event that is set at the next ``key``."""
        event = self._changed.setdefault(key, asyncio.Event())
        event.clear()
        return event

    async def _first_of(self, event: asyncio.Event) -> None:
        """Wait for ``event``; raises NotRunningError if the machine ends first."""
        await self._or_end(event)
        if not event.is_set():
            self._require_running()

    async def _or_end(self, event: asyncio.Event) -> None:
        happened = asyncio.ensure_future(event.wait())
        either: set[asyncio.Future[Any]] = {happened, self._exit}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            happened.cancel()

    def _on_word(self, word: Word) -> None:
        if word in {Word.READY, Word.PONG} and not self._guest_is_ready:
            self._guest_is_ready = True
            self.timeline.mark("guest ready")
        if word is not Word.PONG:
            self._seen.word = word
        if word in self._changed:
            self._changed[word].set()

    def _on_event(self, name: str, data: Mapping[str, object]) -> None:
        for listener in self.listeners:
            listener(name, data)
        if name == "SHUTDOWN":
            self._seen.shutdown = str(data.get("reason"))
            self._set_limit(EXIT_LIMIT, self.kill)
        elif name == "RESET" and name in self._changed:
            self._changed[name].set()

    def _on_monitor_up(self) -> None:
        self.timeline.mark("monitor")
        self._seen.monitor_answered = True
        self._up.set()
        self._set_limit(None)

    def _on_start_limit(self) -> None:
        self._seen.start_limit_hit = True
        self.kill()

    def _on_process_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._set_limit(None)
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        self._seen.status = _reap(self._pidfd)
        waiting: list[asyncio.Future[None]] = [self.console.closed, self._port.closed]
        if self._monitor_task is not None:
            waiting.append(self._monitor_task)
        await asyncio.wait(waiting, timeout=DRAIN_LIMIT)
        await self._close()
        reason = exit_reason(self._seen)
        self.error = self._explain(reason)
        await asyncio.to_thread(forget, self.directory)
        log.info("%s: the machine ended: %s", self.name, self.error or reason.value)
        self._exit.set_result(reason)

    def _explain(self, reason: ExitReason) -> MachineError | None:
        said = last_words(self.directory) or "it said nothing"
        if self._seen.start_limit_hit:
            return StartTimeoutError(name=self.name, limit=self._start_limit, detail=said)
        if reason in {ExitReason.FAILED, ExitReason.DIED}:
            return StartError(name=self.name, status=_status_text(self._seen), detail=said)
        return None

    def _set_limit(self, seconds: float | None, then: Callable[[], None] = lambda: None) -> None:
        """One limit at a time; None takes it away."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if seconds is not None:
            self._limit = asyncio.get_running_loop().call_later(seconds, then)

    async def _close(self) -> None:
        self._set_limit(None)
        tasks = {task for task in (self._monitor_task, self._doubt) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._doubt = None
        self._monitor.lost()
        self.console.close()
        self._port.close()
        await asyncio.wait({self.console.closed, self._port.closed})
        for sock in self._sockets.values():
            sock.close()
        os.close(self._pidfd)


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _reap(pidfd: int) -> int | None:
    """The exit code, or minus the signal; None if an earlier agent was the parent."""
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _status_text(seen: Evidence) -> str:
    if seen.status is None:
        return "status unknown"
    if seen.status < 0:
        return f"by signal {signal.Signals(-seen.status).name}"
    return f"status {seen.status}"
