"""Kills a process that changes a catalogue at every one of its writes, then loads what is left.

A program of its own: it forks from a state with one thread. Prints the number of kill points.
"""

import hashlib
from pathlib import Path

from smallstack.images.catalogue import ImageCatalogue
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.image import Image
from smallstack.proto.kinds import Time
from tests.objects.kill_points import CALLS, Killer, every_kill_point

LATER = Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + 10**15)


def image(number: int, expires_at: Time = Time()) -> Image:  # noqa: B008 - it is frozen
    builder = FileSystemBuilder(mtime_ns=number)
    inode = builder.add(mode=0o100644, size=1, hash=hashlib.sha512(b"x").digest())
    builder.link(0, b"file", inode)
    return Image(file_system=builder.build(), expires_at=expires_at)


def change(directory: Path, due: int) -> int:
    """Directories, images, deletions; the number of calls it took."""
    catalogue = ImageCatalogue(directory)
    catalogue.load()
    killer = Killer(due)
    for name in (*CALLS, "link", "rmdir"):
        killer.wrap(name)
    catalogue.make_directory("a/b", make_all=True)
    catalogue.set_owner("a", "ops")
    catalogue.add("a/one", image(1))
    catalogue.add("a/two", image(2, LATER))
    catalogue.delete("a/one")
    catalogue.change_expiration("a/two", Time.zero())
    catalogue.set_owner("a", "")
    catalogue.delete_directory("a/b")
    return killer.count


def check(directory: Path) -> None:
    """Every image that is there is whole, and everything can be done from there on."""
    catalogue = ImageCatalogue(directory)
    catalogue.load()
    assert catalogue.damaged() == {}
    for name in catalogue.names():
        found, number = catalogue.get(name), 1 if name == "a/one" else 2
        assert found is not None
        assert found.file_system == image(number).file_system
    assert not list(directory.rglob("*~"))
    catalogue.make_directory("a/b", make_all=True)
    catalogue.add("a/three", image(3))
    if "a/two" in catalogue:
        catalogue.delete("a/two")


if __name__ == "__main__":
    every_kill_point(change, check)
