# distutils: sources = csrc/ext4_write.c csrc/ext4_plan.c csrc/ext4_group.c csrc/ext4_inode.c csrc/ext4_fields.c csrc/ext4_files.c csrc/ext4_sink.c csrc/ext4_tree.c csrc/ext4_dir.c csrc/ext4_hash.c csrc/ext4_extent.c csrc/ext4_xattr.c csrc/ext4_layout.c csrc/ext4_csum.c csrc/blake3.c csrc/quick_sum.c csrc/crc32c.c
# cython: language_level=3, boundscheck=False, wraparound=False
"""Glue over csrc/ext4.h: a packed tree and an object directory become an ext4 file system."""

import errno
import os

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from smallstack.volumes.errors import (
    CorruptObjectError,
    ObjectUnreadableError,
    RootSizeError,
    RootTooSmallError,
    TooManyInodesError,
    TreeInvalidError,
    VolumeWriteError,
    XattrsTooLargeError,
)
from smallstack.volumes.layout import LEAST_BYTES, MOST_BYTES, Layout, path_of

cdef extern from "tree.h" nogil:
    struct ss_inode:
        uint8_t hash[64]
    struct ss_entry:
        uint32_t inode

cdef extern from "ext4.h" nogil:
    struct ss_tree:
        const ss_inode *inodes
        const ss_entry *entries
        const uint8_t *blob
        uint32_t inode_count
        uint32_t entry_count
        uint64_t blob_length
    enum ss_ext4_what:
        SS_EXT4_OK
        SS_EXT4_MEMORY
        SS_EXT4_TREE
        SS_EXT4_XATTRS
        SS_EXT4_BLOCKS
        SS_EXT4_INODES
        SS_EXT4_SIZE
        SS_EXT4_OBJECT_OPEN
        SS_EXT4_OBJECT_READ
        SS_EXT4_OBJECT_SHORT
        SS_EXT4_OBJECT_CORRUPT
        SS_EXT4_WRITE
    struct ss_ext4_report:
        ss_ext4_what what
        uint32_t inode
        uint64_t wanted
        uint64_t have
        const char *detail
        uint64_t blocks
        uint64_t free_blocks
        uint64_t written
        uint32_t inodes
        uint32_t free_inodes
        uint32_t groups
        uint32_t journal_blocks
        uint64_t plan_ns
        uint64_t write_ns
    struct ss_ext4_params:
        uint64_t size
        uint8_t uuid[16]
        char label[16]
        int64_t time
        uint32_t bytes_per_inode
        uint32_t reserved_percent
    struct ss_ext4_object:
        uint8_t check[32]
        bint quick
        uint64_t pack
        uint64_t offset
    ctypedef int (*open_function)(void *, uint32_t, const uint8_t *,
                                  const ss_ext4_object *) noexcept nogil
    ctypedef int (*facts_function)(void *, const uint32_t *, uint32_t,
                                   ss_ext4_object *) noexcept nogil
    struct ss_ext4_source:
        void *context
        open_function open
        facts_function facts
    struct ss_ext4_objects:
        int directory
        unsigned levels
    int ss_ext4_open_stored(void *context, uint32_t inode, const uint8_t *hash,
                            const ss_ext4_object *object) noexcept
    void ss_ext4_close_stored(ss_ext4_objects *objects) noexcept
    int ss_ext4_write(int fd, uint64_t offset, const ss_tree *tree, const ss_ext4_params *params,
                      const ss_ext4_source *source, ss_ext4_report *report) noexcept

cdef extern from "blake3.h" nogil:
    unsigned ss_blake3_lanes()
    int ss_blake3_digest_lanes(unsigned lanes, const void *data, size_t length, uint8_t *digest)
    struct ss_blake3_message:
        const uint8_t *data
        size_t length
        uint8_t digest[32]
    enum: SS_BLAKE3_SMALL
    void ss_blake3_small(ss_blake3_message *messages, size_t count)

cdef extern from "ext4_dir.h" nogil:
    uint32_t ss_dir_hash(const uint32_t *seed, const uint8_t *name, uint32_t length)


cdef struct context:
    ss_ext4_objects objects  # first: ss_ext4_open_stored reads it
    const ss_inode *inodes
    void *facts    # a Python callable
    void *error    # a list that takes what it raised


cdef int fill_facts(void *opaque, const uint32_t *inodes, uint32_t count,
                    ss_ext4_object *objects) noexcept nogil:
    with gil:
        return fill_facts_gil(<context *>opaque, inodes, count, objects)


cdef int fill_facts_gil(context *ctx, const uint32_t *inodes, uint32_t count,
                        ss_ext4_object *objects) noexcept:
    cdef uint32_t i
    cdef bytes digest
    try:
        lookup = <object>ctx.facts
        for i in range(count):
            digest, pack, offset = lookup((<const uint8_t *>ctx.inodes[inodes[i]].hash)[:64])
            if len(digest) not in (16, 32):
                raise ValueError("a BLAKE3 digest has 32 bytes, a quick sum 16")
            objects[i].quick = len(digest) == 16
            memset(objects[i].check, 0, 32)
            memcpy(objects[i].check, <const uint8_t *>digest, len(digest))
            objects[i].pack = pack
            objects[i].offset = offset
    except BaseException as raised:
        (<list>ctx.error).append(raised)
        return -errno.ECANCELED
    return 0


def write_root(int fd, fs, int object_directory, *, facts, uint64_t size, uint64_t offset=0,
               bytes uuid, bytes label=b"", int64_t time=0, uint32_t bytes_per_inode=8192,
               uint32_t reserved_percent=5, path=""):
    """Writes ``fs`` as an ext4 file system of ``size`` bytes at byte ``offset`` of a fresh file.

    ``object_directory`` is a descriptor of the directory that holds the objects (2 hex, 126 hex, or
    2 hex, 2 hex, 124 hex, or .packs/number); ``facts(sha512) -> (check, pack, offset)`` is asked, in
    batches, for what each object's bytes must come to, a BLAKE3 (32 bytes) or a quick sum (16), and
    where they are: the number of the pack, 0 for a file of its own, and the first byte in it (None:
    nothing is checked, and there are no packs). ``time`` is in seconds. The global interpreter lock is released but for those batches.
    Raises the errors of smallstack.volumes.errors, and what ``facts`` raised; ``path`` is the
    volume's name in them.
    """
    cdef const uint8_t[::1] inodes = fs.inodes, entries = fs.entries, blob = fs.blob
    cdef ss_tree tree
    cdef ss_ext4_params params
    cdef ss_ext4_source source
    cdef ss_ext4_report report
    cdef context ctx
    cdef list raised = []
    cdef int rc

    if len(uuid) != 16 or len(label) > 16:
        raise ValueError("a UUID has 16 bytes, a label at most 16")
    if inodes.shape[0] % 144 or entries.shape[0] % 12:
        raise ValueError("not a packed tree")
    memset(&tree, 0, sizeof(tree))
    tree.inode_count = <uint32_t>(inodes.shape[0] // 144)
    tree.entry_count = <uint32_t>(entries.shape[0] // 12)
    tree.blob_length = <uint64_t>blob.shape[0]
    if tree.inode_count:
        tree.inodes = <const ss_inode *>&inodes[0]
    if tree.entry_count:
        tree.entries = <const ss_entry *>&entries[0]
    tree.blob = <const uint8_t *>b""
    if tree.blob_length:
        tree.blob = &blob[0]
    memset(&params, 0, sizeof(params))
    params.size = size
    memcpy(params.uuid, <const uint8_t *>uuid, 16)
    memcpy(params.label, <const char *>label, len(label))
    params.time = time
    params.bytes_per_inode = bytes_per_inode
    params.reserved_percent = reserved_percent
    memset(&ctx.objects, 0, sizeof(ctx.objects))
    ctx.objects.directory = object_directory
    ctx.objects.levels = 1
    ctx.inodes = tree.inodes
    ctx.facts = <void *>facts
    ctx.error = <void *>raised
    source.context = &ctx
    source.open = ss_ext4_open_stored
    source.facts = NULL
    if facts is not None:
        source.facts = fill_facts
    with nogil:
        rc = ss_ext4_write(fd, offset, &tree, &params, &source, &report)
        ss_ext4_close_stored(&ctx.objects)
    if raised:
        raise raised[0]
    if rc < 0:
        raise_report(rc, &report, fs, size, path)
    return Layout(
        blocks=report.blocks,
        free_blocks=report.free_blocks,
        inodes=report.inodes,
        free_inodes=report.free_inodes,
        groups=report.groups,
        journal_blocks=report.journal_blocks,
        written=report.written,
        plan_ns=report.plan_ns,
        write_ns=report.write_ns,
    )


cdef raise_report(int rc, ss_ext4_report *report, fs, uint64_t size, path):
    cdef ss_ext4_what what = report.what
    text = os.strerror(-rc)
    if what == SS_EXT4_MEMORY:
        raise MemoryError
    if what == SS_EXT4_TREE:
        detail = report.detail.decode() if report.detail != NULL else text
        raise TreeInvalidError(path=path_of(fs, report.inode), detail=detail)
    if what == SS_EXT4_XATTRS:
        raise XattrsTooLargeError(path=path_of(fs, report.inode))
    if what == SS_EXT4_BLOCKS:
        needed = max(report.wanted * 4096, size + 4096)
        raise RootTooSmallError(needed=needed, size=size)
    if what == SS_EXT4_INODES:
        raise TooManyInodesError(needed=report.wanted, have=report.have, size=size)
    if what == SS_EXT4_SIZE:
        detail = f"its file system can have {LEAST_BYTES} to {MOST_BYTES}"
        raise RootSizeError(size=size, detail=detail)
    if what == SS_EXT4_WRITE:
        raise VolumeWriteError(path=path, detail=text, errno=-rc)
    about = {
        "hash": (<const uint8_t *>(<const ss_inode *>(<const uint8_t *>fs.inodes)
                 + report.inode).hash)[:64].hex(),
        "path": path_of(fs, report.inode),
    }
    if what == SS_EXT4_OBJECT_SHORT:
        detail = f"{report.have} bytes instead of {report.wanted}"
        raise CorruptObjectError(detail=detail, **about)
    if what == SS_EXT4_OBJECT_CORRUPT:
        raise CorruptObjectError(detail="its content has changed", **about)
    raise ObjectUnreadableError(detail=text, errno=-rc, **about)


def blake3_lanes():
    """How many chunks this processor hashes side by side: 4, 8 or 16."""
    return ss_blake3_lanes()


def blake3_digest(const uint8_t[::1] data not None, unsigned lanes=0):
    """The 32-byte BLAKE3 of ``data``; ``lanes`` forces a kernel (ValueError: not on this CPU)."""
    cdef uint8_t digest[32]
    cdef const uint8_t *start = &data[0] if data.shape[0] else NULL
    cdef size_t length = <size_t>data.shape[0]
    cdef int rc
    if lanes == 0:
        lanes = ss_blake3_lanes()
    with nogil:
        rc = ss_blake3_digest_lanes(lanes, start, length, digest)
    if rc < 0:
        raise ValueError(f"no BLAKE3 kernel of {lanes} lanes on this processor")
    return digest[:32]


def blake3_digests(list messages):
    """The BLAKE3 of many messages of at most 1 MiB each, hashed together."""
    cdef Py_ssize_t i, count = len(messages)
    cdef ss_blake3_message *list_
    if any(len(message) > SS_BLAKE3_SMALL for message in messages):
        raise ValueError("messages of at most 1 MiB")
    list_ = <ss_blake3_message *>PyMem_Malloc((count + 1) * sizeof(ss_blake3_message))
    if list_ == NULL:
        raise MemoryError
    try:
        for i in range(count):
            list_[i].data = <const uint8_t *><bytes>messages[i]
            list_[i].length = <size_t>len(<bytes>messages[i])
        ss_blake3_small(list_, <size_t>count)
        return [list_[i].digest[:32] for i in range(count)]
    finally:
        PyMem_Free(list_)


def directory_hash(bytes seed, bytes name):
    """ext4's half-MD4 directory hash of a name, under a 16-byte seed."""
    cdef uint32_t words[4]
    if len(seed) != 16:
        raise ValueError("a seed has 16 bytes")
    memcpy(words, <const uint8_t *>seed, 16)
    return ss_dir_hash(words, <const uint8_t *>name, <uint32_t>len(name))
