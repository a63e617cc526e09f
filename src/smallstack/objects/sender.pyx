# distutils: sources = csrc/object_send.c
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/object_send.h, without the interpreter's lock."""

import errno
import os

from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

cdef extern from "object_send.h" nogil:
    enum: SS_SEND_ROOM
    struct ss_object_sent:
        const uint8_t *hash
        uint64_t size
    struct ss_object_directories:
        int store
    struct ss_object_sender:
        int directory
        unsigned levels
        const ss_object_sent *objects
        size_t count
        uint8_t *buffer
        size_t next
        int file
    void ss_object_directories_start(ss_object_directories *directories, int store,
                                     unsigned levels)
    void ss_object_directories_close(ss_object_directories *directories)
    int ss_object_sizes(ss_object_directories *directories, ss_object_sent *objects, size_t count)
    int64_t ss_object_send(ss_object_sender *sender, int fd, uint64_t most, int linger_ms)
    int ss_object_all_sent(const ss_object_sender *sender)

cdef extern from "unistd.h" nogil:
    int close(int fd)


cdef ss_object_sent *take(list hashes) except NULL:
    cdef size_t count = len(hashes), i
    cdef ss_object_sent *objects = <ss_object_sent *>calloc(count + 1, sizeof(ss_object_sent))
    if objects == NULL:
        raise MemoryError
    for i in range(count):
        if len(hashes[i]) != 64:
            free(objects)
            raise ValueError("a SHA-512 digest has 64 bytes")
        objects[i].hash = <const uint8_t *>PyBytes_AsString(hashes[i])
    return objects


def sizes(int directory, bint flat, list hashes not None):
    """Bytes of each object of the store at a descriptor, 0 for what it lacks. Raises OSError."""
    cdef size_t count = len(hashes), i
    cdef ss_object_sent *objects = take(hashes)
    cdef ss_object_directories directories
    cdef int rc
    try:
        with nogil:
            ss_object_directories_start(&directories, directory, 1 if flat else 2)
            rc = ss_object_sizes(&directories, objects, count)
            ss_object_directories_close(&directories)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return [objects[i].size for i in range(count)]
    finally:
        free(objects)


cdef class ObjectSender:
    """Sends objects of a store into a non-blocking socket; one thread at a time uses it."""

    cdef ss_object_sender sender
    cdef list hashes

    def __cinit__(self, int directory, bint flat, list hashes not None, list sizes not None):
        """``directory`` is a descriptor; each object has as many bytes as ``sizes`` says."""
        cdef ss_object_sent *objects
        cdef size_t count = len(hashes), i
        self.sender.file = -1
        self.sender.directory = directory
        self.sender.levels = 1 if flat else 2
        if <size_t>len(sizes) != count:
            raise ValueError("a size for each object")
        self.hashes = list(hashes)
        objects = take(self.hashes)
        self.sender.objects = objects
        for i in range(count):
            objects[i].size = sizes[i]
        self.sender.count = count
        self.sender.buffer = <uint8_t *>malloc(SS_SEND_ROOM)
        if self.sender.buffer == NULL:
            raise MemoryError

    def close(self):
        """Close the file that is open; nothing can be sent after it."""
        if self.sender.file >= 0:
            close(self.sender.file)
            self.sender.file = -1
        self.sender.next = self.sender.count

    def __dealloc__(self):
        if self.sender.file >= 0:
            close(self.sender.file)
        free(<void *>self.sender.objects)
        free(self.sender.buffer)

    @property
    def done(self):
        """Whether all is out."""
        return bool(ss_object_all_sent(&self.sender))

    @property
    def hash(self):
        """The digest of the object that an error is about."""
        return self.hashes[self.sender.next - 1] if self.sender.next else b""

    def send(self, int fd, uint64_t most, int linger_ms):
        """Send what goes, ``most`` bytes or so; how many that were.

        Once something has gone, room for more is waited for, ``linger_ms`` each time.

        Raises OSError, with ENODATA for an object whose file is too short.
        """
        cdef int64_t out
        with nogil:
            out = ss_object_send(&self.sender, fd, most, linger_ms)
        if out < 0:
            raise OSError(-out, os.strerror(-out))
        return out
