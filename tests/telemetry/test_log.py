"""One line per event."""

import io
import logging
from collections.abc import Iterator

import pytest

from smallstack.telemetry import log


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger("smallstack")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before


def test_line_format() -> None:
    stream = io.StringIO()
    log.setup("info", stream)
    logging.getLogger("smallstack.network").info("tap %s", "t0")
    logging.getLogger("smallstack.network").debug("unseen")
    text = stream.getvalue()
    assert text.endswith("Z INFO network: tap t0\n")
    assert text.count("\n") == 1


def test_exception_is_one_line_unless_debugging() -> None:
    for level, lines in (("info", 1), ("debug", 4)):
        stream = io.StringIO()
        log.setup(level, stream)
        try:
            raise ValueError("bad thing")
        except ValueError:
            logging.getLogger("smallstack.x").exception("failed")
        assert "x: failed: ValueError: bad thing" in stream.getvalue()
        assert stream.getvalue().count("\n") >= lines
        assert (stream.getvalue().count("\n") == 1) == (lines == 1)


def test_journal_prefix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    log.setup()
    logging.getLogger("smallstack.x").warning("careful")
    assert capsys.readouterr().err == "<4>x: careful\n"


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="unknown log level 'loud'"):
        log.setup("loud")
