# cython: language_level=3, boundscheck=False, wraparound=False
"""Reads many bytes from a socket at once, without the interpreter's lock."""

import os

from cpython.bytearray cimport PyByteArray_AsString, PyByteArray_FromStringAndSize
from cpython.bytearray cimport PyByteArray_Resize
from libc.errno cimport EAGAIN, EINTR, errno

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


def receive(int fd, size_t limit, int linger_ms):
    """What a socket has, at most ``limit`` bytes: b"" at its end, None when there is nothing yet.

    Once there is something, more is waited for, each time no longer than ``linger_ms``, and not
    more than 64 times: a sender that is a little slower than we are does not have to be come back
    for, and one that sends a byte at a time does not keep the thread. Raises OSError.
    """
    cdef bytearray data = PyByteArray_FromStringAndSize(NULL, <Py_ssize_t>limit)
    cdef char *start = PyByteArray_AsString(data)
    cdef size_t have = 0
    cdef ssize_t got = 0
    cdef int error = 0, waits = 0
    cdef pollfd waiting
    waiting.fd = fd
    waiting.events = POLLIN
    with nogil:
        while have < limit:
            got = recv(fd, start + have, limit - have, MSG_DONTWAIT)
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
        PyByteArray_Resize(data, <Py_ssize_t>have)
        return data
    if got == 0:
        return b""
    if error == EAGAIN:
        return None
    raise OSError(error, os.strerror(error))
