# distutils: sources = csrc/object_pack.c csrc/object_digests.c csrc/quick_sum.c csrc/crc32c.c csrc/sha512.c csrc/blake3.c
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/object_pack.h, csrc/object_digests.h and csrc/sha512.h, without the interpreter's lock."""

from cpython.bytes cimport PyBytes_AsString
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "object_pack.h" nogil:
    enum: SS_PACK_ALIGN
    struct ss_pack_object:
        const uint8_t *hash
        const uint8_t *data
        size_t size
        uint8_t blake3[32]
        uint8_t sum[16]
    int64_t ss_pack_enter(int fd, uint64_t offset, ss_pack_object *objects, size_t count,
                          int *error)

cdef extern from "object_digests.h" nogil:
    enum: SS_DIGESTS_FILES
    struct ss_digests:
        pass
    struct ss_digests_file:
        uint8_t sha512[64]
        uint8_t blake3[32]
        uint8_t sum[16]
        int error
    ss_digests *ss_digests_new()
    void ss_digests_free(ss_digests *all)
    int ss_digests_add(ss_digests *all, int fd, uint64_t size)
    unsigned ss_digests_read(ss_digests *all, unsigned passes)
    ss_digests_file ss_digests_take(ss_digests *all, unsigned place)

cdef extern from "sha512.h" nogil:
    struct ss_sha512_message:
        const uint8_t *data
        size_t length
        uint8_t digest[64]
    unsigned ss_sha512_lanes()
    int ss_sha512_many_lanes(unsigned lanes, ss_sha512_message *messages, size_t count)


cdef ss_pack_object *take(list objects) except NULL:
    """The objects as C has them; raises ValueError for one that is not within its buffer."""
    cdef size_t count = len(objects), i, at, size, end
    cdef const uint8_t[::1] view
    cdef ss_pack_object *list_ = <ss_pack_object *>calloc(count + 1, sizeof(ss_pack_object))
    if list_ == NULL:
        raise MemoryError
    last = None
    try:
        for i in range(count):
            hash_, buffer, at, size = objects[i]
            if buffer is not last:
                view = last = buffer  # the caller's list keeps it alive
            end = <size_t>view.shape[0]
            if len(hash_) != 64 or size == 0 or size > end or at > end - size:
                raise ValueError("an object outside of its buffer")
            list_[i].hash = <const uint8_t *>PyBytes_AsString(hash_)
            list_[i].data = &view[at]
            list_[i].size = size
    except BaseException:
        free(list_)
        raise
    return list_


def check(list objects not None):
    """As `enter`, without writing them: how many are right, and the BLAKE3 of each of those."""
    cdef size_t count = len(objects), i
    cdef int64_t right
    cdef int error = 0
    cdef ss_pack_object *list_ = take(objects)
    try:
        with nogil:
            right = ss_pack_enter(-1, 0, list_, count, &error)
        if right < 0:
            raise MemoryError
        return right, [list_[i].blake3[:32] for i in range(<size_t>right)]
    finally:
        free(list_)


def enter(int fd, uint64_t offset, list objects not None, number, kind):
    """Checks objects and writes those before the first wrong one into a pack, from ``offset`` on.

    An object is (SHA-512, buffer, where it begins in that, size), in bytes. Returns the number of
    the first whose content has another SHA-512 (or how many there are), what was stored: ``kind``,
    a tuple, of (SHA-512, size, BLAKE3, True, ``number`` of the pack, where it begins in that, quick
    sum); where the last one ends, and 0 or a negative errno of writing. Raises ValueError for an object that is
    not within its buffer.
    """
    cdef size_t count = len(objects), i
    cdef uint64_t at = offset, size
    cdef int64_t right
    cdef int error = 0
    cdef list stored = []
    cdef ss_pack_object *list_ = take(objects)
    make = tuple.__new__
    try:
        with nogil:
            right = ss_pack_enter(fd, offset, list_, count, &error)
        if right < 0:
            raise MemoryError
        for i in range(<size_t>right):
            hash_ = (<tuple>objects[i])[0]
            size = list_[i].size
            stored.append(make(kind, (hash_, size, list_[i].blake3[:32], True, number, at,
                                      list_[i].sum[:16])))
            at += (size + SS_PACK_ALIGN - 1) // SS_PACK_ALIGN * SS_PACK_ALIGN
        return right, stored, at, error
    finally:
        free(list_)


def split(list objects not None, size_t first, buffer, size_t at, uint64_t most, list whole not None):
    """Cut a buffer, from ``at`` on, into the objects (SHA-512, size) that come from ``first`` on.

    Stops at one of more than ``most`` bytes or one that is not whole, and returns its number and
    where it begins. What is whole is added to ``whole``, in the form in which `enter` takes it.
    """
    cdef size_t count = len(objects), end = len(buffer)
    cdef uint64_t size
    while first < count:
        hash_, length = <tuple>objects[first]
        size = length
        if size > most or size > end - at:
            break
        whole.append((hash_, buffer, at, length))
        at += size
        first += 1
    return first, at


def total(list objects not None):
    """Bytes that objects, in the form in which `enter` takes them, have, and take in a pack."""
    cdef uint64_t size, bytes_ = 0, taken = 0
    for one in objects:
        size = (<tuple>one)[3]
        bytes_ += size
        taken += (size + SS_PACK_ALIGN - 1) // SS_PACK_ALIGN * SS_PACK_ALIGN
    return bytes_, taken


cdef class Digests:
    """SHA-512 and BLAKE3 of files that come one after the other; one thread at a time uses it."""

    cdef ss_digests *all
    cdef list owners
    cdef readonly unsigned reading

    def __cinit__(self):
        self.all = ss_digests_new()
        if self.all == NULL:
            raise MemoryError
        self.owners = [None] * SS_DIGESTS_FILES
        self.reading = 0

    def __dealloc__(self):
        ss_digests_free(self.all)

    @property
    def full(self):
        """Whether as many files are read as can be."""
        return self.reading == SS_DIGESTS_FILES

    def add(self, int fd, uint64_t size, owner):
        """Have a file of ``size`` bytes read too, which has to stay open until it has ended."""
        cdef int place
        if size == 0:
            raise ValueError("an object has at least one byte")
        place = ss_digests_add(self.all, fd, size)
        if place < 0:
            raise ValueError("as many files are read as can be")
        self.owners[place] = owner
        self.reading += 1

    def read(self, unsigned passes):
        """Read on until a file ends, ``passes`` parts of each at most.

        What has ended: its owner, SHA-512, BLAKE3, quick sum, and 0 or a negative errno.
        """
        cdef unsigned ended, place
        cdef ss_digests_file found
        with nogil:
            ended = ss_digests_read(self.all, passes)
        done = []
        for place in range(<unsigned>SS_DIGESTS_FILES):
            if ended & (1u << place):
                found = ss_digests_take(self.all, place)
                done.append(
                    (self.owners[place], found.sha512[:64], found.blake3[:32], found.sum[:16],
                     found.error)
                )
                self.owners[place] = None
                self.reading -= 1
        return done


def sha512_lanes():
    """How many messages this processor hashes side by side: 1, 4 or 8."""
    return ss_sha512_lanes()


def sha512_many(list messages not None, unsigned lanes=0):
    """The SHA-512 of each message; ``lanes`` forces a kernel (ValueError: not on this CPU)."""
    cdef size_t count = len(messages), i
    cdef int rc
    cdef ss_sha512_message *list_
    if lanes == 0:
        lanes = ss_sha512_lanes()
    list_ = <ss_sha512_message *>calloc(count + 1, sizeof(ss_sha512_message))
    if list_ == NULL:
        raise MemoryError
    try:
        for i in range(count):
            list_[i].data = <const uint8_t *>PyBytes_AsString(messages[i])
            list_[i].length = <size_t>len(messages[i])
        with nogil:
            rc = ss_sha512_many_lanes(lanes, list_, count)
        if rc < 0:
            raise ValueError(f"no SHA-512 kernel of {lanes} lanes on this processor")
        return [list_[i].digest[:64] for i in range(count)]
    finally:
        free(list_)
