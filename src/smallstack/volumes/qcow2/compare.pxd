"""What the glue modules share of csrc/qcow2_extents.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from smallstack.volumes.qcow2.image cimport ss_view

cdef extern from "qcow2_extents.h" nogil:
    struct ss_extent:
        uint64_t offset
        uint64_t length
        uint64_t zero
    struct ss_extents:
        ss_extent *list
        uint64_t count
        uint64_t bytes
        uint64_t tables
    int ss_extents_find(ss_view *old, ss_view *new, ss_extents *out)
    int ss_extents_dirty(ss_view *view, uint32_t bitmap, ss_extents *out)
    void ss_extents_free(ss_extents *extents)


cdef class Extents:
    cdef ss_extents extents
