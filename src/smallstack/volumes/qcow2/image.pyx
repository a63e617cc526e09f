# distutils: sources = csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c csrc/qcow2_check.c
# distutils: libraries = z zstd
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/qcow2.h and csrc/qcow2_check.h: one image file, and what a guest sees of a chain."""

import errno
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from smallstack.volumes.qcow2.errors import (
    DiskDamagedError,
    DiskTooLargeError,
    DiskUnreadableError,
    DiskUnsupportedError,
)

cdef extern from "qcow2_check.h" nogil:
    struct ss_qcow2_verdict:
        uint64_t corruptions
        uint64_t leaks
        uint64_t allocated
        uint64_t packed
        uint64_t total
        uint64_t image_end
        const char *problem
        uint64_t problem_at
    int ss_qcow2_check(ss_qcow2 *image, ss_qcow2_verdict *verdict)

KINDS = ("hole", "zero", "data", "compressed")


def disk_error(int rc, str path, str text=""):
    """The exception for a negative errno of the reader; ``text`` says what it was about."""
    kinds = {
        errno.EUCLEAN: DiskDamagedError,
        errno.EINVAL: DiskUnsupportedError,
        errno.ENOTSUP: DiskUnsupportedError,
        errno.EFBIG: DiskTooLargeError,
    }
    if rc == -errno.ENOMEM:
        return MemoryError(f"no memory for the tables of {path}")
    return kinds.get(-rc, DiskUnreadableError)(path=path, detail=text or os.strerror(-rc))


cdef class Qcow2:
    """One qcow2 file, open at ``fd``, which stays the caller's and open as long as this.

    Belongs to one thread at a time. Raises the classes of ``errors`` for what is wrong with it.
    """

    def __cinit__(self, int fd, str path):
        self.path = path
        cdef int rc
        with nogil:
            rc = ss_qcow2_open(&self.image, fd)
        if rc < 0:
            self.fail(rc)

    def __dealloc__(self):
        ss_qcow2_close(&self.image)

    cdef fail(self, int rc):
        text = ""
        if self.image.problem != NULL:
            text = f"{self.image.problem.decode()} ({self.image.problem_at:#x})"
            self.image.problem = NULL
        raise disk_error(rc, self.path, text)

    @property
    def size(self):
        """Bytes of the disk."""
        return self.image.size

    @property
    def cluster_size(self):
        """Bytes of a cluster."""
        return self.image.cluster_size

    @property
    def version(self):
        """2 or 3."""
        return self.image.version

    @property
    def subclusters(self):
        """Whether L2 entries are extended."""
        return bool(self.image.extended)

    @property
    def compression(self):
        """What compressed clusters are packed with."""
        return "zstd" if self.image.zstd else "zlib"

    @property
    def dirty(self):
        """Whether the image says that its reference counts may be wrong."""
        return bool(self.image.incompatible & 1)

    @property
    def corrupt(self):
        """Whether the image says that it is damaged."""
        return bool(self.image.incompatible & 2)

    @property
    def refcount_bits(self):
        """The width of a reference count."""
        return 1 << self.image.refcount_order

    @property
    def backing(self):
        """The backing file's name as it is recorded, or None."""
        if self.image.backing_length == 0:
            return None
        return os.fsdecode(self.image.backing[: self.image.backing_length])

    @property
    def backing_format(self):
        """The backing file's format as it is recorded, or None."""
        if self.image.backing_format_length == 0:
            return None
        return self.image.backing_format[: self.image.backing_format_length].decode(
            errors="backslashreplace"
        )

    def snapshots(self):
        """Of each: id, name, bytes of the disk then, nanoseconds since the epoch, bytes of state."""
        found = []
        for i in range(self.image.snapshot_count):
            s = &self.image.snapshots[i]
            found.append((
                s.id[: s.id_length].decode(errors="backslashreplace"),
                s.name[: s.name_length].decode(errors="backslashreplace"),
                s.size,
                int(s.seconds) * 1_000_000_000 + s.nanoseconds,
                s.vm_state_size,
            ))
        return found

    def bitmaps(self):
        """Of each: name, bytes a bit stands for, whether it may be used."""
        found = []
        for i in range(self.image.bitmap_count):
            b = &self.image.bitmaps[i]
            name = b.name[: b.name_length].decode(errors="backslashreplace")
            found.append((name, 1 << b.granularity_bits, bool(b.usable)))
        return found

    def dirty_runs(self, uint32_t bitmap):
        """``(offset, length)`` of what the bitmap of this index marks, ascending."""
        cdef ss_run run
        cdef uint64_t offset = 0
        cdef int rc
        runs = []
        while True:
            with nogil:
                rc = ss_qcow2_dirty(&self.image, bitmap, offset, &run)
            if rc < 0:
                self.fail(rc)
            if rc == 0:
                return runs
            runs.append((run.offset, run.length))
            offset = run.offset + run.length

    def check(self):
        """Counts every reference: a dict of corruptions, leaks, clusters and the first problem."""
        cdef ss_qcow2_verdict verdict
        cdef int rc
        with nogil:
            rc = ss_qcow2_check(&self.image, &verdict)
        if rc < 0:
            self.fail(rc)
        problem = None
        if verdict.problem != NULL:
            problem = f"{verdict.problem.decode()} ({verdict.problem_at:#x})"
        return {
            "corruptions": verdict.corruptions,
            "leaks": verdict.leaks,
            "allocated_clusters": verdict.allocated,
            "compressed_clusters": verdict.packed,
            "total_clusters": verdict.total,
            "image_end": verdict.image_end,
            "problem": problem,
        }


cdef class View:
    """What a guest sees: ``parts`` from the top down, each ``(Qcow2, snapshot index or -1)`` or,
    for a raw file, ``(fd, bytes, path)``. Belongs to one thread at a time, and so do its images.
    """

    def __cinit__(self, parts):
        cdef Qcow2 image
        cdef int rc
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("a view has at least one layer")
        self.view.layers = <ss_layer *>calloc(len(self.parts), sizeof(ss_layer))
        if self.view.layers == NULL:
            raise MemoryError
        self.view.count = len(self.parts)
        for i, part in enumerate(self.parts):
            if isinstance(part[0], Qcow2):
                image = part[0]
                rc = ss_layer_qcow2(&self.view.layers[i], &image.image, part[1])
                if rc < 0:
                    image.fail(rc)
            else:
                ss_layer_raw(&self.view.layers[i], part[0], part[1])
        self.view.size = self.view.layers[0].size

    def __dealloc__(self):
        free(self.view.layers)

    cdef fail(self, int rc):
        cdef Qcow2 image
        if self.view.failed != NULL:
            part = self.parts[self.view.failed - self.view.layers]
            if isinstance(part[0], Qcow2):
                image = part[0]
                image.fail(rc)
            raise disk_error(rc, part[2])
        raise disk_error(rc, "a disk")

    @property
    def size(self):
        """Bytes of the disk."""
        return self.view.size

    def map(self, uint64_t offset=0, length=None):
        """Runs ``(offset, length, kind, layer, host offset)`` of the bytes from ``offset`` on.

        ``kind`` is one of KINDS. Raw layers count as data all over.
        """
        cdef ss_run run
        cdef uint64_t end = self.view.size if length is None else offset + <uint64_t>length
        cdef int rc
        if end > self.view.size:
            end = self.view.size
        runs = []
        while offset < end:
            with nogil:
                rc = ss_view_map(&self.view, offset, end - offset, &run)
            if rc < 0:
                self.fail(rc)
            runs.append((run.offset, run.length, KINDS[run.kind], run.layer, run.host))
            offset += run.length
        return runs

    def read(self, uint64_t offset, uint64_t length):
        """The bytes at ``offset``; what lies beyond the disk's end is zeros."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, length)
        cdef char *at = PyBytes_AS_STRING(out)
        cdef int rc
        with nogil:
            rc = ss_view_read(&self.view, offset, at, length)
        if rc < 0:
            self.fail(rc)
        return out
