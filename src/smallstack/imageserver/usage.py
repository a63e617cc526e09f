"""What images take: as files, as objects that are each stored once, and on disk.

=========  ====================================================================================
logical    bytes of all files of all images, as if each stood for itself
unique     bytes of the objects they refer to, each counted once
stored     bytes that those take on the disk, in whole blocks of its file system
exclusive  bytes of the objects that no other image needs: what deleting them would free
=========  ====================================================================================
"""

import time
from collections import Counter
from collections.abc import Sequence

from smallstack.images.catalogue import ImageCatalogue
from smallstack.images.errors import RefusedError
from smallstack.imageserver.references import References, objects_of
from smallstack.objects.store import ObjectStore
from smallstack.proto.imageserver import GetObjectStatisticsForImagesResponse


def statistics(
    names: Sequence[str],
    catalogue: ImageCatalogue,
    references: References,
    store: ObjectStore,
    *,
    ignore_missing: bool,
) -> GetObjectStatisticsForImagesResponse:
    """The sums over some images. Blocks: every tree is read, every object's file looked at.

    Raises RefusedError for an image that is not there, unless those are ignored; CatalogueError.
    """
    started = time.monotonic_ns()
    found = GetObjectStatisticsForImagesResponse()
    needed: Counter[bytes] = Counter()
    sizes: dict[bytes, int] = {}
    for name in dict.fromkeys(names):
        image = catalogue.get(name)
        if image is None or image.file_system is None:
            if ignore_missing:
                continue
            raise RefusedError(text=f"image not found: {name}: check `imagetool list`")
        objects = objects_of(image)
        sizes |= objects
        needed.update(dict.fromkeys(objects, 1))
        found.num_images += 1
        found.num_file_inodes += image.file_system.num_regular_inodes
        found.total_file_inode_bytes += image.file_system.total_data_bytes
    for hash_, count in needed.items():
        size = sizes[hash_] or store.size(hash_) or 0
        found.num_objects += 1
        found.total_object_bytes += size
        found.stored_object_bytes += store.disk_usage(hash_)
        if references.count(hash_) <= count:
            found.exclusive_objects += 1
            found.exclusive_object_bytes += size
    found.computation_time = time.monotonic_ns() - started
    return found
