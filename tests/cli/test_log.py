"""``smallstack log`` against a daemon's own process, over TLS."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from smallstack.identity import pki
from tests.cli.test_imagetool import Site, start


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    authority = pki.make_ca(directory / "ca")
    pki.issue(authority, "server", server=True).write(directory / "server")
    pki.issue(authority, "alice", methods=["Logger.*"]).write(directory / "alice")
    pki.issue(authority, "bob").write(directory / "bob")
    running = start(directory)
    yield running
    running.process.terminate()
    assert running.process.wait(30) == 0


def command(site: Site, user: str, *arguments: str) -> list[str]:
    certificates = ["--cert-directory", str(site.directory / user)]
    return [sys.executable, "-m", "smallstack.cli.smallstack", "log", *certificates, *arguments]


def run(site: Site, *arguments: str, user: str = "alice") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(site, user, *arguments), capture_output=True, text=True, check=False
    )


def test_a_daemon_is_listened_to(site: Site) -> None:
    address = f"127.0.0.1:{site.port}"
    words = ["--level", "1", "--include", "logger: ", "--exclude", "dull"]
    with subprocess.Popen(
        command(site, "alice", "watch", address, *words), stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert "Logger.Watch(1) by alice@127.0.0.1" in watching.stdout.readline()
        for said in (
            ("print", address, "hello", "you"),
            ("print", address, "dull"),
            ("debug", address, "2", "too deep"),
            ("debug", address, "1", "deep"),
        ):
            assert run(site, *said).returncode == 0
        for text in (
            "INFO logger: Logger.Print() by alice@127.0.0.1: hello you",
            "DEBUG logger: Logger.Debug(1) by alice@127.0.0.1: deep",
        ):
            assert watching.stdout.readline().endswith(f"Z {text}\n")
        watching.terminate()
    assert run(site, "set-debug-level", address, "3").returncode == 0
    assert run(site, "set-debug-level", address, "-1").returncode == 0
    assert "in LoggerService.get_stack_trace" in run(site, "get-stack-trace", address).stdout


def test_who_may_not(site: Site) -> None:
    done = run(site, "print", f"127.0.0.1:{site.port}", "hello", user="bob")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "access to method denied" in done.stderr
