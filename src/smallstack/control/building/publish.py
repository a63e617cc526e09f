"""What becomes of a finished tree: its digest, its age, a directory, an archive."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from smallstack.control.building.confine import BuildError
from smallstack.images.build import Report, chunks, from_directory
from smallstack.images.decompress import Readable
from smallstack.proto.filesystem import INODE, FileSystem
from smallstack.telemetry.errors import describe


class DigestSink:
    """A `Sink` that keeps nothing."""

    def add(self, file: Readable, size: int) -> bytes:
        """See `Sink`."""
        digest = hashlib.sha512()
        for chunk in chunks(file, size):
            digest.update(chunk)
        return digest.digest()


def scanned(root: Path, report: Report | None = None) -> FileSystem:
    """The tree of a directory, whose contents go nowhere; raises SourceError."""
    return from_directory(root, DigestSink(), report=report)


def newest_mtime(tree: FileSystem) -> int:
    """The newest mtime in a tree, in whole s, rounded up."""
    newest = 0
    for record in INODE.iter_unpack(tree.inodes):
        newest = max(newest, record[2] + (record[3] > 0))
    return newest


def check_output(output: Path) -> None:
    """Raises BuildError when there is something already."""
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise BuildError(step=str(output), detail="is there already: name another one")


def copy_tree(source: Path, target: Path) -> None:
    """Copy a whole tree to a new directory: links, holes, attributes; raises BuildError."""
    _command("cp", "--archive", "--reflink=auto", "--no-target-directory", str(source), str(target))


def put_out(root: Path, output: Path) -> None:
    """Move a tree to where it was asked for, or write it as a tar archive; raises BuildError.

    The archive is the same for the same tree: sorted by name, owners by number, POSIX format.
    """
    if output.suffix != ".tar":
        try:
            if output.exists():
                output.rmdir()
            root.rename(output)
        except OSError:  # another file system
            partial = _fresh(output)
            try:
                copy_tree(root, partial)
                partial.rename(output)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return
    partial = _fresh(output)
    options = ["--sort=name", "--numeric-owner", "--format=posix", "--xattrs", "--acls"]
    options += ["--xattrs-include=*", "--pax-option=exthdr.name=%d/PaxHeaders/%f"]
    options += ["--pax-option=delete=atime,delete=ctime"]
    try:
        _command("tar", *options, "-C", str(root), "-cf", str(partial), ".")
        partial.rename(output)
    finally:
        partial.unlink(missing_ok=True)


def _fresh(output: Path) -> Path:
    """Where it is written first; what a build that was killed left there goes."""
    partial = output.with_name(output.name + "~")
    try:
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(step=str(partial), detail=describe(error)) from error
    return partial


def _command(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise BuildError(step=command[0], detail=f"cannot run: {describe(error)}") from error
    if done.returncode:
        raise BuildError(step=command[0], detail=done.stderr.strip()[-500:])
