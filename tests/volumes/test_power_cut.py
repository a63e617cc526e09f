"""Power cuts in the middle of fetching objects and making bricks, on ext4 and on XFS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command

MOMENTS = int(os.environ.get("SMALLSTACK_POWER_CUTS", "4"))


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nothing_torn_is_ever_used(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("SMALLSTACK_POWER_CUT_SEED") or int.from_bytes(os.urandom(3)))
    print(f"SMALLSTACK_POWER_CUT_SEED={seed}")
    program = [sys.executable, "-m", "tests.volumes.power_cut"]
    done = subprocess.run(
        private_mounts_command([*program, kind, str(tmp_path), str(seed), str(MOMENTS)]),
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == MOMENTS + 1
