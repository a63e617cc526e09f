"""What can go wrong with qcow2 images and diff streams; each class's docstring is its message."""

from smallstack.volumes.errors import VolumeError


class DiskError(VolumeError):
    """{path}: {detail}"""


class DiskUnreadableError(DiskError):
    """cannot read {path}: {detail}"""


class DiskUnwritableError(DiskError):
    """cannot write {path}: {detail}"""


class DiskDamagedError(DiskError):
    """{path} is damaged: {detail}"""


class DiskUnsupportedError(DiskError):
    """{path} is not supported: {detail}"""


class DiskTooLargeError(DiskError):
    """{path} is beyond a limit: {detail}"""


class BackingError(DiskError):
    """{path}: its backing file {backing!r} {detail}"""


class SnapshotNotFoundError(DiskError):
    """{path} has no snapshot {name!r}: it has {names}"""


class BitmapNotFoundError(DiskError):
    """{path} has no usable bitmap {name!r}: it has {names}"""


class DifferentDisksError(VolumeError):
    """{old} and {new} cannot be compared: {detail}"""


class StreamError(VolumeError):
    """diff stream {path}: {detail}"""


class StreamDamagedError(StreamError):
    """diff stream {path} is damaged: {detail}"""


class StreamEndsError(StreamError):
    """diff stream {path} ends too early: go on from block {block}"""


class WrongBaseError(StreamError):
    """{target} is not what the diff stream was made from: {detail}"""
