"""Image files and images from a peer: refused in one line, or sound in every question asked."""

import hashlib
from io import BytesIO
from unittest.mock import patch

from smallstack.images import image_file
from smallstack.images.computed import computed_files, repeated_computed_file
from smallstack.images.errors import FilterError, ImageNameError, RefusedError
from smallstack.images.filter import PathFilter
from smallstack.images.inodes import find_inodes
from smallstack.images.model import summarise
from smallstack.images.names import check_directory, check_name
from smallstack.imageserver.references import objects_of
from smallstack.proto.image import Image
from smallstack.srpc.coder import Limits
from smallstack.srpc.errors import RemoteProtocolError
from smallstack.srpc.gob import Encoder

LIMITS = Limits(message=1 << 20, value=1 << 20, elements=1 << 16, values=1 << 17, inodes=1 << 12)
MOST_PATHS = 2000


def one_input(data: bytes) -> None:
    """The image that a file of these bytes and their digest holds."""
    _names(data[:200].decode(errors="surrogateescape"))
    try:
        with patch.object(image_file, "IMAGE", LIMITS):
            image = _read(data)
    except (RemoteProtocolError, RefusedError) as error:
        assert "\n" not in str(error)
        return
    again = Encoder().encode(image)
    with patch.object(image_file, "IMAGE", LIMITS):
        assert _read(again) == image
    _questions(image)


def _read(data: bytes) -> Image:
    whole = data + hashlib.sha512(data).digest()
    return image_file.read_from(BytesIO(whole), len(whole), Image)[0]


def _names(name: str) -> None:
    for check in (check_name, check_directory):
        try:
            used = check(name)
        except ImageNameError as error:
            assert "\n" not in str(error)
        else:
            assert used == "." or ".." not in used.split("/")
            assert not used.startswith("/")


def _questions(image: Image) -> None:
    if image.filter is not None:
        try:
            PathFilter(image.filter.filter_lines)
        except FilterError:
            pass
    tree = image.file_system
    if tree is None or len(tree) == 0:
        return
    summary = summarise(tree)
    assert summary.directories >= 1
    assert set(tree.objects()) <= set(objects_of(image))
    computed_files(tree)
    repeated_computed_file(tree)
    paths: list[str] = []
    for path, index in tree.walk():
        if len(paths) == MOST_PATHS:
            return
        paths.append(path.decode(errors="surrogateescape"))
        assert tree.lookup(path) == index
    numbers, inodes, links = find_inodes(tree, paths)
    assert set(numbers.values()) == set(inodes) == set(links)
