"""A daemon's process from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, logging, sys
from smallstack.daemon.run import run, Runtime
from smallstack.telemetry import log
from smallstack.telemetry.errors import SmallStackError

class BadError(SmallStackError):
    \"\"\"cannot do {what}: try something else\"\"\"

async def main(runtime):
    if sys.argv[1] == "error":
        raise BadError(what="this")
    if sys.argv[1] == "bug":
        raise ValueError("a bug")
    runtime.on_reload(lambda: print("reloaded", flush=True))
    print(type(asyncio.get_running_loop()).__module__, flush=True)
    runtime.ready()
    await runtime.stopped()
    print("stopping", flush=True)
    if sys.argv[1] == "stubborn":
        await asyncio.Event().wait()

log.setup("info")
sys.exit(run(main))
"""


def _start(how: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(number: signal.Signals) -> None:
    with _start("well") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uvloop\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("stopping\n", 0)
    assert f"daemon: {number.name}: stopping" in errors


def test_a_second_signal_ends_it_at_once() -> None:
    with _start("stubborn") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.stdout.readline() == "stopping\n"
        process.terminate()
        assert process.wait(timeout=30) == 130
        process.communicate()


def test_an_error_is_one_line_and_a_bug_a_traceback() -> None:
    with _start("error") as process:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert errors.endswith("ERROR daemon: cannot do this: try something else\n")
        assert errors.count("\n") == 1
    with _start("bug") as process:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "ValueError: a bug" in errors


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        with _start("well", NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert sock.recv(100) == b"READY=1"
            process.terminate()
            assert sock.recv(100) == b"STOPPING=1"
            process.communicate(timeout=30)


CROWD = """
import gc, sys
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.run import run
from smallstack.srpc.client import dial
from smallstack.srpc.server import Server

async def main(runtime):
    listener = Listener(Server(insecure=True))
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    runtime.ready()
    passes = []
    gc.callbacks.append(lambda phase, info: passes.append((phase, info["generation"])))
    crowd = [await dial(listener.addresses[0], None) for _ in range(5000)]
    print(passes.count(("start", 0)) > 0, passes.count(("start", 2)), flush=True)
    for client in crowd:
        client.conn.abort()
    await listener.close()

sys.exit(run(main))
"""


def test_thousands_of_connections_cause_no_full_pass_of_the_garbage_collector() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROWD], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr
