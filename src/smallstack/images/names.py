"""What images and directories of images may be called.

A name is a path below the catalogue's directory. A component may not begin with ``.`` (the server
keeps its own files there) nor end with ``~`` (a file being written), and no name may hold a
control character: names travel as lines of text.
"""

import posixpath

from smallstack.images.errors import ImageNameError

MAX_NAME = 1024
MAX_COMPONENT = 250
ROOT = "."
"""The directory at the top, as the wire calls it."""


def check_name(name: str, what: str = "an image") -> str:
    """The name itself; raises ImageNameError for one that cannot be used."""
    detail = _wrong(name)
    if detail:
        raise ImageNameError(name=name[:100], what=what, detail=detail)
    return name


def check_directory(name: str) -> str:
    """The name of a directory without doubled and trailing slashes; ``.`` is the top.

    Raises ImageNameError.
    """
    cleaned = posixpath.normpath(name) if name and "\0" not in name else name
    if cleaned == ROOT:
        return cleaned
    return check_name(cleaned, "a directory")


def parent(name: str) -> str:
    """The directory that a name is in; ``.`` for the top."""
    return posixpath.dirname(name) or ROOT


def _wrong(name: str) -> str:
    if not name:
        return "it is empty"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if len(encoded) > MAX_NAME:
        return f"it has more than {MAX_NAME} bytes"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "it has a control character"
    for part in name.split("/"):
        if not part:
            return "it begins or ends with a slash, or has two in a row"
        if part in {".", ".."}:
            return f"it has a component {part!r}"
        if part.startswith("."):
            return f"its component {part[:40]!r} begins with a dot"
        if part.endswith("~"):
            return f"its component {part[:40]!r} ends with '~'"
        if len(part.encode()) > MAX_COMPONENT:
            return f"a component has more than {MAX_COMPONENT} bytes"
    return ""
