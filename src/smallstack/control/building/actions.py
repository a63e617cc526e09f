"""What is asked of the process inside a build's namespaces, and what it tells: pure data.

The request is a JSON file; the answers are JSON lines on a pipe.
"""

from typing import Literal

import msgspec


class Run(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Run a command; ``limit`` in seconds. Its output goes to the log, or to the file named."""

    title: str
    command: list[str]
    limit: int = 24 * 3600
    output: str = ""


class Lay(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Lay a directory of the manifest over the tree, or append its files to what is there.

    ``owners`` are uid, gid and octal mode ("" for the file's own) by absolute path.
    """

    directory: str
    append: bool = False
    under: str = "/"
    owners: dict[str, tuple[int, int, str]] = {}


class Normalise(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """See `images.normalise`; first, what the lines of a filter match is removed."""

    started_ns: int
    keep: list[str] = []
    filter_lines: list[str] = []


Action = Run | Lay | Normalise


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Actions in one set of namespaces.

    With ``root`` that directory is all there is, but for the manifest (read only) at `MANIFEST`
    and package files at `DEBS`; without, the machine's own file system. ``network`` is the
    machine's, or none at all.
    """

    actions: list[Action]
    environment: dict[str, str]
    status_fd: int
    root: str = ""
    manifest: str = ""
    debs: str = ""
    network: bool = False
    epoch: int = 0


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An action began, or ended; what failed is in ``detail``."""

    title: str
    event: Literal["begin", "end", "failed"]
    detail: str = ""


HEADING = "== "
"""What begins an action's output in the log, before its title."""
PLACE = "/run/smallstack"
MANIFEST = f"{PLACE}/manifest"
DEBS = f"{PLACE}/debs"
PLAIN = f"{PLACE}/tree"
