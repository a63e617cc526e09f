"""What the glue modules share of csrc/diff_stream.h."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from smallstack.volumes.qcow2.compare cimport ss_extent

cdef extern from "diff_stream.h" nogil:
    struct ss_diff:
        uint32_t flags
        uint32_t block_size
        uint32_t frame_blocks
        uint64_t old_size
        uint64_t new_size
        uint64_t extent_count
        uint64_t block_count
        uint64_t first_block
        uint8_t *identity
        uint8_t *chain
        ss_extent *extents


cdef class Plan:
    cdef ss_diff diff
