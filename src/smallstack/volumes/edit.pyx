# distutils: sources = csrc/ext4_edit.c csrc/ext4_edit_block.c csrc/ext4_edit_inode.c csrc/ext4_edit_dir.c csrc/ext4_edit_path.c csrc/ext4_fields.c csrc/ext4_dir.c csrc/ext4_hash.c csrc/ext4_extent.c csrc/ext4_layout.c csrc/ext4_csum.c csrc/crc32c.c csrc/qcow2_overlay.c
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/ext4_edit.h and csrc/qcow2_overlay.h: changes over a brick, and writing them."""

import errno
import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef extern from "ext4_edit.h" nogil:
    struct ss_edit_block:
        uint64_t number
        uint8_t *data
    struct ss_edit:
        bint no_inodes
    int ss_edit_open(ss_edit *edit, int fd, uint64_t offset, uint64_t length, int64_t time,
                     uint32_t flags)
    void ss_edit_close(ss_edit *edit)
    int ss_edit_identity(ss_edit *edit, const char *label, const uint8_t *uuid)
    int ss_edit_mkdir(ss_edit *edit, const char *path)
    int ss_edit_write(ss_edit *edit, const char *path, const uint8_t *data, uint64_t length)
    int64_t ss_edit_read(ss_edit *edit, const char *path, uint8_t *out, uint64_t room)
    int ss_edit_changes(ss_edit *edit, ss_edit_block **list, uint32_t *count)

cdef extern from "qcow2_overlay.h" nogil:
    struct ss_change:
        uint64_t offset
        const uint8_t *data
        uint32_t length
    int ss_qcow2_overlay(int fd, const char *name, uint64_t size,
                         const ss_change *changes, uint32_t count, uint64_t *written)
    int ss_changes_apply(int fd, const ss_change *changes, uint32_t count, uint64_t *written)


cdef class Edit:
    """Changes to the ext4 file system at byte ``offset`` of ``fd``, kept in memory.

    The file is only read, and must stay open as long as the edit. ``length`` is the bytes from
    ``offset`` to its end; ``time``, in seconds, is the mtime of what is made. Every method raises
    OSError with the errno of csrc/ext4_edit.h; the edit is of no use afterwards.
    """

    cdef ss_edit edit
    cdef ss_change *changes
    cdef ss_edit_block *blocks
    cdef uint32_t count
    cdef uint64_t offset

    def __cinit__(self, int fd, uint64_t offset, uint64_t length, int64_t time):
        memset(&self.edit, 0, sizeof(self.edit))
        self.changes = NULL
        self.blocks = NULL
        self.count = 0
        self.offset = offset
        self.check(ss_edit_open(&self.edit, fd, offset, length, time, 0))

    def __dealloc__(self):
        ss_edit_close(&self.edit)
        free(self.changes)
        free(self.blocks)

    cdef check(self, int64_t rc, about=None):
        if rc < 0:
            text = os.strerror(-rc)
            if -rc == errno.ENOSPC:
                text = "no free inode" if self.edit.no_inodes else "no free block"
            raise OSError(-rc, text, about)

    def identity(self, bytes label, bytes uuid):
        """Gives all copies of the super block another label (at most 16 bytes) and UUID (16)."""
        cdef char padded[16]
        if len(label) > 16 or len(uuid) != 16:
            raise ValueError("a label has at most 16 bytes, a UUID 16")
        memset(padded, 0, 16)
        memcpy(padded, <const char *>label, len(label))
        self.check(ss_edit_identity(&self.edit, padded, <const uint8_t *>uuid))

    def mkdir(self, bytes path):
        """Makes a directory, and those above it; one that is there stays as it is."""
        self.check(ss_edit_mkdir(&self.edit, path), path)

    def write(self, bytes path, bytes data):
        """Puts a regular file in the place of what was there; directories above it are made."""
        self.check(ss_edit_write(&self.edit, path, data, <uint64_t>len(data)), path)

    def read(self, bytes path, size_t room):
        """The content of a regular file of at most ``room`` bytes."""
        cdef uint8_t *out = <uint8_t *>malloc(room + 1)
        cdef int64_t rc
        if out == NULL:
            raise MemoryError
        try:
            rc = ss_edit_read(&self.edit, path, out, room)
            self.check(rc, path)
            return PyBytes_FromStringAndSize(<const char *>out, rc)
        finally:
            free(out)

    cdef collect(self):
        cdef uint32_t i
        free(self.changes)
        free(self.blocks)
        self.changes = NULL
        self.blocks = NULL
        self.check(ss_edit_changes(&self.edit, &self.blocks, &self.count))
        self.changes = <ss_change *>malloc((self.count + 1) * sizeof(ss_change))
        if self.changes == NULL:
            raise MemoryError
        for i in range(self.count):
            self.changes[i].offset = self.offset + self.blocks[i].number * 4096
            self.changes[i].data = self.blocks[i].data
            self.changes[i].length = 4096

    def changed(self):
        """Byte offsets in the file of all changed blocks of 4 KiB, ascending."""
        self.collect()
        return [self.changes[i].offset for i in range(self.count)]

    def write_qcow2(self, int fd, bytes backing_name, uint64_t size):
        """Writes the changes as a qcow2 file over ``backing_name``; the bytes written."""
        cdef uint64_t written = 0
        cdef int rc
        cdef const char *name = backing_name
        self.collect()
        with nogil:
            rc = ss_qcow2_overlay(fd, name, size, self.changes, self.count, &written)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return written

    def apply(self, int fd):
        """Writes the changes into a copy of the file; the bytes written."""
        cdef uint64_t written = 0
        cdef int rc
        self.collect()
        with nogil:
            rc = ss_changes_apply(fd, self.changes, self.count, &written)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return written


def write_empty_qcow2(int fd, bytes backing_name, uint64_t size):
    """Writes a qcow2 file of ``size`` bytes that shows ``backing_name``, and zeros behind its end.

    Raises OSError as `Edit.write_qcow2`.
    """
    cdef uint64_t written = 0
    cdef int rc
    cdef const char *name = backing_name
    with nogil:
        rc = ss_qcow2_overlay(fd, name, size, NULL, 0, &written)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
