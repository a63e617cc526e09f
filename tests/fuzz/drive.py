"""Runs one Python fuzz target under atheris, with coverage of both Python and C code.

``python -m tests.fuzz.drive TARGET LIB [libFuzzer flags…]``: LIB holds the extensions compiled with
coverage and address-sanitizer instrumentation; they are taken in place of the ordinary ones.
The sanitizer's run time has to be preloaded by whoever starts this (see targets.py).
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

atheris: Any = importlib.import_module("atheris")  # by name: it ships no types


class InstrumentedExtensions(MetaPathFinder):
    """Finds an extension module in the instrumented build before the ordinary one is looked at."""

    def __init__(self, library: Path) -> None:
        self.files = {
            ".".join((*path.relative_to(library).parts[:-1], path.name.split(".")[0])): path
            for path in library.rglob("*.so")
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the instrumented copy, or None to leave it to the next finder."""
        file = self.files.get(fullname)
        return importlib.util.spec_from_file_location(fullname, file) if file else None


def main() -> None:
    """Import the target instrumented and hand its ``one_input`` to libFuzzer."""
    name, library, *flags = sys.argv[1:]
    sys.meta_path.insert(0, InstrumentedExtensions(Path(library)))
    with atheris.instrument_imports(include=["smallstack", "tests.fuzz"]):
        target = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    atheris.Setup([name, *flags], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
