"""Every committed seed replays cleanly; a planted bug is found."""

import pytest

from .targets import Target, all_targets

TARGETS = all_targets()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_corpus_replays(target: Target) -> None:
    seeds = [path for path in target.corpus.iterdir() if path.is_file()]
    assert seeds, f"no seeds in {target.corpus}"
    result = target.run(seconds=60, runs=0)
    assert result.failure is None, result.failure
    assert result.executions >= len(seeds)


def test_planted_bug_is_found() -> None:
    """The harness can fail: with one bound check compiled out, a sanitizer stops the run."""
    planted = [t for t in TARGETS if t.is_c and "SS_PLANTED_BUG" in _sources(t)]
    assert planted, "no target knows SS_PLANTED_BUG"
    result = planted[0].run(seconds=60, defines=("SS_PLANTED_BUG",))
    assert result.failure is not None
    assert "Sanitizer" in result.failure


def _sources(target: Target) -> str:
    names = target.source.read_text().splitlines()[0].split()
    root = target.source.parent.parent.parent
    return "".join((root / n).read_text() for n in names if n.endswith(".c"))
