# distutils: sources = csrc/diff_stream.c csrc/blake3.c csrc/qcow2_extents.c csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c
# distutils: libraries = z zstd
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/diff_stream.h: the parts of a diff stream, without any I/O of its own."""

import errno

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from smallstack.volumes.qcow2.compare cimport Extents, ss_extent
from smallstack.volumes.qcow2.image cimport View, ss_view

cdef extern from "zstd.h" nogil:
    void *ZSTD_createDCtx()
    size_t ZSTD_freeDCtx(void *context)

cdef extern from "diff_stream.h" nogil:
    enum:
        SS_DIFF_HEADER
        SS_DIFF_FRAME
        SS_DIFF_TRAILER
        SS_DIFF_OLD_DIGESTS
    struct ss_diff_frame:
        uint64_t first
        uint32_t blocks
        uint32_t stored
        uint32_t raw
        uint32_t digests
    struct ss_diff_encoder:
        pass
    int ss_diff_make(ss_diff *diff, const ss_extent *extents, uint64_t count,
                     const uint8_t *fingerprint)
    uint64_t ss_diff_head_length(const ss_diff *diff)
    void ss_diff_write_head(const ss_diff *diff, uint8_t *out)
    int ss_diff_read_header(ss_diff *diff, const uint8_t *header)
    int ss_diff_read_head(ss_diff *diff, const uint8_t *head, uint64_t length)
    void ss_diff_free(ss_diff *diff)
    void ss_diff_place(const ss_diff *diff, uint64_t block, uint64_t *offset, uint32_t *length)
    uint32_t ss_diff_frame_blocks(const ss_diff *diff, uint64_t first)
    int ss_diff_encoder_open(ss_diff_encoder *encoder, const ss_diff *diff, int level)
    void ss_diff_encoder_close(ss_diff_encoder *encoder)
    uint64_t ss_diff_frame_room(const ss_diff *diff)
    int64_t ss_diff_encode(ss_diff_encoder *encoder, const ss_diff *diff, ss_view *old,
                           ss_view *new, uint64_t first, uint8_t *out)
    int ss_diff_read_frame(const ss_diff *diff, const uint8_t *head, uint64_t first,
                           ss_diff_frame *frame)
    int ss_diff_decode(const ss_diff *diff, const ss_diff_frame *frame, const uint8_t *body,
                       void *context, uint8_t *out)
    void ss_diff_chain(uint8_t *chain, const uint8_t *digests, uint64_t length)
    void ss_diff_write_trailer(const ss_diff *diff, const uint8_t *chain, uint8_t *out)
    int ss_diff_read_trailer(const ss_diff *diff, const uint8_t *trailer, const uint8_t *chain)
    void ss_diff_digests(const ss_diff *diff, uint64_t first, uint32_t blocks,
                         const uint8_t *data, uint8_t *digests)

HEADER = SS_DIFF_HEADER
FRAME = SS_DIFF_FRAME
TRAILER = SS_DIFF_TRAILER


class NotAStreamError(ValueError):
    """Bytes that are not part of a diff stream, or not of this one."""


cdef check(int64_t rc):
    if rc == -errno.ENOMEM:
        raise MemoryError
    if rc == -errno.ENOTSUP:
        raise NotAStreamError("it has a version that is not known here")
    if rc == -errno.EFBIG:
        raise NotAStreamError("it has too many extents")
    if rc < 0:
        raise NotAStreamError("it is not what was written")


cdef class Plan:
    """What a stream consists of: sizes, extents, the places of its blocks.

    Made by `plan` from extents, or by `read` from a header. Blocks are numbered from 0; frames
    begin at multiples of ``frame_blocks``.
    """

    def __dealloc__(self):
        ss_diff_free(&self.diff)

    @staticmethod
    def plan(Extents extents, uint64_t old_size, uint64_t new_size, bytes fingerprint, *,
             bint old_digests=True, uint32_t block_size=65536, uint32_t frame_blocks=16):
        """For ``extents``; ``fingerprint`` (32 bytes) stands for both disks."""
        cdef Plan self = Plan.__new__(Plan)
        if len(fingerprint) != 32:
            raise ValueError("a fingerprint has 32 bytes")
        self.diff.flags = SS_DIFF_OLD_DIGESTS if old_digests else 0
        self.diff.block_size = block_size
        self.diff.frame_blocks = frame_blocks
        self.diff.old_size = old_size
        self.diff.new_size = new_size
        check(ss_diff_make(&self.diff, extents.extents.list, extents.extents.count,
                           <const uint8_t *><const char *>fingerprint))
        return self

    @staticmethod
    def head_length(bytes header):
        """The bytes of header and table, by the first HEADER bytes."""
        cdef ss_diff diff
        if len(header) != SS_DIFF_HEADER:
            raise NotAStreamError("its header is cut off")
        check(ss_diff_read_header(&diff, <const uint8_t *><const char *>header))
        return ss_diff_head_length(&diff)

    @staticmethod
    def read(bytes head):
        """From header and table."""
        cdef Plan self = Plan.__new__(Plan)
        check(ss_diff_read_head(&self.diff, <const uint8_t *><const char *>head, len(head)))
        return self

    @property
    def old_size(self):
        """Bytes of the old disk."""
        return self.diff.old_size

    @property
    def new_size(self):
        """Bytes of the new disk."""
        return self.diff.new_size

    @property
    def blocks(self):
        """How many blocks all data extents have."""
        return self.diff.block_count

    @property
    def frame_blocks(self):
        """Blocks of a frame; the last may have fewer."""
        return self.diff.frame_blocks

    @property
    def first_block(self):
        """Where this stream begins: 0, or where it goes on."""
        return self.diff.first_block

    @property
    def old_digests(self):
        """Whether frames tell the digests of the old disk's blocks."""
        return bool(self.diff.flags & SS_DIFF_OLD_DIGESTS)

    @property
    def identity(self):
        """32 bytes that stand for the stream."""
        return self.diff.identity[:32]

    @property
    def first_chain(self):
        """The chain before the first block."""
        return self.diff.chain[:32]

    def extents(self):
        """``(offset, length, zeros)`` of each."""
        cdef uint64_t i
        return [
            (self.diff.extents[i].offset, self.diff.extents[i].length,
             bool(self.diff.extents[i].zero))
            for i in range(self.diff.extent_count)
        ]

    def head(self, uint64_t first_block=0, bytes chain=None):
        """Header and table of a stream that begins at a frame, with the chain before it."""
        if first_block > self.diff.block_count or (
            first_block % self.diff.frame_blocks and first_block != self.diff.block_count
        ):
            raise ValueError("a stream begins at a frame")
        cdef bytes out = PyBytes_FromStringAndSize(NULL, ss_diff_head_length(&self.diff))
        self.diff.first_block = first_block
        if chain is not None:
            if len(chain) != 32:
                raise ValueError("a chain has 32 bytes")
            memcpy(self.diff.chain, <const char *>chain, 32)
        ss_diff_write_head(&self.diff, <uint8_t *>PyBytes_AS_STRING(out))
        return out

    def places(self, uint64_t first):
        """``(offset, length)`` of each block of the frame that begins at ``first``."""
        cdef uint64_t offset, i
        cdef uint32_t length
        if first >= self.diff.block_count:
            return []
        found = []
        for i in range(ss_diff_frame_blocks(&self.diff, first)):
            ss_diff_place(&self.diff, first + i, &offset, &length)
            found.append((offset, length))
        return found

    def frame_lengths(self, uint64_t first, bytes head):
        """Bytes of digests and bytes stored behind a frame's head; it must begin at ``first``."""
        cdef ss_diff_frame frame
        if len(head) != SS_DIFF_FRAME:
            raise NotAStreamError("a frame is cut off")
        check(ss_diff_read_frame(&self.diff, <const uint8_t *><const char *>head, first, &frame))
        return frame.digests, frame.stored

    def digests(self, uint64_t first, bytes data):
        """The digests of the blocks of the frame that begins at ``first``, held in ``data``."""
        cdef uint32_t blocks = ss_diff_frame_blocks(&self.diff, first)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, blocks * 32)
        cdef const uint8_t *from_ = <const uint8_t *><const char *>data
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
        if sum(length for _, length in self.places(first)) != len(data):
            raise ValueError("that is not a frame's data")
        with nogil:
            ss_diff_digests(&self.diff, first, blocks, from_, to)
        return out

    def trailer(self, bytes chain):
        """What ends the stream."""
        cdef uint8_t out[48]
        if len(chain) != 32:
            raise ValueError("a chain has 32 bytes")
        ss_diff_write_trailer(&self.diff, <const uint8_t *><const char *>chain, out)
        return out[:SS_DIFF_TRAILER]

    def check_trailer(self, bytes trailer, bytes chain):
        """Raises NotAStreamError unless this ends the stream."""
        if len(trailer) != SS_DIFF_TRAILER or len(chain) != 32:
            raise NotAStreamError("its end is cut off")
        check(ss_diff_read_trailer(&self.diff, <const uint8_t *><const char *>trailer,
                                   <const uint8_t *><const char *>chain))


def next_chain(bytes chain, bytes digests):
    """The chain behind a frame with these digests."""
    cdef uint8_t out[32]
    if len(chain) != 32:
        raise ValueError("a chain has 32 bytes")
    memcpy(out, <const char *>chain, 32)
    ss_diff_chain(out, <const uint8_t *><const char *>digests, len(digests))
    return out[:32]


cdef class Encoder:
    """Makes frames of what two views show. Belongs to one thread at a time, as its views do."""

    cdef ss_diff_encoder encoder
    cdef uint8_t *out
    cdef Plan plan
    cdef View old, new

    def __cinit__(self, Plan plan, View old, View new, int level):
        memset(&self.encoder, 0, sizeof(self.encoder))
        self.plan, self.old, self.new = plan, old, new
        self.out = <uint8_t *>malloc(ss_diff_frame_room(&plan.diff))
        if self.out == NULL:
            raise MemoryError
        check(ss_diff_encoder_open(&self.encoder, &plan.diff, level))

    def __dealloc__(self):
        free(self.out)
        ss_diff_encoder_close(&self.encoder)

    def frame(self, uint64_t first):
        """The frame that begins at block ``first``: its bytes, and those of its digests."""
        cdef int64_t got
        if first >= self.plan.diff.block_count:
            raise ValueError("there is no such block")
        self.old.view.failed = self.new.view.failed = NULL
        with nogil:
            got = ss_diff_encode(&self.encoder, &self.plan.diff, &self.old.view, &self.new.view,
                                 first, self.out)
        if got < 0:
            (self.old if self.old.view.failed != NULL else self.new).fail(<int>got)
        width = 64 if self.plan.diff.flags & SS_DIFF_OLD_DIGESTS else 32
        end = SS_DIFF_FRAME + ss_diff_frame_blocks(&self.plan.diff, first) * width
        return self.out[:got], self.out[SS_DIFF_FRAME:end]


cdef class Decoder:
    """Unpacks and checks frames. Belongs to one thread at a time."""

    cdef void *context
    cdef Plan plan

    def __cinit__(self, Plan plan):
        self.plan = plan
        self.context = ZSTD_createDCtx()
        if self.context == NULL:
            raise MemoryError

    def __dealloc__(self):
        ZSTD_freeDCtx(self.context)

    def data(self, uint64_t first, bytes head, bytes body):
        """The blocks of the frame that begins at ``first``, one after the other.

        ``body`` is what follows the head. Raises NotAStreamError unless every block has its digest.
        """
        cdef ss_diff_frame frame
        cdef int rc
        if len(head) != SS_DIFF_FRAME:
            raise NotAStreamError("a frame is cut off")
        check(ss_diff_read_frame(&self.plan.diff, <const uint8_t *><const char *>head, first,
                                 &frame))
        if len(body) != frame.digests + frame.stored:
            raise NotAStreamError("a frame is cut off")
        cdef bytes out = PyBytes_FromStringAndSize(NULL, frame.raw)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
        cdef const uint8_t *from_ = <const uint8_t *><const char *>body
        with nogil:
            rc = ss_diff_decode(&self.plan.diff, &frame, from_, self.context, to)
        check(rc)
        return out
