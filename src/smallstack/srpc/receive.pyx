# cython: language_level=3, boundscheck=False, wraparound=False
"""Reads many bytes from a socket at once, without the interpreter's lock."""

import os

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **to, size_t alignment, size_t size)

cdef extern from "sys/mman.h" nogil:
    enum: MADV_FREE
    int madvise(void *start, size_t size, int advice)

cdef extern from "sys/socket.h" nogil:
    enum: MSG_DONTWAIT
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef extern from "poll.h" nogil:
    enum: POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef enum:
    WAITS = 64
    BLOCK = 16 << 20
    LEAST = 1 << 20
    PAGE = 4096
    SPARE = 4

# Blocks that nobody uses now. Where memory runs short the system takes theirs.
cdef list _spare = []


cdef class _Block:
    """Memory that can be read through views; ``views`` tells how many there are.

    It is used again and again: a fresh page for every 4 KiB that come costs a third of what
    receiving them does. Huge pages would save no more, and where a virtual machine's host has to
    find them first they cost more.
    """

    cdef char *start
    cdef size_t fill
    cdef size_t views

    def __cinit__(self):
        cdef void *start = NULL
        if posix_memalign(&start, PAGE, BLOCK) != 0:
            raise MemoryError
        self.start = <char *>start

    def __dealloc__(self):
        free(self.start)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, BLOCK, True, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.views -= 1


cdef class Receiver:
    """Receives into blocks of its own; one thread at a time uses it.

    What comes is handed out as views, and a block is used again once nobody has a view of it.
    """

    cdef list blocks
    cdef _Block block

    def __cinit__(self):
        self.blocks = []
        self.block = None

    def close(self):
        """Give the blocks back that nobody has a view of; nothing can be received after it."""
        cdef _Block block
        self.block = None
        while self.blocks:
            block = self.blocks.pop()
            if block.views == 0 and len(_spare) < SPARE:
                madvise(block.start, BLOCK, MADV_FREE)
                _spare.append(block)

    @property
    def held(self):
        """Bytes of all blocks."""
        return BLOCK * len(self.blocks)

    cdef size_t room(self, size_t limit) except 0:
        """Have a block with room; how many bytes of ``limit`` that is, which are at least one."""
        cdef _Block block = self.block
        cdef size_t least = min(limit, <size_t>LEAST)
        if block is None or (block.views and BLOCK - block.fill < least):
            for block in self.blocks:
                if block.views == 0:
                    break
            else:
                block = _spare.pop() if _spare else _Block()
                self.blocks.append(block)
            self.block = block
        if block.views == 0:
            block.fill = 0
        return min(limit, BLOCK - block.fill)

    def receive(self, int fd, size_t limit, int linger_ms):
        """What a socket has, at most ``limit`` bytes (one or more): b"" at its end, None when there
        is nothing yet.

        Once there is something, more is waited for, each time no longer than ``linger_ms``, and not
        more than 64 times: a sender that is a little slower than we are does not have to be come
        back for, and one that sends a byte at a time does not keep the thread. Raises OSError.
        """
        cdef size_t have = 0, room = self.room(limit)
        cdef char *start = self.block.start + self.block.fill
        cdef ssize_t got = 0
        cdef int error = 0, waits = 0
        cdef pollfd waiting
        waiting.fd = fd
        waiting.events = POLLIN
        with nogil:
            while have < room:
                got = recv(fd, start + have, room - have, MSG_DONTWAIT)
                if got > 0:
                    have += <size_t>got
                    continue
                error = errno if got < 0 else 0
                if error == EINTR:
                    continue
                if error != EAGAIN:
                    break
                if have == 0 or waits == WAITS or poll(&waiting, 1, linger_ms) <= 0:
                    break
                waits += 1
        if have:
            data = memoryview(self.block)[self.block.fill : self.block.fill + have]
            self.block.fill += have
            return data
        if got == 0:
            return b""
        if error == EAGAIN:
            return None
        raise OSError(error, os.strerror(error))
