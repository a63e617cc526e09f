# distutils: libraries = z
# cython: language_level=3, boundscheck=False, wraparound=False
"""Records of the index of a cache, many at a time; see index.py, whose `_added` is the reference."""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "endian.h" nogil:
    uint32_t htole32(uint32_t)
    uint64_t htole64(uint64_t)

cdef extern from "zlib.h" nogil:
    unsigned long crc32(unsigned long crc, const uint8_t *data, unsigned length)

cdef enum:
    RECORD = 128
    ADDED = 1


cdef inline void put64(uint8_t *at, uint64_t value) noexcept:
    value = htole64(value)
    memcpy(at, &value, 8)


def added(list objects not None):
    """The records of objects that were added: (SHA-512, size, BLAKE3, …, pack, offset) each.

    Raises ValueError for a digest of another size.
    """
    cdef size_t count = len(objects), i
    cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(count * RECORD))
    cdef uint8_t *record = <uint8_t *>PyBytes_AsString(data)
    cdef uint32_t sum
    for i in range(count):
        hash_, size, blake3, _, pack, offset, _ = objects[i]
        if len(hash_) != 64 or len(blake3) != 32:
            raise ValueError("a SHA-512 has 64 bytes, a BLAKE3 32")
        memset(record, 0, 8)
        record[0] = ADDED
        put64(record + 8, size)
        put64(record + 16, offset)
        put64(record + 24, pack)
        memcpy(record + 32, PyBytes_AsString(hash_), 64)
        memcpy(record + 96, PyBytes_AsString(blake3), 32)
        sum = htole32(<uint32_t>crc32(crc32(0, record, 4), record + 8, RECORD - 8))
        memcpy(record + 4, &sum, 4)
        record += RECORD
    return data
