"""Followers of a catalogue: a replica that does what it is told is the catalogue, at every look."""

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallstack.images.catalogue import ImageCatalogue
from smallstack.images.errors import RefusedError
from smallstack.images.names import ROOT, parent
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.image import DirectoryMetadata, Image
from smallstack.proto.imageserver import ImageOperation, ImageUpdate
from smallstack.proto.kinds import Time

LONG_AGO = Time.from_nanoseconds(1)
NEVER = Time()


class Replica:
    """What somebody has who repeats every change; refuses one that cannot be done."""

    def __init__(self, catalogue: ImageCatalogue, *, ignore_expiring: bool) -> None:
        self.woken = 0
        self.ignore_expiring = ignore_expiring
        self.images: dict[str, str] = {}
        """By name which one it is."""
        self.directories: dict[str, DirectoryMetadata] = {}
        self._catalogue = catalogue
        self.follower = catalogue.follow(self._wake, ignore_expiring)

    def _wake(self) -> None:
        self.woken += 1

    def look(self) -> None:
        """Take the news, which are there if and only if there was a call for it."""
        updates = self._catalogue.changes(self.follower)
        assert self.woken == 1 or not updates
        self.woken = 0
        for update in updates:
            self.do(update)
        entries = {name: self._catalogue.entry(name) for name in self._catalogue.names()}
        assert self.images == {
            name: entry.image.build_commit_id
            for name, entry in entries.items()
            if entry is not None and not (self.ignore_expiring and entry.expires)
        }
        assert self.directories == {d.name: d.metadata for d in self._catalogue.directories()}

    def do(self, update: ImageUpdate) -> None:
        name = update.name
        match update.operation:
            case ImageOperation.ADD_IMAGE:
                assert parent(name) in self.directories
                entry = self._catalogue.entry(name)
                assert entry is not None
                self.images.setdefault(name, entry.image.build_commit_id)  # one it has it keeps
            case ImageOperation.DELETE_IMAGE:
                del self.images[name]
            case ImageOperation.MAKE_DIRECTORY:
                made = update.directory
                assert made is not None
                assert made.name == ROOT or parent(made.name) in self.directories
                self.directories[made.name] = made.metadata
            case ImageOperation.DELETE_DIRECTORY:
                assert not [one for one in self.images if parent(one) == name]
                assert not [one for one in self.directories if one != ROOT and parent(one) == name]
                del self.directories[name]


NUMBERS = itertools.count()


def image(expires_at: Time) -> Image:
    tree = FileSystemBuilder(mtime_ns=7).build()
    return Image(file_system=tree, expires_at=expires_at, build_commit_id=str(next(NUMBERS)))


def change(catalogue: ImageCatalogue, what: str, directory: str, name: str) -> None:
    path = name if directory == ROOT else f"{directory}/{name}"
    actions: dict[str, Any] = {
        "add": lambda: catalogue.add(path, image(NEVER)),
        "add expiring": lambda: catalogue.add(path, image(LONG_AGO)),
        "delete": lambda: catalogue.delete(path),
        "expire": lambda: catalogue.expire(path),
        "keep": lambda: catalogue.change_expiration(path, NEVER),
        "restore": lambda: catalogue.add(path, image(NEVER), again=True),
        "make": lambda: catalogue.make_directory(directory),
        "remove": lambda: catalogue.delete_directory(directory),
        "own": lambda: catalogue.set_owner(directory, name),
    }
    try:
        actions[what]()
    except RefusedError:
        pass


# A directory can go only when no image in it was deleted, so most of them have to expire.
WHAT = [
    *["make", "add expiring", "expire", "remove"] * 3,
    "add",
    "delete",
    "keep",
    "restore",
    "own",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*WHAT, "look", "look other"]),
        st.sampled_from([ROOT, "a", "a/b"]),
        st.sampled_from("xy"),
    ),
    max_size=60,
)
TWO: list[tuple[str, str, str]] = [
    ("make", "a", ""),
    ("make", "a/b", ""),
    ("add expiring", "a/b", "x"),
]

LOOK = [("look", "", ""), ("look other", "", "")]
GO = [("expire", "a/b", "x"), ("remove", "a/b", ""), ("remove", "a", "")]


@settings(max_examples=80, deadline=None)
@example(TWO, [*LOOK, ("own", "a", "x"), *GO])
@example(TWO, [*LOOK, *GO, *TWO])
@example(TWO, [*LOOK, ("expire", "a/b", "x"), ("add", "a/b", "x")])
@example(TWO, [*LOOK, ("keep", "a/b", "x"), ("delete", "a/b", "x"), ("restore", "a/b", "x")])
@given(STEPS, STEPS)
def test_replicas_are_the_catalogue(
    before: Iterable[tuple[str, str, str]], after: Iterable[tuple[str, str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        catalogue = ImageCatalogue(Path(directory))
        catalogue.load()
        for what, where, name in before:
            if not what.startswith("look"):
                change(catalogue, what, where, name)
        replicas = [Replica(catalogue, ignore_expiring=ignore) for ignore in (False, True)]
        for what, where, name in after:
            if what == "look":
                replicas[0].look()
            elif what == "look other":
                replicas[1].look()
            else:
                change(catalogue, what, where, name)
        for replica in replicas:
            replica.look()
            replica.look()
            catalogue.leave(replica.follower)
