"""The demo as a person runs it, its end by every way, and the commands it says to try."""

import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from smallstack.cli import demo
from smallstack.settings import cache_directory

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.xdist_group("demo")]
DEMO = [sys.executable, "-m", "smallstack.cli.smallstack"]


@pytest.fixture
def environment(tmp_path: Path, appliance: Path) -> dict[str, str]:
    """A cache of its own, so that a demo that somebody keeps on this machine is left alone."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in cache_directory().iterdir():
        if entry.name != "demo":
            (cache / entry.name).symlink_to(entry)
    named = {"SMALLSTACK_CACHE": str(cache), "SMALLSTACK_APPLIANCE": str(appliance.parent)}
    return {**os.environ, **named}


def members(pid: int) -> list[int]:
    """The processes below ``pid``, itself included, whichever thread has started them."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += [int(word) for word in task.read_text().split()]
    return found


def wait_all_gone(pidfds: list[int]) -> None:
    """Return when every process has ended; an end that does not come fails by the time limit."""
    for pidfd in pidfds:
        select.select([pidfd], [], [])
        os.close(pidfd)


def test_the_whole_demo(environment: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "new" / "demo.png"
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho my-program-runs\nexit 3\n")
    links = sorted(os.listdir("/sys/class/net"))  # noqa: PTH208
    done = subprocess.run(
        [*DEMO, "demo", "--picture", str(picture), "--run", str(program), "--count", "2"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "creating VM on localhost:6976",
        "getting image",
        "unpacking image: appliance",
        "starting VM 198.51.100.",
        "Received DHCP ACK",
        "Port 80 is open",
        "1 more VMs in",
    ):
        assert line in done.stderr
    assert re.search(r"^198\.51\.100\.\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^real \d+m\d+\.\d{3}s$", done.stdout, re.MULTILINE)
    assert re.search(r"whole process +\d\.\d{3} s +1\.216 s", done.stdout)
    assert "console | smallstack: ready ip=198.51.100." in done.stdout
    assert '"Hostname": "demo"' in done.stdout
    # The console's shell starts beside the program: its prompt may come first.
    assert re.search(r"^  program \| .*my-program-runs$", done.stdout, re.MULTILINE)
    assert "smallstack: /run/user-data ended with status 3" in done.stdout
    assert "<h1>It runs.</h1>" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir("/sys/class/net")) == links  # noqa: PTH208


def test_a_program_that_cannot_run(environment: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    wrong = ((Path(sys.executable), "link it with -static"), (text, "neither a static"))
    for program, told in wrong:
        done = subprocess.run(
            [*DEMO, "demo", "--run", program],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert told in done.stderr
    assert demo.unfit(Path("/bin/busybox")) == ""


@pytest.mark.parametrize(
    ("number", "options", "moment"),
    [
        (signal.SIGINT, [], "starting VM"),
        (signal.SIGTERM, [], "starting VM"),
        (signal.SIGKILL, [], "starting VM"),
        # About when it is noted for `down`.
        (signal.SIGKILL, ["--keep"], "Port 80 is open"),
    ],
)
def test_nothing_outlives_it(
    environment: dict[str, str], number: signal.Signals, options: list[str], moment: str
) -> None:
    demo = subprocess.Popen(
        [*DEMO, "demo", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stderr
    for line in demo.stderr:
        if moment in line:
            break
    below = members(demo.pid)
    pidfds = [os.pidfd_open(pid) for pid in below[1:]]
    assert len(pidfds) >= 4  # the reaper, the demo, its two daemons
    if number is signal.SIGINT:
        os.killpg(demo.pid, number)  # a terminal's Ctrl-C goes to the whole group
    else:
        demo.send_signal(number)
    status = demo.wait()
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    if options:  # it has ended too, or it is found
        subprocess.run([*DEMO, "down"], env=environment, check=True)
    wait_all_gone(pidfds)
    demo.stderr.close()


def test_one_at_a_time(environment: dict[str, str]) -> None:
    with subprocess.Popen([*DEMO, "demo"], env=environment, stderr=subprocess.PIPE) as demo:
        assert demo.stderr
        demo.stderr.readline()
        for options in ([], ["--keep"]):
            command = [*DEMO, "demo", *options]
            second = subprocess.run(command, env=environment, capture_output=True, check=False)
            assert second.returncode == 1
            assert b"another demo is running" in second.stderr
        demo.terminate()
        demo.stderr.read()
    assert demo.returncode == 130


def test_what_it_says_to_try_works(environment: dict[str, str]) -> None:
    kept = subprocess.run(
        [*DEMO, "demo", "--keep"], env=environment, capture_output=True, text=True, check=False
    )
    assert kept.returncode == 0, kept.stderr
    try:
        again = subprocess.run(
            [*DEMO, "demo"], env=environment, capture_output=True, text=True, check=False
        )
        assert again.returncode == 1
        assert "a kept demo is running" in again.stderr
        commands = [
            line.strip() for line in kept.stdout.splitlines() if line.startswith("  nsenter")
        ]
        assert len(commands) == 3
        listed, console, created = commands
        # A control group is all that would outlive its namespaces.
        unshare = msgspec.json.decode((kept_directory(environment) / "kept.json").read_bytes())
        inside = [Path(f"/proc/{pid}") for pid in members(unshare["pid"])]
        assert [place for place in inside if b"qemu-system" in (place / "cmdline").read_bytes()]
        groups = [(place / "cgroup").read_text() for place in inside]
        assert not [text for text in groups if "/smallstack-" in text]
        address = re.search(r"port (198\.51\.100\.\d+)$", console)
        assert address
        assert address[1] in _shell(listed)
        _console(console)
        assert _shell(created).startswith("198.51.100.")
    finally:
        down = subprocess.run(
            [*DEMO, "down"], env=environment, capture_output=True, text=True, check=False
        )
    assert "the demo is down" in down.stderr
    assert subprocess.run([*DEMO, "down"], env=environment, check=False).returncode == 0


def kept_directory(environment: dict[str, str]) -> Path:
    return Path(environment["SMALLSTACK_CACHE"]) / "demo"


CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.environ.get("HOME", "/root")}


def _shell(command: str) -> str:
    """What a fresh shell's command prints: no variable of this test reaches it."""
    done = subprocess.run(
        ["sh", "-c", command], env=CLEAN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _console(command: str) -> None:
    """Type at the guest's shell, wait for its answer, detach."""
    with subprocess.Popen(
        ["sh", "-c", command], env=CLEAN, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as console:
        assert console.stdin
        assert console.stdout
        console.stdin.write(b"echo my-word-$((6 * 7))\n")
        console.stdin.flush()
        while b"my-word-42" not in console.stdout.readline():
            assert console.poll() is None
        console.stdin.write(b"\x1d")
        console.stdin.flush()
        assert console.wait() == 0
