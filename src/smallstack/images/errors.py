"""What can go wrong with images."""

from smallstack.telemetry.errors import SmallStackError


class ImageError(SmallStackError):
    """image {name!r}: {detail}"""


class FilterError(SmallStackError):
    """filter {place}: {detail}"""


class TriggersError(SmallStackError):
    """triggers {place}: {detail}"""


class ManifestError(SmallStackError):
    """manifest {path}: {detail}"""


class SourceError(SmallStackError):
    """cannot make an image of {path}: {detail}"""


class TarError(SmallStackError):
    """cannot make an image of this archive: {detail}"""


class CompressedDataError(SmallStackError):
    """its {form} data {detail}"""


class OciError(SmallStackError):
    """cannot make an image of this container image: {detail}"""


class TreeTextError(SmallStackError):
    """not a directory of a file-system tree: line {line}: {detail}"""


class UnpackError(SmallStackError):
    """cannot unpack the image to {path}: {detail}"""


class ImageNameError(SmallStackError):
    """{name!r} is no name for {what}: {detail}"""


class CatalogueError(SmallStackError):
    """cannot use the images in {directory}: {detail}"""


class RefusedError(SmallStackError):
    """{text}"""


class DeniedError(RefusedError):
    """{text}"""

    denies = True


class ArchiveError(SmallStackError):
    """cannot write the archive {path}: {detail}"""


class PatchError(SmallStackError):
    """cannot patch {path}: {detail}"""
