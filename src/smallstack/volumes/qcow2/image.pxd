"""What the glue modules share of csrc/qcow2.h."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "qcow2.h" nogil:
    struct ss_qcow2_snapshot:
        uint64_t l1_offset
        uint32_t l1_size
        uint32_t seconds
        uint32_t nanoseconds
        uint64_t vm_clock_ns
        uint64_t vm_state_size
        uint64_t size
        const char *id
        const char *name
        uint16_t id_length
        uint16_t name_length
    struct ss_qcow2_bitmap:
        uint64_t table_offset
        uint32_t flags
        uint32_t granularity_bits
        bint usable
        const char *name
        uint16_t name_length
    struct ss_qcow2:
        int fd
        const char *problem
        uint64_t problem_at
        uint64_t file_size
        uint64_t size
        uint64_t cluster_size
        uint32_t version
        bint extended
        bint zstd
        uint64_t incompatible
        uint32_t refcount_order
        uint32_t backing_length
        uint32_t backing_format_length
        char *backing
        char *backing_format
        uint32_t snapshot_count
        ss_qcow2_snapshot *snapshots
        uint32_t bitmap_count
        ss_qcow2_bitmap *bitmaps
    int ss_qcow2_open(ss_qcow2 *image, int fd)
    void ss_qcow2_close(ss_qcow2 *image)
    enum ss_run_kind:
        SS_RUN_HOLE
        SS_RUN_ZERO
        SS_RUN_DATA
        SS_RUN_PACKED
    struct ss_run:
        uint64_t offset
        uint64_t length
        uint64_t host
        uint32_t layer
        uint32_t kind
    struct ss_layer:
        ss_qcow2 *image
        int fd
        uint64_t size
    struct ss_view:
        ss_layer *layers
        uint32_t count
        uint64_t size
        const ss_layer *failed
    int ss_layer_qcow2(ss_layer *layer, ss_qcow2 *image, int64_t snapshot)
    void ss_layer_raw(ss_layer *layer, int fd, uint64_t size)
    int ss_view_map(ss_view *view, uint64_t offset, uint64_t limit, ss_run *run)
    int ss_view_read(ss_view *view, uint64_t offset, void *out, uint64_t length)
    int ss_qcow2_dirty(ss_qcow2 *image, uint32_t bitmap, uint64_t offset, ss_run *run)


cdef class Qcow2:
    cdef ss_qcow2 image
    cdef readonly str path
    cdef fail(self, int rc)


cdef class View:
    cdef ss_view view
    cdef readonly tuple parts
    cdef fail(self, int rc)
