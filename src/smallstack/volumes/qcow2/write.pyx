# distutils: sources = csrc/disk_file.c csrc/qcow2_edit.c csrc/qcow2_edit_room.c csrc/qcow2_build.c csrc/qcow2_compact.c csrc/diff_stream.c csrc/blake3.c csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c csrc/qcow2_extents.c csrc/qcow2_check.c
# distutils: libraries = z zstd
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over what writes disks: csrc/disk_file.h, csrc/qcow2_edit.h, csrc/qcow2_build.h."""

import errno
import os

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from smallstack.volumes.qcow2.codec cimport Plan
from smallstack.volumes.qcow2.compare cimport Extents, ss_extent
from smallstack.volumes.qcow2.image cimport Qcow2, View, ss_qcow2, ss_view

from smallstack.volumes.qcow2.errors import DiskUnwritableError

cdef extern from "disk_file.h" nogil:
    int ss_file_reserve(int fd, const ss_extent *extents, uint64_t count)
    int ss_file_zero(int fd, uint64_t offset, uint64_t length)

cdef extern from "qcow2_edit.h" nogil:
    struct ss_qcow2_edit:
        bint finished
    int ss_qcow2_edit_open(ss_qcow2_edit *edit, ss_qcow2 *image, ss_view *view,
                           const ss_extent *extents, uint64_t count, uint64_t new_size)
    int ss_qcow2_edit_write(ss_qcow2_edit *edit, uint64_t offset, const void *data,
                            uint64_t length)
    int ss_qcow2_edit_finish(ss_qcow2_edit *edit)
    void ss_qcow2_edit_close(ss_qcow2_edit *edit)

cdef extern from "qcow2_build.h" nogil:
    enum ss_packing:
        SS_PACK_NONE
    struct ss_qcow2_build:
        uint64_t size
    int ss_build_open(ss_qcow2_build *build, int fd, uint64_t size, unsigned cluster_bits,
                      ss_packing packing, int level)
    int ss_build_view(ss_qcow2_build *build, ss_view *view, uint64_t *offset, uint64_t most)
    int ss_build_finish(ss_qcow2_build *build)
    void ss_build_close(ss_qcow2_build *build)
    int ss_flatten_raw(int fd, ss_view *view, uint64_t *offset, uint64_t most)

cdef extern from "qcow2_compact.h" nogil:
    int ss_qcow2_compact(ss_qcow2 *image, int fd)


cdef raise_os(int rc):
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))


def reserve_plan(int fd, Plan plan):
    """Take the room for a stream's blocks in a raw file, or raise OSError and take none."""
    cdef int rc
    with nogil:
        rc = ss_file_reserve(fd, plan.diff.extents, plan.diff.extent_count)
    raise_os(rc)


def reserve(int fd, Extents extents):
    """Take the room for extents in a raw file, or raise OSError and take none."""
    cdef int rc
    with nogil:
        rc = ss_file_reserve(fd, extents.extents.list, extents.extents.count)
    raise_os(rc)


def zero(int fd, uint64_t offset, uint64_t length):
    """Make a stretch of a raw file read as zeros; raises OSError."""
    cdef int rc
    with nogil:
        rc = ss_file_zero(fd, offset, length)
    raise_os(rc)


cdef class Editor:
    """An edit of a qcow2 image: nothing is changed until `finish`, then all is.

    ``view`` shows the image (its first part, whose descriptor can be written) and what is below it.
    ``changes`` are the extents, or the plan of a stream, inside ``new_size``. A context manager;
    leaving it without `finish` gives back what was taken. Afterwards the image has to be opened
    anew. Raises the classes of ``errors``.
    """

    cdef ss_qcow2_edit *edit
    cdef View view
    cdef Qcow2 image
    cdef object changes

    def __cinit__(self, View view, changes, uint64_t new_size):
        cdef ss_extent *list
        cdef uint64_t count
        cdef int rc
        self.view, self.image, self.changes = view, view.parts[0][0], changes
        if isinstance(changes, Plan):
            list, count = (<Plan>changes).diff.extents, (<Plan>changes).diff.extent_count
        else:
            list, count = (<Extents?>changes).extents.list, (<Extents?>changes).extents.count
        self.edit = <ss_qcow2_edit *>calloc(1, sizeof(ss_qcow2_edit))
        if self.edit == NULL:
            raise MemoryError
        with nogil:
            rc = ss_qcow2_edit_open(self.edit, &self.image.image, &self.view.view, list, count,
                                    new_size)
        if rc < 0:
            self.close()
            self.fail(rc)

    def __dealloc__(self):
        self.close()

    cdef fail(self, int rc):
        if self.image.image.problem != NULL:
            self.image.fail(rc)
        if self.view.view.failed != NULL:
            self.view.fail(rc)
        raise DiskUnwritableError(path=self.image.path, detail=os.strerror(-rc))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    cpdef close(self):
        """Give back what was taken, unless the edit is finished."""
        if self.edit != NULL:
            with nogil:
                ss_qcow2_edit_close(self.edit)
            free(self.edit)
            self.edit = NULL

    def write(self, uint64_t offset, const unsigned char[::1] data not None):
        """Put data inside an extent that is not zeros."""
        cdef int rc
        if self.edit == NULL:
            raise ValueError("the edit is over")
        if data.shape[0] == 0:
            return
        with nogil:
            rc = ss_qcow2_edit_write(self.edit, offset, &data[0], data.shape[0])
        if rc < 0:
            self.fail(rc)

    def finish(self):
        """Make the new disk the image's."""
        cdef int rc
        if self.edit == NULL:
            raise ValueError("the edit is over")
        with nogil:
            rc = ss_qcow2_edit_finish(self.edit)
        if rc < 0:
            self.fail(rc)
        self.close()


PACKINGS = ("none", "zlib", "zstd")


cdef class Builder:
    """Writes what a view shows as a new qcow2 image into the empty file ``fd``.

    ``packing`` is one of PACKINGS, ``level`` its level. Raises OSError for the file, ValueError for
    what the format cannot hold, and the classes of ``errors`` for the view.
    """

    cdef ss_qcow2_build build
    cdef View view

    def __cinit__(self, int fd, View view, unsigned cluster_bits, str packing, int level):
        cdef int number = PACKINGS.index(packing)
        self.view = view
        rc = ss_build_open(&self.build, fd, view.view.size, cluster_bits, <ss_packing>number, level)
        self.check(rc)

    def __dealloc__(self):
        ss_build_close(&self.build)

    cdef check(self, int rc):
        if rc < 0 and self.view.view.failed != NULL:
            self.view.fail(rc)
        if -rc == errno.EFBIG or -rc == errno.EINVAL:
            raise ValueError("the disk is too large for such clusters, or not of whole sectors")
        raise_os(rc)

    def copy(self, uint64_t offset, uint64_t most):
        """Copy about ``most`` bytes from ``offset``, where the last call ended; where to go on."""
        cdef int rc
        self.view.view.failed = NULL
        with nogil:
            rc = ss_build_view(&self.build, &self.view.view, &offset, most)
        self.check(rc)
        return offset

    def finish(self):
        """Write the tables and the header."""
        cdef int rc
        with nogil:
            rc = ss_build_finish(&self.build)
        self.check(rc)


def copy_raw(int fd, View view, uint64_t offset, uint64_t most):
    """Copy about ``most`` bytes of a view into a raw file, zeros left out; where to go on."""
    cdef int rc
    view.view.failed = NULL
    with nogil:
        rc = ss_flatten_raw(fd, &view.view, &offset, most)
    if rc < 0 and view.view.failed != NULL:
        view.fail(rc)
    raise_os(rc)
    return offset


def compact(Qcow2 image, int fd):
    """Copy an image into the empty file ``fd`` without what it does not need."""
    cdef int rc
    with nogil:
        rc = ss_qcow2_compact(&image.image, fd)
    if rc < 0 and image.image.problem != NULL:
        image.fail(rc)
    raise_os(rc)
