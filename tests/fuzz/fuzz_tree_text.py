"""Directories as text: entries that a file system can have, sorted, or one line of error."""

from smallstack.images.errors import TreeTextError
from smallstack.images.tree_text import parse_tree_text


def one_input(data: bytes) -> None:
    try:
        entries = parse_tree_text(data)
    except TreeTextError as error:
        assert "\n" not in str(error)
        return
    assert len(entries) == data.count(b"\n")
    names = [entry.name for entry in entries]
    assert names == sorted(set(names))
    for entry in entries:
        assert entry.name not in {b"", b".", b".."}
        assert not {0, ord("/")} & set(entry.name)
        assert entry.permissions <= 0o7777
        assert entry.size < 1 << 63
    text = b"".join(
        b"%s/%d/%d/%d/%d/%d/%s\n" % (*entry[:-1], entry.hash.hex().encode()) for entry in entries
    )
    assert parse_tree_text(text) == entries
