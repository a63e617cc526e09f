# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# distutils: sources = csrc/gob.c
"""The reading side of gob: from bytes as they come to the contiguous bytes of one value.

A :class:`Decoder` is fed bytes and hands out values. The types a peer defines are a path in a tree
of :class:`_Types`, shared by all decoders of the process: a peer that defines what another one
defined before costs a dictionary look-up per definition. The end of a value that may hold
interfaces is found first, by ``gob_scan``, which takes out the definitions in its middle.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from smallstack.srpc.gob_c cimport *
from smallstack.srpc.gob_values cimport Input, Reader, Table, check, fail

from smallstack.srpc.coder import DEFAULT, NEED_MORE
from smallstack.srpc.errors import GobError, LocalProtocolError
from smallstack.srpc.schema import node_of


def message_length(data):
    """Length of the prefix and of the message it announces, or NEED_MORE; raises GobError."""
    cdef const uint8_t[::1] view = data
    cdef uint64_t length = 0
    cdef gob_cursor cursor
    cdef int result
    if view.shape[0] == 0:
        return NEED_MORE
    cursor.at = &view[0]
    cursor.end = cursor.at + view.shape[0]
    result = gob_read_uint(&cursor, &length)
    if result == GOB_E_SHORT:
        return NEED_MORE
    check(result)
    if length == 0:
        raise GobError(what="a message is empty")
    return cursor.at - &view[0], length


cdef uint64_t _kept = 0
cdef uint64_t _KEEP = 16 << 20


cdef int _keep_more(uint64_t weight) except -1:
    """Counts what is kept for later streams, roughly in bytes, and lets go of all when it is much."""
    global _kept, _ROOT
    _kept += weight
    if _kept > _KEEP:
        _ROOT = _Types.__new__(_Types)
        _kept = 0
    return 0


cdef class _Types:
    """The definitions of a stream so far: the last one, and the node of those before it."""

    cdef _Types parent
    cdef bytes body
    cdef gob_type type
    cdef gob_field *fields
    cdef uint32_t count
    cdef uint32_t total_fields
    cdef dict children
    cdef Table made

    def __cinit__(self):
        self.fields = NULL
        self.children = {}

    def __dealloc__(self):
        PyMem_Free(self.fields)

    cdef _Types step(self, bytes body, object limits):
        """The node after one more definition, ``body`` from its id to its end."""
        cdef _Types node = self.children.get(body)
        cdef gob_cursor cursor
        cdef gob_field *room
        cdef uint32_t count
        cdef int64_t id = 0
        if node is not None:
            if node.count > <uint32_t>limits.types or \
                    node.total_fields > <uint32_t>limits.type_fields:
                fail(GOB_E_LIMIT)
            return node
        if self.count >= <uint32_t>limits.types:
            fail(GOB_E_LIMIT)
        node = _Types.__new__(_Types)
        node.parent = self
        node.body = body
        cursor.at = <const uint8_t *>PyBytes_AS_STRING(body)
        cursor.end = cursor.at + PyBytes_GET_SIZE(body)
        check(gob_read_int(&cursor, &id))
        count = <uint32_t>min(<Py_ssize_t>limits.type_fields - self.total_fields, len(body) // 4)
        room = <gob_field *>PyMem_Malloc((count + 1) * sizeof(gob_field))
        if room is NULL:
            raise MemoryError
        try:
            check(gob_read_type(&cursor, -id, &node.type, room, &count))
            if cursor.at != cursor.end:
                raise GobError(what="there are bytes behind a type definition")
            node.fields = <gob_field *>PyMem_Malloc((count + 1) * sizeof(gob_field))
            if node.fields is NULL:
                raise MemoryError
            memcpy(node.fields, room, count * sizeof(gob_field))
        finally:
            PyMem_Free(room)
        node.type.fields = node.fields
        node.count = self.count + 1
        node.total_fields = self.total_fields + count
        self.children[body] = node
        _keep_more(500 + 2 * len(body))
        return node

    cdef Table table(self):
        """All definitions, with their references resolved."""
        if self.made is None:
            self.made = self.fill()
            _keep_more(1000 + 200 * <uint64_t>self.count + 150 * <uint64_t>self.total_fields)
        return self.made

    cdef Table fill(self):
        """A new table of the definitions up to here."""
        cdef Table table = Table.__new__(Table)
        cdef _Types node = self
        cdef uint32_t i = self.count, used = 0, f
        cdef gob_type *type
        table.types.count = GOB_BUILTINS + self.count
        table.types.type = <gob_type *>PyMem_Malloc(table.types.count * sizeof(gob_type))
        table.types.by_id = <uint32_t *>PyMem_Malloc((self.count + 1) * sizeof(uint32_t))
        table.fields = <gob_field *>PyMem_Malloc((self.total_fields + 1) * sizeof(gob_field))
        if table.types.type is NULL or table.types.by_id is NULL or table.fields is NULL:
            raise MemoryError
        table.bodies = []
        while i > 0:
            i -= 1
            type = &table.types.type[GOB_BUILTINS + i]
            type[0] = node.type
            type.fields = table.fields + used
            for f in range(type.field_count):
                type.fields[f] = node.fields[f]
            used += type.field_count
            table.bodies.append(node.body)
            node = node.parent
        check(gob_types_resolve(&table.types))
        return table


cdef _Types _ROOT = _Types.__new__(_Types)


cdef class Decoder:
    """Takes bytes as they come, hands out values; one for each call and direction.

    Not for several threads at a time, but a big value may be decoded in a worker thread: the
    packing of a file-system tree runs without the interpreter lock.
    """

    cdef object limits
    cdef bint keep_mapped
    cdef gob_buffer buffer
    cdef size_t start
    cdef gob_buffer flat
    cdef gob_scan scan
    cdef _Types types
    cdef uint32_t wanted
    cdef bint in_value
    cdef bint spilled
    cdef bint broken
    cdef bint busy

    def __cinit__(self):
        memset(&self.buffer, 0, sizeof(self.buffer))
        memset(&self.flat, 0, sizeof(self.flat))

    def __init__(self, limits=DEFAULT, *, keep_mapped=False):
        """``keep_mapped``: leave 16-byte IPv4 addresses as ``::ffff:1.2.3.4``."""
        self.limits = limits
        self.keep_mapped = keep_mapped
        self.types = _ROOT
        self.start = 0
        self.in_value = False
        self.broken = False
        self.busy = False

    def __dealloc__(self):
        gob_buffer_free(&self.buffer)
        gob_buffer_free(&self.flat)

    cdef int enter(self) except -1:
        if self.busy:
            raise RuntimeError("the decoder is in use by another thread")
        if self.broken:
            raise GobError(what="there was an error in an earlier message")
        self.busy = True
        return 0

    def feed(self, data):
        """More bytes of the stream."""
        cdef Py_buffer view
        if self.busy:
            raise RuntimeError("the decoder is in use by another thread")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.start and self.start >= self.buffer.len // 2:
                memmove(self.buffer.data, self.buffer.data + self.start,
                        self.buffer.len - self.start)
                self.buffer.len -= self.start
                self.start = 0
            gob_write(&self.buffer, view.buf, <size_t>view.len)
            if self.buffer.failed:
                raise MemoryError
        finally:
            PyBuffer_Release(&view)

    def take_rest(self):
        """The bytes behind the last value, which are then no longer the decoder's."""
        if self.busy:
            raise RuntimeError("the decoder is in use by another thread")
        if self.in_value:
            raise LocalProtocolError(what="the rest of a stream that stopped inside a value")
        rest = PyBytes_FromStringAndSize(<const char *>self.buffer.data + self.start,
                                         <Py_ssize_t>(self.buffer.len - self.start))
        self.start = self.buffer.len
        return rest

    def decode(self, type_):
        """The next value, or NEED_MORE; raises GobError, after which the stream is no use."""
        node = node_of(type_)
        self.enter()
        try:
            return self.next(node)
        except BaseException:
            self.broken = True
            raise
        finally:
            self.busy = False

    cdef object next(self, object node):
        cdef gob_cursor message
        cdef const uint8_t *begin
        cdef uint64_t length
        cdef int64_t id
        cdef int result
        while True:
            message.at = self.buffer.data + self.start
            message.end = self.buffer.data + self.buffer.len
            length = 0
            result = gob_read_uint(&message, &length)
            if result == GOB_E_SHORT:
                return NEED_MORE
            check(result)
            if length == 0:
                raise GobError(what="a message is empty")
            if length > <uint64_t>self.limits.message:
                raise GobError(what=f"a message of {length} bytes is above the limit of "
                                    f"{self.limits.message}")
            if length > <uint64_t>(message.end - message.at):
                return NEED_MORE
            message.end = message.at + length
            self.start = <size_t>(message.end - self.buffer.data)
            begin = message.at
            if self.in_value:
                if self.scan_on(begin, &message):
                    return self.read_flat(node)
                continue
            id = 0
            check(gob_read_int(&message, &id))
            if id < 0:
                self.types = self.types.step(
                    PyBytes_FromStringAndSize(<const char *>begin, <Py_ssize_t>length),
                    self.limits)
                continue
            if not self.begin(id, &message):
                continue
            return self.read_flat(node) if self.spilled else self.read(node, &message)

    cdef bint begin(self, int64_t id, gob_cursor *message) except -1:
        """Starts on a value and looks for its end; whether it is all here."""
        cdef Table table = self.types.table()
        cdef gob_cursor cursor = message[0]
        self.wanted = gob_types_find(&table.types, id)
        self.spilled = False
        self.flat.len = 0
        if self.wanted >= table.types.count:
            fail(GOB_E_TYPE)
        if not table.types.any_interface:
            return True
        self.scan.max_depth = min(<uint32_t>self.limits.depth, <uint32_t>GOB_MAX_DEPTH)
        self.scan.max_count = max(<uint64_t>self.limits.elements, <uint64_t>self.limits.inodes)
        check(gob_scan_start(&self.scan, &table.types, self.wanted, &cursor))
        self.in_value = True
        return self.scan_on(message.at, &cursor)

    cdef bint scan_on(self, const uint8_t *begin, gob_cursor *cursor) except -1:
        """Scans to the end of a message and learns the types defined there; whether the value ends.

        When it goes over more than one message, or has definitions inside, it collects in ``flat``.
        """
        cdef Table table
        cdef uint64_t skipped = 0
        cdef int result
        while True:
            table = self.types.table()
            with nogil:
                result = gob_scan_run(&self.scan, &table.types, cursor)
            check(result)
            if result == GOB_SCAN_DEFINE:
                self.keep(begin, cursor.at)
                self.define(cursor)
                if cursor.at != cursor.end:
                    check(gob_read_uint(cursor, &skipped))
                begin = cursor.at
                continue
            if result == GOB_SCAN_MORE:
                self.keep(begin, cursor.end)
                return False
            if cursor.at != cursor.end:
                raise GobError(what="there are bytes behind a value")
            if self.spilled:
                self.keep(begin, cursor.end)
            self.in_value = False
            return True

    cdef int keep(self, const uint8_t *begin, const uint8_t *end) except -1:
        cdef size_t length = <size_t>(end - begin)
        if self.flat.len + length > <uint64_t>self.limits.value:
            raise GobError(what=f"a value is above the limit of {self.limits.value} bytes")
        self.spilled = True
        # A message that is in ``flat`` is not read again: a large value is not held twice.
        gob_write_moved(&self.flat, begin, length)
        if self.flat.failed:
            raise MemoryError
        return 0

    cdef int define(self, gob_cursor *cursor) except -1:
        """Learns the definition at the cursor."""
        cdef gob_type type
        cdef gob_field *room
        cdef const uint8_t *begin = cursor.at
        cdef uint32_t count
        cdef int64_t id = 0
        count = <uint32_t>min(<Py_ssize_t>self.limits.type_fields, (cursor.end - begin) // 4 + 1)
        room = <gob_field *>PyMem_Malloc(count * sizeof(gob_field))
        if room is NULL:
            raise MemoryError
        try:
            check(gob_read_int(cursor, &id))
            check(gob_read_type(cursor, -id, &type, room, &count))
        finally:
            PyMem_Free(room)
        self.types = self.types.step(
            PyBytes_FromStringAndSize(<const char *>begin, cursor.at - begin), self.limits)
        return 0

    cdef object read_flat(self, object node):
        cdef gob_cursor cursor
        cursor.at = self.flat.data
        cursor.end = self.flat.data + self.flat.len
        try:
            return self.read(node, &cursor)
        finally:
            if self.flat.cap > 1 << 20:
                gob_buffer_free(&self.flat)
            self.flat.len = 0

    cdef object read(self, object node, gob_cursor *cursor):
        """The value in these bytes."""
        cdef Input data = Input.__new__(Input)
        cdef Table table = self.types.table()
        cdef Reader reader = table.reader(node, self.wanted)
        cdef uint64_t delta = 0
        data.cursor = cursor[0]
        data.budget = self.limits.values
        data.max_elements = self.limits.elements
        data.max_inodes = self.limits.inodes
        data.keep_mapped = self.keep_mapped
        data.table = table
        if table.types.type[self.wanted].kind != <uint32_t>GOB_STRUCT:
            check(gob_read_uint(&data.cursor, &delta))
            if delta:
                fail(GOB_E_VALUE)
        value = reader.read(data)
        if data.cursor.at != data.cursor.end:
            raise GobError(what="there are bytes behind a value")
        return value
