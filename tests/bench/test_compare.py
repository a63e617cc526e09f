"""The comparison of two benchmark results fails when, and only when, a ratio got worse."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare


def result(path: Path, **headline: Any) -> Path:
    path.write_text(json.dumps({"headline": headline}))
    return path


def test_a_worse_ratio_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = result(tmp_path / "a", n=20, ratio=1.10, median_s=0.4)
    after = result(tmp_path / "b", n=20, ratio=1.25, median_s=0.2)
    assert compare(before, after, 0.10) == 1
    assert "worse" in capsys.readouterr().out
    assert compare(before, after, 0.20) == 0
    assert compare(after, before, 0.0) == 0


def test_times_alone_never_fail(tmp_path: Path) -> None:
    before = result(tmp_path / "a", ratio=1.1, median_s=0.1)
    after = result(tmp_path / "b", ratio=1.1, median_s=9.0)
    assert compare(before, after, 0.0) == 0


def test_theirs_over_ours_is_turned_round(tmp_path: Path) -> None:
    before = result(tmp_path / "a", ratio_mke2fs=4.0)
    after = result(tmp_path / "b", ratio_mke2fs=2.0)
    assert compare(before, after, 0.5) == 1
    assert compare(after, before, 0.0) == 0


def test_scenarios_and_lost_ratios(tmp_path: Path) -> None:
    before = result(tmp_path / "a", ratio=1.1, scenarios={"debian": {"ratio": 0.2}})
    after = result(tmp_path / "b", ratio=1.1)
    assert compare(before, after, 0.5) == 1


def test_no_result_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    with pytest.raises(SystemExit, match="no benchmark result"):
        compare(tmp_path / "x", tmp_path / "x", 0.1)
