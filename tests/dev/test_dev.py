"""``./dev``: what it says of itself, what it sets up, and that it does so once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
TOOLS = ("vm-control", "hyper-control", "imagetool", "smallstack")


def dev(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HERE / "dev", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_command_is_named() -> None:
    done = dev("nosuch", "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dev: no such command: nosuch; see ./dev help\n"


@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_help_sets_nothing_up(words: list[str], tmp_path: Path) -> None:
    done = dev(*words, SMALLSTACK_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "./dev demo | down | test" in done.stdout
    assert "set -eu" not in done.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_has_the_tools(shell: str, tmp_path: Path) -> None:
    path = shutil.which(shell)
    assert path
    script = f"cd /; for tool in {' '.join(TOOLS)}; do $tool --version; done"
    done = dev("shell", "-c", script, SHELL=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tool}, version 0.1.0" for tool in TOOLS]


def test_what_is_there_is_neither_asked_for_nor_made_again(tmp_path: Path) -> None:
    """With all stamps in place a start runs none of the programs that set something up."""
    assert dev("build").returncode == 0
    traces = tmp_path / "traces"
    for name in ("apt-get", "dpkg-query", "gcc", "cc", "pip", "python3.11"):
        trap = tmp_path / "bin" / name
        trap.parent.mkdir(exist_ok=True)
        trap.write_text(f"#!/bin/sh\necho {name} >>{traces}\nexit 1\n")
        trap.chmod(0o755)
    traps = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for words in (["build"], ["smallstack", "--version"], ["python", "-c", "pass"]):
        done = dev(*words, PATH=traps)
        assert (done.returncode, done.stderr) == (0, "")
    assert not traces.exists()
