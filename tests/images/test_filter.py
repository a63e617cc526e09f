from pathlib import Path

import pytest

from smallstack.images.errors import FilterError, TriggersError
from smallstack.images.filter import PathFilter, load_filter
from smallstack.images.triggers import load_triggers


def test_lines_are_anchored_at_the_start_only() -> None:
    found = PathFilter(["/etc/foo", "/tmp(|/.*)$", "/x$"])
    for path in (b"/etc/foo", b"/etc/foobar", b"/etc/foo/bar", b"/tmp", b"/tmp/a/b", b"/x"):
        assert found.matches(path), path
    for path in (b"/etc/fo", b"/a/etc/foo", b"/tmpfile", b"/x/y", b"/"):
        assert not found.matches(path), path


def test_an_exclamation_mark_turns_it_round() -> None:
    found = PathFilter(["!", "/bin(|/.*)$"])
    assert not found.matches(b"/bin")
    assert not found.matches(b"/bin/ls")
    assert found.matches(b"/bingo")
    assert found.matches(b"/etc")


def test_an_empty_filter_matches_nothing_and_alternatives_stay_apart() -> None:
    assert not PathFilter([]).matches(b"/etc")
    assert not PathFilter(["/a|/b", "/c"]).matches(b"/x/b")
    assert PathFilter(["/a|/b", "/c"]).matches(b"/b")
    assert PathFilter(["/odd"]).matches(b"/odd\xff")


def test_load_filter(tmp_path: Path) -> None:
    path = tmp_path / "filter"
    path.write_text("# a comment\n\n/etc/mtab$\n  /proc  \n")
    assert load_filter(path).filter_lines == ["/etc/mtab$", "/proc"]
    for data, message in (
        (b"/etc\n/(\n", "'/(' is no regular expression"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"x" * (2 << 20), "it has more than"),
    ):
        path.write_bytes(data)
        with pytest.raises(FilterError) as caught:
            load_filter(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(FilterError, match="No such file"):
        load_filter(tmp_path / "none")


def test_load_triggers(tmp_path: Path) -> None:
    path = tmp_path / "triggers"
    path.write_text(
        "# services\n"
        '[{"MatchLines": ["/etc/ssh/.*"], "Service": "ssh", "DoReload": true},\n'
        "// the kernel\n"
        ' {"MatchLines": ["/boot/.*"], "Service": "reboot", "SortName": "z", "HighImpact": true}]\n'
    )
    found = load_triggers(path).triggers
    assert [one.service for one in found] == ["ssh", "reboot"]
    assert found[0].do_reload
    assert found[1].high_impact
    assert found[1].sort_name == "z"
    for text, message in (
        ("[{", "truncated"),
        ('{"Service": "x"}', "Expected `array`"),
        ('[{"MatchLines": ["("], "Service": "x"}]', "is no regular expression"),
        ('[{"MatchLines": []}]', "trigger 1 names no service"),
    ):
        path.write_text(text)
        with pytest.raises(TriggersError) as caught:
            load_triggers(path)
        assert message in str(caught.value)
    path.write_bytes(b"\xff")
    with pytest.raises(TriggersError, match="UTF-8"):
        load_triggers(path)
    with pytest.raises(TriggersError, match="No such file"):
        load_triggers(tmp_path / "none")
