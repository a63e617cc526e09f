"""A benchmark that cannot be run ends in one line."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name leaves room for those of sockets below it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.root
@pytest.mark.qemu
def test_a_sandbox_that_fails_is_one_line(short: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "create", "-n", "1"],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "SMALLSTACK_APPLIANCE": str(short / "none"),
            "SMALLSTACK_CACHE": str(short / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bench: ")
    assert f"{short}/none/root" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any((short / "cache").glob("bench-*"))
