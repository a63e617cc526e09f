# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: sources = csrc/tree_check.c
"""Checks and sums over packed trees: glue over csrc/tree_check.c."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from smallstack.proto.errors import TreeError

cdef dict _WHAT = {
    SS_TREE_BAD_MODE: "inode {number} has a mode without a file type, or one that does not fit",
    SS_TREE_BAD_RANGE: "inode {number} points outside the tables",
    SS_TREE_BAD_NAME: "inode {number} holds {name!r}, which is no file name",
    SS_TREE_DUPLICATE_NAME: "directory inode {number} holds {name!r} twice",
    SS_TREE_NO_INODE: "{name!r} in directory inode {number} leads to an inode that is not there",
    SS_TREE_LINKED_DIRECTORY: "{name!r} in directory inode {number} is a directory with a second name",
    SS_TREE_BAD_TARGET: "symlink inode {number} has an empty target or one above 4095 bytes",
    SS_TREE_BAD_TIME: "inode {number} has nanoseconds outside 0 to 999999999",
    SS_TREE_DUPLICATE_INODE: "inode number {number} is there twice",
}


cdef int check_tables(ss_inode *inodes, uint32_t *inode_count, ss_entry *entries,
                      uint32_t *entry_count, const uint8_t *blob, uint64_t blob_len,
                      ss_tree_problem *problem) noexcept nogil:
    """ss_tree_finish, for other extensions."""
    return ss_tree_finish(inodes, inode_count, entries, entry_count, blob, blob_len, problem)


cpdef str describe(int fault, uint64_t number, bytes name):
    """What is wrong with a tree, in words."""
    return _WHAT[fault].format(number=number, name=name)


cdef const ss_inode *_inodes(bytes inodes, uint32_t *count) except NULL:
    if len(inodes) % sizeof(ss_inode) or len(inodes) >= (<uint64_t>1 << 32) * sizeof(ss_inode):
        raise ValueError("not a table of inodes")
    count[0] = <uint32_t>(len(inodes) // sizeof(ss_inode))
    return <const ss_inode *>PyBytes_AS_STRING(inodes)


def finish(bytes inodes not None, bytes entries not None, bytes blob not None):
    """Checked copies of the tables, without inodes that no name leads to; raises TreeError."""
    cdef uint32_t inode_count = 0, entry_count
    cdef ss_tree_problem problem
    cdef int result
    _inodes(inodes, &inode_count)
    if len(entries) % sizeof(ss_entry) or len(entries) >= (<uint64_t>1 << 32) * sizeof(ss_entry):
        raise ValueError("not a table of entries")
    entry_count = <uint32_t>(len(entries) // sizeof(ss_entry))
    cdef bytes new_inodes = PyBytes_FromStringAndSize(PyBytes_AS_STRING(inodes), len(inodes))
    cdef bytes new_entries = PyBytes_FromStringAndSize(PyBytes_AS_STRING(entries), len(entries))
    cdef ss_inode *inode_table = <ss_inode *>PyBytes_AS_STRING(new_inodes)
    cdef ss_entry *entry_table = <ss_entry *>PyBytes_AS_STRING(new_entries)
    cdef const uint8_t *names = <const uint8_t *>PyBytes_AS_STRING(blob)
    cdef uint64_t blob_len = len(blob)
    if inode_count == 0:
        raise TreeError(what="there is no root directory")
    with nogil:
        result = ss_tree_finish(inode_table, &inode_count, entry_table, &entry_count, names,
                                blob_len, &problem)
    if result == 0:
        return (
            new_inodes[:inode_count * sizeof(ss_inode)],
            new_entries[:entry_count * sizeof(ss_entry)],
            blob,
        )
    if problem.fault == 0:
        raise MemoryError
    name = b""
    if problem.entry < entry_count:
        start = entry_table[problem.entry].name_off
        name = blob[start:start + min(entry_table[problem.entry].name_len, 255)]
    raise TreeError(
        what=describe(problem.fault, inode_table[problem.inode].number, name)
    )


def usage(bytes inodes not None):
    """Estimated bytes on disk, without the root directory."""
    cdef uint32_t count = 0
    cdef const ss_inode *table = _inodes(inodes, &count)
    return ss_tree_usage(table, count)


def totals(bytes inodes not None):
    """Regular files, their bytes, directories with the root."""
    cdef uint32_t count = 0
    cdef uint64_t regular = 0, data = 0, directories = 0
    cdef const ss_inode *table = _inodes(inodes, &count)
    ss_tree_totals(table, count, &regular, &data, &directories)
    return regular, data, directories


def objects(bytes inodes not None):
    """SHA-512 to size of every regular file that is not empty."""
    cdef uint32_t count = 0, i
    cdef const ss_inode *table = _inodes(inodes, &count)
    cdef dict found = {}
    for i in range(count):
        if table[i].size and table[i].mode & 0o170000 == 0o100000 and not table[i].flags & 2:
            found[PyBytes_FromStringAndSize(<const char *>table[i].hash, 64)] = table[i].size
    return found
