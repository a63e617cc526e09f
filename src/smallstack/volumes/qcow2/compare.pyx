# distutils: sources = csrc/qcow2_extents.c csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c
# distutils: libraries = z zstd
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/qcow2_extents.h: what differs between two views."""

from smallstack.volumes.qcow2.image cimport View


cdef class Extents:
    """Stretches of a disk, ascending: a sequence of ``(offset, length, reads as zeros)``."""

    def __dealloc__(self):
        ss_extents_free(&self.extents)

    def __len__(self):
        return self.extents.count

    def __getitem__(self, index):
        cdef uint64_t i = index if index >= 0 else index + <int64_t>self.extents.count
        if i >= self.extents.count:
            raise IndexError(index)
        cdef ss_extent *extent = &self.extents.list[i]
        return extent.offset, extent.length, bool(extent.zero)

    @property
    def bytes(self):
        """Bytes in all of them."""
        return self.extents.bytes

    @property
    def tables(self):
        """How many L2 tables were read to find them."""
        return self.extents.tables


def differing(View old, View new):
    """What differs in ``new`` from ``old``, by their tables alone; see csrc/qcow2_extents.h."""
    cdef Extents found = Extents.__new__(Extents)
    cdef int rc
    with nogil:
        rc = ss_extents_find(&old.view, &new.view, &found.extents)
    if rc < 0:
        (old if old.view.failed != NULL else new).fail(rc)
    return found


def dirty(View view, uint32_t bitmap):
    """What a bitmap (by its index) of the topmost image marks."""
    cdef Extents found = Extents.__new__(Extents)
    cdef int rc
    with nogil:
        rc = ss_extents_dirty(&view.view, bitmap, &found.extents)
    if rc < 0:
        view.fail(rc)
    return found
