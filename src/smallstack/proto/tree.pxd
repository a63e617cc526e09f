from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "tree.h":
    struct ss_inode:
        uint64_t number
        uint64_t size
        int64_t mtime_sec
        int32_t mtime_nsec
        uint32_t mode
        uint32_t flags
        uint8_t hash[64]

    struct ss_entry:
        uint32_t inode
        uint32_t name_off
        uint32_t name_len

cdef extern from "tree_check.h" nogil:
    enum ss_tree_fault:
        SS_TREE_BAD_MODE, SS_TREE_BAD_RANGE, SS_TREE_BAD_NAME, SS_TREE_DUPLICATE_NAME
        SS_TREE_NO_INODE, SS_TREE_LINKED_DIRECTORY, SS_TREE_BAD_TARGET, SS_TREE_BAD_TIME
        SS_TREE_DUPLICATE_INODE

    struct ss_tree_problem:
        ss_tree_fault fault
        uint32_t inode
        uint32_t entry

    int ss_tree_finish(ss_inode *, uint32_t *, ss_entry *, uint32_t *, const uint8_t *, uint64_t,
                       ss_tree_problem *)
    uint64_t ss_tree_usage(const ss_inode *, uint32_t)
    void ss_tree_totals(const ss_inode *, uint32_t, uint64_t *, uint64_t *, uint64_t *)

cdef int check_tables(ss_inode *, uint32_t *, ss_entry *, uint32_t *, const uint8_t *, uint64_t,
                      ss_tree_problem *) noexcept nogil

cpdef str describe(int fault, uint64_t number, bytes name)
