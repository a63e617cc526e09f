# distutils: sources = csrc/object_files.c csrc/blake3.c
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/object_files.h: many small objects into files, without the interpreter's lock."""

from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

cdef extern from "object_files.h" nogil:
    struct ss_object_file:
        const uint8_t *hash
        const uint8_t *data
        size_t size
        uint8_t blake3[32]
        int error
    void ss_object_files_write(int directory, unsigned levels, ss_object_file *objects,
                               size_t count)


def write_objects(int directory, bint flat, const uint8_t[::1] data not None,
                  list objects not None):
    """Writes objects into a store; for each its BLAKE3 and 0 or a negative errno.

    ``directory`` is a descriptor; an object is (SHA-512, offset in ``data``, size), both in bytes.
    See csrc/object_files.h for what is left behind by a kill. Raises ValueError for an object that
    is not within ``data``.
    """
    cdef unsigned levels = 1 if flat else 2
    cdef size_t count = len(objects), i, offset, size, end = <size_t>data.shape[0]
    cdef ss_object_file *files
    if not count:
        return []
    files = <ss_object_file *>malloc(count * sizeof(ss_object_file))
    if files == NULL:
        raise MemoryError
    try:
        for i in range(count):
            hash_, offset, size = objects[i]
            if len(hash_) != 64 or size == 0 or size > end or offset > end - size:
                raise ValueError("an object outside of the data")
            files[i].hash = <const uint8_t *>PyBytes_AsString(hash_)  # the caller's list keeps it alive
            files[i].data = &data[offset]
            files[i].size = size
        with nogil:
            ss_object_files_write(directory, levels, files, count)
        return [(files[i].blake3[:32], files[i].error) for i in range(count)]
    finally:
        free(files)
