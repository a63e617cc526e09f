from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from smallstack.proto.tree cimport ss_entry, ss_inode, ss_tree_problem

cdef extern from "gob.h" nogil:
    enum:
        GOB_E_SHORT, GOB_E_NUMBER, GOB_E_DEPTH, GOB_E_TYPE, GOB_E_FIELD, GOB_E_LENGTH
        GOB_E_DEFINE, GOB_E_VALUE, GOB_E_LIMIT, GOB_E_MEMORY, GOB_E_NAME, GOB_E_TREE
    enum:
        GOB_BOOL, GOB_INT, GOB_UINT, GOB_FLOAT, GOB_BYTES, GOB_STRING, GOB_COMPLEX
        GOB_INTERFACE, GOB_ARRAY, GOB_SLICE, GOB_STRUCT, GOB_MAP, GOB_OPAQUE
        GOB_BUILTINS, GOB_MAX_DEPTH
    uint32_t GOB_NO_TYPE
    enum:
        GOB_SCAN_DONE, GOB_SCAN_MORE, GOB_SCAN_DEFINE

    struct gob_cursor:
        const uint8_t *at
        const uint8_t *end
    struct gob_field:
        const uint8_t *name
        uint32_t name_len
        uint32_t type
    struct gob_type:
        int64_t id
        uint64_t length
        gob_field *fields
        uint32_t field_count
        uint32_t elem
        uint32_t key
        uint32_t kind
    struct gob_types:
        gob_type *type
        uint32_t *by_id
        uint32_t count
        int any_interface
    struct gob_scan:
        uint32_t depth
        uint32_t max_depth
        uint64_t max_count
    struct gob_buffer:
        uint8_t *data
        size_t len
        size_t cap
        int failed

    int gob_read_uint(gob_cursor *, uint64_t *)
    int gob_read_int(gob_cursor *, int64_t *)
    int gob_read_bytes(gob_cursor *, const uint8_t **, uint64_t *)
    int gob_read_type(gob_cursor *, int64_t, gob_type *, gob_field *, uint32_t *)
    int gob_read_byte_array(gob_cursor *, uint8_t *, size_t)
    int gob_types_resolve(gob_types *)
    uint32_t gob_types_find(const gob_types *, int64_t)
    int gob_scan_start(gob_scan *, const gob_types *, uint32_t, gob_cursor *)
    int gob_scan_run(gob_scan *, const gob_types *, gob_cursor *)
    int gob_skip(const gob_types *, uint32_t, gob_cursor *)
    void gob_buffer_free(gob_buffer *)
    int gob_buffer_reserve(gob_buffer *, size_t)
    void gob_write(gob_buffer *, const void *, size_t)
    void gob_move(void *, const void *, size_t)
    void gob_write_moved(gob_buffer *, const void *, size_t)
    void gob_write_uint(gob_buffer *, uint64_t)
    void gob_write_int(gob_buffer *, int64_t)
    void gob_write_bytes(gob_buffer *, const void *, size_t)
    void gob_write_byte_array(gob_buffer *, const uint8_t *, size_t)

cdef extern from "gob_tree.h" nogil:
    enum:
        GOB_TREE_KINDS
    const char *const gob_tree_names[5]
    struct gob_tree:
        gob_buffer inodes
        gob_buffer entries
        gob_buffer blob
        uint64_t num_regular_inodes
        uint64_t total_data_bytes
        uint64_t directory_count
        ss_tree_problem problem
        uint64_t problem_number
    struct gob_tree_announcement:
        int64_t id
        const uint8_t *first
        size_t first_len
        const uint8_t *rest
        size_t rest_len
    int gob_tree_read(const gob_types *, uint32_t, gob_cursor *, uint64_t, int, gob_tree *)
    void gob_tree_free(gob_tree *)
    int gob_tree_kind_of(const ss_inode *)
    int gob_tree_write(const ss_inode *, uint32_t, const ss_entry *, const uint8_t *, uint64_t,
                       uint64_t, uint64_t, gob_tree_announcement *, gob_buffer *, gob_buffer *)
