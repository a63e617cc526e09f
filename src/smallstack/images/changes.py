"""What changes in a catalogue, told to whoever follows it: replicas, and tools that wait.

A follower gets the whole list, then what has changed since, as it is when it is told: in between it
keeps the names of what changed and nothing else, so that a slow one costs little memory, misses no
last state, and is never turned away::

    catalogue, under its lock ── note ──► names ── take ──► images and directories that went, then
                                                            directories and images that came

In that order whoever repeats the changes one by one never finds an image in the way of a directory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from smallstack.proto.image import Directory
from smallstack.proto.imageserver import ImageOperation, ImageUpdate

if TYPE_CHECKING:
    from smallstack.images.catalogue import ImageCatalogue


class Follower:
    """What one follower has not been told yet. Use `ImageCatalogue.follow`."""

    def __init__(
        self, catalogue: "ImageCatalogue", wake: Callable[[], None], ignore_expiring: bool
    ) -> None:
        """``wake`` is called, by any thread, when there is news after a time of none."""
        self._catalogue = catalogue
        self._wake = wake
        self._ignore_expiring = ignore_expiring
        self._known: set[str] = set()
        self._known_directories: set[str] = set()
        self._images: dict[str, bool] = {}
        self._directories: dict[str, bool] = {}
        """By name: whether it went meanwhile, and whatever is there now is another one."""

    def note(self, name: str, *, directory: bool, gone: bool) -> None:
        """Something was added, changed or removed; the catalogue's lock is held."""
        news = not self._images and not self._directories
        names = self._directories if directory else self._images
        names[name] = names.get(name, False) or gone
        if news:
            self._wake()

    def take(self) -> list[ImageUpdate]:
        """What has changed, and is forgotten with this; the catalogue's lock is held."""
        images, self._images = self._images, {}
        directories, self._directories = self._directories, {}
        gone = [name for name, went in images.items() if went and name in self._known]
        self._known.difference_update(gone)
        gone_directories = [
            name for name, went in directories.items() if went and name in self._known_directories
        ]
        self._known_directories.difference_update(gone_directories)
        found = [ImageUpdate(name=name, operation=ImageOperation.DELETE_IMAGE) for name in gone]
        found += [
            ImageUpdate(name=name, operation=ImageOperation.DELETE_DIRECTORY)
            for name in sorted(gone_directories, reverse=True)
        ]
        for name in sorted(directories):
            metadata = self._catalogue.metadata(name)
            if metadata is not None:
                self._known_directories.add(name)
                directory = Directory(name=name, metadata=metadata)
                operation = ImageOperation.MAKE_DIRECTORY
                found.append(ImageUpdate(directory=directory, operation=operation))
        for name in sorted(images):
            entry = self._catalogue.entry(name)
            if entry is not None and not (self._ignore_expiring and entry.expires):
                self._known.add(name)
                found.append(ImageUpdate(name=name, operation=ImageOperation.ADD_IMAGE))
        return found
