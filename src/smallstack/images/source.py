"""What an image is made of, told by looking: a directory, a root's archive, a container image."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smallstack.images.build import Report, Sink, from_directory
from smallstack.images.container import Platform, from_container_vm
from smallstack.images.errors import SourceError
from smallstack.images.filter import PathFilter
from smallstack.images.oci import from_container
from smallstack.images.oci_archive import DirectoryFiles, Files, archive, is_layout
from smallstack.images.oci_layout import Choice, find_image
from smallstack.images.tar import read_tar
from smallstack.proto.filesystem import FileSystem
from smallstack.telemetry.errors import describe


@dataclass(frozen=True)
class ContainerChoice:
    """Which container image of a source is meant, and the platform that makes it a VM."""

    which: Choice = field(default_factory=Choice)
    platform: Platform | None = None


def from_source(
    source: Path,
    sink: Sink,
    path_filter: PathFilter | None,
    report: Report,
    container: ContainerChoice,
) -> FileSystem:
    """The tree of what is at a path (``-``: standard input).

    Blocks; belongs into a thread. Raises SourceError, TarError, OciError, and what the sink raises.
    """

    def unpacked(files: Files) -> FileSystem:
        image = find_image(files, container.which)
        if container.platform is not None:
            return from_container_vm(image, container.platform, sink, path_filter, report)
        return from_container(image, sink, path_filter, report)

    if source.is_dir() and not is_layout(source):
        _check_no_choice(source, container)
        return from_directory(source, sink, path_filter, report)
    with _readable(source):
        if source.is_dir():
            return unpacked(DirectoryFiles(source))
        descriptor = 0 if str(source) == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        with (
            open(descriptor, "rb", closefd=descriptor != 0) as file,
            archive(file) as (files, root),
        ):
            if files is not None:
                return unpacked(files)
            _check_no_choice(source, container)
            return read_tar(root, sink, path_filter, report)


def _check_no_choice(source: Path, container: ContainerChoice) -> None:
    if container.platform is not None or container.which.tag:
        raise SourceError(
            path=source,
            detail="it is no container image, for which --platform and --oci-tag are",
        )


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(path=source, detail=describe(error, source)) from error
