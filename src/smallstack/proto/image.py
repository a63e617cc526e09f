"""Images and what belongs to them: filters, triggers, annotations, directories."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import ClassVar

from msgspec import field

from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import Hash, Message, Omit, Pointed, Tags, Time, Uint64


class Filter(Message, kw_only=True):
    """Lines of regular expressions, anchored at the start; paths they match are left alone."""

    go_package: ClassVar[str] = "filter"
    filter_lines: list[str] = []


class Trigger(Message, kw_only=True):
    """What to do with a service when paths that match these lines change."""

    go_package: ClassVar[str] = "triggers"
    match_lines: list[str] = []
    service: str = ""
    sort_name: Omit[str] = ""
    do_reboot: Omit[bool] = False
    do_reload: Omit[bool] = False
    high_impact: Omit[bool] = False


class Triggers(Message, kw_only=True):
    """The triggers of an image."""

    go_package: ClassVar[str] = "triggers"
    triggers: list[Pointed[Trigger]] = []


class Annotation(Message, kw_only=True):
    """Text that belongs to an image: an object or a URL, never both."""

    go_package: ClassVar[str] = "image"
    object: Hash | None = None
    """SHA-512 of the text."""
    url: str = ""


class DirectoryMetadata(Message, kw_only=True):
    """What is known of a directory of images."""

    go_package: ClassVar[str] = "image"
    owner_group: str = ""


class Directory(Message, kw_only=True):
    """A directory of images; an empty name ends a list of them."""

    go_package: ClassVar[str] = "image"
    name: str = ""
    metadata: DirectoryMetadata = field(default_factory=DirectoryMetadata)


class Package(Message, kw_only=True):
    """A package installed in an image; ``size`` in bytes."""

    go_package: ClassVar[str] = "image"
    name: str = ""
    size: Uint64 = 0
    version: str = ""


class Image(Message, kw_only=True):
    """An image: a file-system tree, what it was made from, and who may use it.

    Without a filter it is sparse: what it does not name stays untouched on a machine.
    """

    go_package: ClassVar[str] = "image"
    build_branch: str = ""
    build_commit_id: str = ""
    build_git_url: str = ""
    created_by: str = ""
    """Set by the server: who added it."""
    created_for: str = ""
    """Who had it added."""
    filter: Filter | None = None
    file_system: FileSystem | None = None
    triggers: Triggers | None = None
    release_notes: Annotation | None = None
    build_log: Annotation | None = None
    created_on: Time = Time()
    expires_at: Time = Time()
    """Zero time: never."""
    owner_groups: list[str] = []
    owner_users: list[str] = []
    packages: list[Package] = []
    """What is installed in it."""
    source_image: str = ""
    """What it was built on."""
    tags: Tags = {}
