"""Builds the Cython glue over the C of csrc/.

Every ``src/smallstack/**/*.pyx`` is one extension; its C sources are named in its own
header (``# distutils: sources = csrc/ext4.c``), so this file never changes for a new one.
"""

import copy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

C_FLAGS = ["-O3", "-g1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]


def extensions() -> list[Extension]:
    """One extension per .pyx, named after its place in the package."""
    found = []
    for path in sorted(Path("src/smallstack").rglob("*.pyx")):
        module = ".".join(path.relative_to("src").with_suffix("").parts)
        found.append(
            Extension(module, [str(path)], include_dirs=["csrc"], extra_compile_args=C_FLAGS)
        )
    return found


class OwnObjects(build_ext):
    """Compiles C that several extensions share once for each: they are built side by side."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, its objects in a directory of its own."""
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp) / ext.name)
        super(OwnObjects, own).build_extension(ext)


setup(
    cmdclass={"build_ext": OwnObjects},
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        language_level=3,
        compiler_directives={"embedsignature": False, "binding": True},
    ),
)
