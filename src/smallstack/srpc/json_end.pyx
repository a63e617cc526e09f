# cython: language_level=3, boundscheck=False, wraparound=False
"""Where a JSON value ends, found byte by byte as it arrives, without reading any byte twice."""

from smallstack.srpc.errors import JsonError


cdef class ValueEnd:
    """Follows one JSON object, array or string; what is inside is checked by the parser."""

    cdef Py_ssize_t position
    cdef int depth
    cdef int max_depth
    cdef bint in_string
    cdef bint escaped
    cdef bint started

    def __init__(self, int max_depth):
        """``max_depth``: levels of brackets, beyond which it raises."""
        self.max_depth = max_depth
        self.position = 0

    def find(self, const unsigned char[::1] data):
        """The index behind the value, or -1. Each call gets the same bytes and perhaps more.

        Raises JsonError for nesting beyond the limit and for what cannot start a value.
        """
        cdef Py_ssize_t i = self.position, length = data.shape[0]
        cdef unsigned char c
        while i < length:
            c = data[i]
            i += 1
            if self.in_string:
                if self.escaped:
                    self.escaped = False
                elif c == b'\\':
                    self.escaped = True
                elif c == b'"':
                    self.in_string = False
                    if self.depth == 0:
                        return self.at(i)
            elif c == b'"':
                self.started = True
                self.in_string = True
            elif c == b'{' or c == b'[':
                self.started = True
                self.depth += 1
                if self.depth > self.max_depth:
                    raise JsonError(what="values are nested too deeply")
            elif c == b'}' or c == b']':
                self.depth -= 1
                if self.depth <= 0:
                    return self.at(i)
            elif not self.started and c not in (b' ', b'\t', b'\r', b'\n'):
                raise JsonError(what="a value does not start with a bracket or a quote")
        self.position = i
        return -1

    cdef Py_ssize_t at(self, Py_ssize_t i):
        self.position = i
        return i
