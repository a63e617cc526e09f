"""``./dev docs``: writes the generated documents; with ``--check`` says which are not current."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from docs.generate import methods, page, schema

DOCS: Final = Path(__file__).parents[1]

DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "api.json": schema.document,
    "api.md": page.document,
    "methods.md": methods.document,
}
"""File name below docs/ to what makes its text."""


def main() -> int:
    """The exit code: 1 when a document is not current and was not to be written."""
    parser = argparse.ArgumentParser(
        prog="./dev docs", description="Writes docs/api.md and others."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if one would change"
    )
    check = parser.parse_args().check
    stale = []
    for name, make in DOCUMENTS.items():
        path, text = DOCS / name, make()
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(f"docs/{name}")
        if not check:
            path.write_text(text)
    if check and stale:
        print(f"{' and '.join(stale)} not current: run ./dev docs", file=sys.stderr)
        return 1
    print(*(f"wrote {name}" for name in stale), sep="\n", end="\n" if stale else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
