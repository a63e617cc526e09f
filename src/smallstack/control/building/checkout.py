"""What git says of a manifest: its commit, when it was made, where it is kept."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkout:
    """Where a manifest comes from; all empty outside a checkout.

    ``commit`` is empty, too, when the manifest was changed since. ``time`` (s) is that of the last
    commit that changed the manifest.
    """

    url: str = ""
    branch: str = ""
    commit: str = ""
    time: int = 0
    changed: bool = False


def checkout(directory: Path) -> Checkout:
    """The checkout that a manifest lies in; without git it is none."""
    head = _git(directory, "rev-parse", "HEAD")
    if not head:
        return Checkout()
    when = _git(directory, "log", "-1", "--format=%ct", "--", ".")
    changed = bool(_git(directory, "status", "--porcelain", "--", "."))
    branch = _git(directory, "rev-parse", "--abbrev-ref", "HEAD")
    url = re.sub(r"//[^/@]*@", "//", _git(directory, "remote", "get-url", "origin"))
    return Checkout(
        url=url,
        branch="" if branch == "HEAD" else branch,
        commit="" if changed else head,
        time=int(when) if when.isdigit() else 0,
        changed=changed,
    )


def _git(directory: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
