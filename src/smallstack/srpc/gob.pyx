# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# distutils: sources = csrc/gob.c csrc/gob_tree.c
"""gob, the first coder of SRPC: glue over csrc/gob.c, driven by the annotations of messages.

Reading. A :class:`Decoder` is fed bytes and hands out values. The types a peer defines are a path
in a tree of :class:`_Types`, shared by all decoders of the process: a peer that defines what
another one defined before costs a dictionary look-up per definition. The end of a value that may
hold interfaces is found first, by ``gob_scan``, which takes out the definitions in its middle; all
reading then goes over contiguous bytes. Readers are compiled per message type and wire type.

Writing. An :class:`Encoder` sends the definitions of a type before its first value, in the order
and with the ids, from 64 up, that upstream's encoder has in a fresh process. Which types were sent
is an :class:`_Sent`, again shared: what a definition looks like is worked out once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from smallstack.proto.tree cimport (
    check_tables, describe, ss_entry, ss_inode, ss_tree_problem,
)

from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import YEAR_ONE, Hash, Time
from smallstack.srpc.coder import DEFAULT, IMAGE, NEED_MORE, Limits, NeedMore
from smallstack.srpc.errors import GobError, LocalProtocolError
from smallstack.srpc.schema import node_of

__all__ = ["DEFAULT", "IMAGE", "NEED_MORE", "Decoder", "Encoder", "GobError", "Limits", "NeedMore",
           "message_length"]

cdef extern from "Python.h":
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bint PyUnicode_Check(object)
    bint PyUnicode_IS_COMPACT_ASCII(object)

cdef extern from "arpa/inet.h" nogil:
    int AF_INET, AF_INET6
    int inet_pton(int, const char *, void *)
    const char *inet_ntop(int, const void *, char *, uint32_t)

cdef extern from "gob.h" nogil:
    enum:
        GOB_E_SHORT, GOB_E_NUMBER, GOB_E_DEPTH, GOB_E_TYPE, GOB_E_FIELD, GOB_E_LENGTH
        GOB_E_DEFINE, GOB_E_VALUE, GOB_E_LIMIT, GOB_E_MEMORY, GOB_E_NAME, GOB_E_TREE
    enum:
        GOB_BOOL, GOB_INT, GOB_UINT, GOB_FLOAT, GOB_BYTES, GOB_STRING, GOB_COMPLEX
        GOB_INTERFACE, GOB_ARRAY, GOB_SLICE, GOB_STRUCT, GOB_MAP, GOB_OPAQUE
        GOB_BUILTINS, GOB_MAX_DEPTH
    uint32_t GOB_NO_TYPE
    enum:
        GOB_SCAN_DONE, GOB_SCAN_MORE, GOB_SCAN_DEFINE

    struct gob_cursor:
        const uint8_t *at
        const uint8_t *end
    struct gob_field:
        const uint8_t *name
        uint32_t name_len
        uint32_t type
    struct gob_type:
        int64_t id
        uint64_t length
        gob_field *fields
        uint32_t field_count
        uint32_t elem
        uint32_t key
        uint32_t kind
    struct gob_types:
        gob_type *type
        uint32_t *by_id
        uint32_t count
        int any_interface
    struct gob_scan:
        uint32_t depth
        uint32_t max_depth
        uint64_t max_count
    struct gob_buffer:
        uint8_t *data
        size_t len
        size_t cap
        int failed

    int gob_read_uint(gob_cursor *, uint64_t *)
    int gob_read_int(gob_cursor *, int64_t *)
    int gob_read_bytes(gob_cursor *, const uint8_t **, uint64_t *)
    int gob_read_type(gob_cursor *, int64_t, gob_type *, gob_field *, uint32_t *)
    int gob_read_byte_array(gob_cursor *, uint8_t *, size_t)
    int gob_types_resolve(gob_types *)
    uint32_t gob_types_find(const gob_types *, int64_t)
    int gob_scan_start(gob_scan *, const gob_types *, uint32_t, gob_cursor *)
    int gob_scan_run(gob_scan *, const gob_types *, gob_cursor *)
    int gob_skip(const gob_types *, uint32_t, gob_cursor *)
    void gob_buffer_free(gob_buffer *)
    int gob_buffer_reserve(gob_buffer *, size_t)
    void gob_write(gob_buffer *, const void *, size_t)
    void gob_write_uint(gob_buffer *, uint64_t)
    void gob_write_int(gob_buffer *, int64_t)
    void gob_write_bytes(gob_buffer *, const void *, size_t)
    void gob_write_byte_array(gob_buffer *, const uint8_t *, size_t)

cdef extern from "gob_tree.h" nogil:
    enum:
        GOB_TREE_KINDS
    const char *const gob_tree_names[5]
    struct gob_tree:
        gob_buffer inodes
        gob_buffer entries
        gob_buffer blob
        uint64_t num_regular_inodes
        uint64_t total_data_bytes
        uint64_t directory_count
        ss_tree_problem problem
        uint64_t problem_number
    struct gob_tree_announcement:
        int64_t id
        const uint8_t *first
        size_t first_len
        const uint8_t *rest
        size_t rest_len
    int gob_tree_read(const gob_types *, uint32_t, gob_cursor *, uint64_t, gob_tree *)
    void gob_tree_free(gob_tree *)
    int gob_tree_kind_of(const ss_inode *)
    int gob_tree_write(const ss_inode *, uint32_t, const ss_entry *, const uint8_t *, uint64_t,
                       uint64_t, uint64_t, gob_tree_announcement *, gob_buffer *, gob_buffer *)


cdef dict _WHAT = {
    GOB_E_SHORT: "a value runs past the end of its message",
    GOB_E_NUMBER: "a number has more than 8 bytes",
    GOB_E_DEPTH: "values are nested too deeply",
    GOB_E_TYPE: "a type was not defined",
    GOB_E_FIELD: "a structure has a field beyond its last",
    GOB_E_LENGTH: "a count does not fit its type",
    GOB_E_DEFINE: "a type definition makes no sense",
    GOB_E_VALUE: "a value is out of range or of the wrong type",
    GOB_E_LIMIT: "it asks for more than the limits allow",
    GOB_E_NAME: "an interface value has a type that is not registered",
}


cdef int _fail(int result) except -1:
    """Raises what an error number of csrc/gob.h stands for."""
    if result == GOB_E_MEMORY:
        raise MemoryError
    raise GobError(what=_WHAT.get(result, f"error {result}"))


cdef inline int _check(int result) except -1:
    if result < 0:
        _fail(result)
    return result


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
    _check(result)
    if length == 0:
        raise GobError(what="a message is empty")
    return cursor.at - &view[0], length


# ---- the types a peer defined ------------------------------------------------------------------

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
    cdef _Table made

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
                _fail(GOB_E_LIMIT)
            return node
        if self.count >= <uint32_t>limits.types:
            _fail(GOB_E_LIMIT)
        node = _Types.__new__(_Types)
        node.parent = self
        node.body = body
        cursor.at = <const uint8_t *>PyBytes_AS_STRING(body)
        cursor.end = cursor.at + PyBytes_GET_SIZE(body)
        _check(gob_read_int(&cursor, &id))
        count = <uint32_t>min(<Py_ssize_t>limits.type_fields - self.total_fields, len(body) // 4)
        room = <gob_field *>PyMem_Malloc((count + 1) * sizeof(gob_field))
        if room is NULL:
            raise MemoryError
        try:
            _check(gob_read_type(&cursor, -id, &node.type, room, &count))
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

    cdef _Table table(self):
        """All definitions, with their references resolved."""
        cdef _Table table
        if self.made is None:
            table = _Table.__new__(_Table)
            table.fill(self)
            self.made = table
            _keep_more(1000 + 200 * <uint64_t>self.count + 150 * <uint64_t>self.total_fields)
        return self.made


cdef _Types _ROOT = _Types.__new__(_Types)


cdef class _Table:
    """The types of a stream for the C code, and the readers compiled for them."""

    cdef gob_types types
    cdef gob_field *fields
    cdef list bodies
    cdef dict readers

    def __cinit__(self):
        memset(&self.types, 0, sizeof(self.types))
        self.fields = NULL
        self.readers = {}

    def __dealloc__(self):
        PyMem_Free(self.types.type)
        PyMem_Free(self.types.by_id)
        PyMem_Free(self.fields)

    cdef int fill(self, _Types last) except -1:
        cdef _Types node = last
        cdef uint32_t i = last.count, used = 0, f
        cdef gob_type *type
        self.types.count = GOB_BUILTINS + last.count
        self.types.type = <gob_type *>PyMem_Malloc(self.types.count * sizeof(gob_type))
        self.types.by_id = <uint32_t *>PyMem_Malloc((last.count + 1) * sizeof(uint32_t))
        self.fields = <gob_field *>PyMem_Malloc((last.total_fields + 1) * sizeof(gob_field))
        if self.types.type is NULL or self.types.by_id is NULL or self.fields is NULL:
            raise MemoryError
        self.bodies = []
        while i > 0:
            i -= 1
            type = &self.types.type[GOB_BUILTINS + i]
            type[0] = node.type
            type.fields = self.fields + used
            for f in range(type.field_count):
                type.fields[f] = node.fields[f]
            used += type.field_count
            self.bodies.append(node.body)
            node = node.parent
        return _check(gob_types_resolve(&self.types))

    cdef str name_of(self, uint32_t index):
        """What a wire type is, for error messages."""
        if index >= self.types.count:
            return "an undefined type"
        return _KINDS[self.types.type[index].kind]

    cdef _Reader reader(self, object node, uint32_t index):
        """The reader of wire type ``index`` into ``node``; raises GobError if they don't fit."""
        key = (id(node), index)
        found = self.readers.get(key)
        if found is None:
            found = self.compile(node, index)
            self.readers[key] = found
        return <_Reader>found

    cdef _Reader compile(self, object node, uint32_t index):
        cdef gob_type *type
        cdef _Reader made
        cdef uint32_t wanted = _WIRE_KINDS[node.kind]
        if index >= self.types.count:
            _fail(GOB_E_TYPE)
        type = &self.types.type[index]
        if type.kind != wanted:
            raise GobError(what=f"{node.go} is sent as {self.name_of(index)}")
        kind = node.kind
        if kind == "bool":
            made = _BoolReader.__new__(_BoolReader)
        elif kind == "int":
            made = _IntReader.__new__(_IntReader)
            (<_IntReader>made).bits = node.bits
        elif kind == "uint":
            made = _UintReader.__new__(_UintReader)
            (<_UintReader>made).bits = node.bits
        elif kind == "enum":
            made = _EnumReader.__new__(_EnumReader)
            (<_EnumReader>made).cls = node.cls
            (<_EnumReader>made).known = {int(member): member for member in node.cls}
        elif kind == "string":
            made = _StringReader.__new__(_StringReader)
        elif kind == "bytes":
            made = _BytesReader.__new__(_BytesReader)
        elif kind == "ip":
            made = _IpReader.__new__(_IpReader)
        elif kind == "time":
            made = _TimeReader.__new__(_TimeReader)
        elif kind == "hash":
            if type.length != 64 or type.elem != <uint32_t>GOB_UINT:
                raise GobError(what=f"{node.go} is sent as another array")
            made = _HashReader.__new__(_HashReader)
        elif kind == "list":
            made = _ListReader.__new__(_ListReader)
            (<_ListReader>made).elem = self.reader(node.elem, type.elem)
        elif kind == "map":
            made = _MapReader.__new__(_MapReader)
            (<_MapReader>made).key = self.reader(node.key, type.key)
            (<_MapReader>made).elem = self.reader(node.elem, type.elem)
        elif kind == "struct":
            made = self.compile_struct(node, type)
        elif kind == "interface":
            made = _InterfaceReader.__new__(_InterfaceReader)
            (<_InterfaceReader>made).members = {
                name.encode(): member for name, member in node.members.items()
            }
        else:
            made = _TreeReader.__new__(_TreeReader)
            (<_TreeReader>made).type = index
        return made

    cdef _Reader compile_struct(self, object node, gob_type *type):
        cdef _StructReader made = _StructReader.__new__(_StructReader)
        cdef uint32_t f
        cdef _Reader below
        wanted = {field.wire_name.encode(): field for field in node.fields}
        if len(wanted) > 64:
            raise TypeError(f"{node.go} has more than 64 fields")
        made.cls = node.cls
        made.names = []
        made.readers = []
        made.weight = 1 + len(wanted) // 4
        made.field_count = type.field_count
        for f in range(type.field_count):
            name = PyBytes_FromStringAndSize(<const char *>type.fields[f].name,
                                             type.fields[f].name_len)
            field = wanted.pop(name, None)
            if field is None:
                below = _SkipReader.__new__(_SkipReader)
                (<_SkipReader>below).type = type.fields[f].type
                made.names.append(None)
            else:
                try:
                    below = self.reader(field.node, type.fields[f].type)
                except GobError as error:
                    raise GobError(what=f"{node.name}.{field.wire_name}: {error.what}") from None
                made.names.append(field.attribute)
            made.readers.append(below)
        return made


cdef dict _KINDS = {
    0: "nothing", GOB_BOOL: "a bool", GOB_INT: "a signed integer", GOB_UINT: "an unsigned integer",
    GOB_FLOAT: "a float", GOB_BYTES: "bytes", GOB_STRING: "a string", GOB_COMPLEX: "a complex",
    GOB_INTERFACE: "an interface", GOB_ARRAY: "an array", GOB_SLICE: "a list",
    GOB_STRUCT: "a structure", GOB_MAP: "a map", GOB_OPAQUE: "bytes of its own making",
}
cdef dict _WIRE_KINDS = {
    "bool": GOB_BOOL, "int": GOB_INT, "uint": GOB_UINT, "enum": GOB_UINT, "string": GOB_STRING,
    "bytes": GOB_BYTES, "ip": GOB_BYTES, "time": GOB_OPAQUE, "hash": GOB_ARRAY, "list": GOB_SLICE,
    "map": GOB_MAP, "struct": GOB_STRUCT, "tree": GOB_STRUCT, "interface": GOB_INTERFACE,
}


# ---- reading values ----------------------------------------------------------------------------

cdef class _Input:
    """Contiguous bytes of one value, and what its readers need to know."""

    cdef gob_cursor cursor
    cdef int64_t budget
    cdef uint64_t max_elements
    cdef uint64_t max_inodes
    cdef _Table table
    cdef bint keep_mapped

    cdef int spend(self, uint64_t weight, uint64_t count) except -1:
        if count > <uint64_t>self.budget:
            _fail(GOB_E_LIMIT)
        self.budget -= <int64_t>(weight * count)
        if self.budget < 0:
            _fail(GOB_E_LIMIT)
        return 0

    cdef uint64_t count(self) except? 0:
        """The number of elements that follow; each takes at least a byte."""
        cdef uint64_t count = 0
        _check(gob_read_uint(&self.cursor, &count))
        if count > <uint64_t>(self.cursor.end - self.cursor.at):
            _fail(GOB_E_SHORT)
        if count > self.max_elements:
            _fail(GOB_E_LIMIT)
        self.spend(1, count)
        return count


cdef class _Reader:
    """Reads one type; sub-classes say how."""

    cdef object read(self, _Input data):
        raise NotImplementedError


cdef class _SkipReader(_Reader):
    cdef uint32_t type

    cdef object read(self, _Input data):
        _check(gob_skip(&data.table.types, self.type, &data.cursor))
        return None


cdef class _BoolReader(_Reader):
    cdef object read(self, _Input data):
        cdef uint64_t value = 0
        _check(gob_read_uint(&data.cursor, &value))
        if value > 1:
            _fail(GOB_E_VALUE)
        return value == 1


cdef class _IntReader(_Reader):
    cdef int bits

    cdef object read(self, _Input data):
        cdef int64_t value = 0
        _check(gob_read_int(&data.cursor, &value))
        if self.bits == 32 and value != <int32_t>value:
            _fail(GOB_E_VALUE)
        return value


cdef class _UintReader(_Reader):
    cdef int bits

    cdef object read(self, _Input data):
        cdef uint64_t value = 0
        _check(gob_read_uint(&data.cursor, &value))
        if self.bits < 64 and value >> self.bits:
            _fail(GOB_E_VALUE)
        return value


cdef class _EnumReader(_Reader):
    cdef object cls
    cdef dict known

    cdef object read(self, _Input data):
        cdef uint64_t value = 0
        _check(gob_read_uint(&data.cursor, &value))
        number = value
        found = self.known.get(number)
        return self.cls(number) if found is None else found


cdef class _StringReader(_Reader):
    cdef object read(self, _Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        _check(gob_read_bytes(&data.cursor, &text, &length))
        if length == 0:
            return ""
        return PyUnicode_DecodeUTF8(<char *>text, <Py_ssize_t>length, "surrogateescape")


cdef class _BytesReader(_Reader):
    cdef object read(self, _Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        _check(gob_read_bytes(&data.cursor, &text, &length))
        return PyBytes_FromStringAndSize(<const char *>text, <Py_ssize_t>length)


cdef object _ip_text(const uint8_t *raw, uint64_t length, bint keep_mapped):
    cdef char text[64]
    cdef int family = AF_INET6
    if length == 0:
        return ""
    if length == 16 and not keep_mapped:
        for i in range(12):
            if raw[i] != (0xff if i >= 10 else 0):
                break
        else:
            raw += 12
            length = 4
    if length == 4:
        family = AF_INET
    elif length != 16:
        raise GobError(what=f"an address has {length} bytes")
    if inet_ntop(family, raw, text, sizeof(text)) is NULL:
        _fail(GOB_E_VALUE)
    return (<const char *>text).decode("ascii")


cdef class _IpReader(_Reader):
    cdef object read(self, _Input data):
        cdef const uint8_t *raw = NULL
        cdef uint64_t length = 0
        _check(gob_read_bytes(&data.cursor, &raw, &length))
        return _ip_text(raw, length, data.keep_mapped)


cdef class _TimeReader(_Reader):
    """Version 1 or 2, seconds since year 1 (8 bytes), nanoseconds (4), zone in minutes (2)."""

    cdef object read(self, _Input data):
        cdef const uint8_t *raw = NULL
        cdef uint64_t length = 0, seconds = 0
        cdef uint32_t nanoseconds = 0
        cdef int16_t zone
        cdef int i
        _check(gob_read_bytes(&data.cursor, &raw, &length))
        if length == 0 or length != 14 + <uint64_t>raw[0] or raw[0] > 2 or raw[0] == 0:
            raise GobError(what=f"a time has {length} bytes")
        for i in range(1, 9):
            seconds = seconds << 8 | raw[i]
        for i in range(9, 13):
            nanoseconds = nanoseconds << 8 | raw[i]
        zone = <int16_t>(<uint32_t>raw[13] << 8 | raw[14])
        if nanoseconds > 999999999:
            _fail(GOB_E_VALUE)
        if zone == -1:
            if <int64_t>seconds == 0 and nanoseconds == 0:
                return _ZERO_TIME
            return Time(<int64_t>seconds + YEAR_ONE, nanoseconds, None)
        return Time(<int64_t>seconds + YEAR_ONE, nanoseconds, zone)


cdef class _HashReader(_Reader):
    cdef object read(self, _Input data):
        cdef uint64_t count = 0
        cdef uint8_t raw[64]
        _check(gob_read_uint(&data.cursor, &count))
        if count != 64:
            _fail(GOB_E_LENGTH)
        _check(gob_read_byte_array(&data.cursor, raw, 64))
        return Hash(PyBytes_FromStringAndSize(<const char *>raw, 64))


cdef class _ListReader(_Reader):
    cdef _Reader elem

    cdef object read(self, _Input data):
        cdef uint64_t count = data.count(), i
        cdef list made = []
        cdef _Reader elem = self.elem
        for i in range(count):
            made.append(elem.read(data))
        return made


cdef class _MapReader(_Reader):
    cdef _Reader key
    cdef _Reader elem

    cdef object read(self, _Input data):
        cdef uint64_t count = data.count(), i
        cdef dict made = {}
        for i in range(count):
            key = self.key.read(data)
            made[key] = self.elem.read(data)
        return made


cdef class _StructReader(_Reader):
    """Reads a structure into keyword arguments of its class."""

    cdef object cls
    cdef list names
    cdef list readers
    cdef uint64_t weight
    cdef uint32_t field_count
    cdef uint64_t last_mask
    cdef tuple last_names

    cdef object read(self, _Input data):
        cdef PyObject *values[64]
        cdef PyObject *reader
        cdef uint8_t where[64]
        cdef int count = 0, i
        cdef uint64_t delta = 0, mask = 0
        cdef int64_t field = -1
        data.spend(self.weight, 1)
        try:
            while True:
                _check(gob_read_uint(&data.cursor, &delta))
                if delta == 0:
                    break
                if delta > <uint64_t>(<int64_t>self.field_count - 1 - field):
                    _fail(GOB_E_FIELD)
                field += <int64_t>delta
                reader = PyList_GET_ITEM(self.readers, field)
                value = (<_Reader>reader).read(data)
                if <object>PyList_GET_ITEM(self.names, field) is None:
                    continue
                Py_INCREF(value)
                values[count] = <PyObject *>value
                count += 1
                if field < 64:
                    mask |= <uint64_t>1 << field
                    where[count - 1] = <uint8_t>field
                else:
                    mask = 0
                    return self.slow(data, field, values, where, count)
            if count == 0:
                return self.cls()
            if mask != self.last_mask or self.last_names is None:
                self.last_names = tuple([self.names[where[i]] for i in range(count)])
                self.last_mask = mask
            return PyObject_Vectorcall(self.cls, values, 0, <PyObject *>self.last_names)
        finally:
            for i in range(count):
                Py_DECREF(<object>values[i])

    cdef object slow(self, _Input data, int64_t field, PyObject **values, uint8_t *where,
                     int count):
        """The rest of a structure with known fields beyond its 64th."""
        cdef uint64_t delta = 0
        cdef int i
        cdef dict found = {self.names[where[i]]: <object>values[i] for i in range(count - 1)}
        found[self.names[field]] = <object>values[count - 1]
        while True:
            _check(gob_read_uint(&data.cursor, &delta))
            if delta == 0:
                return self.cls(**found)
            if delta > <uint64_t>(<int64_t>self.field_count - 1 - field):
                _fail(GOB_E_FIELD)
            field += <int64_t>delta
            value = (<_Reader>PyList_GET_ITEM(self.readers, field)).read(data)
            if self.names[field] is not None:
                found[self.names[field]] = value


cdef class _InterfaceReader(_Reader):
    """A registered name, a type id, a length nobody needs, and the value."""

    cdef dict members

    cdef object read(self, _Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        cdef int64_t id = 0
        cdef uint32_t index
        _check(gob_read_bytes(&data.cursor, &text, &length))
        if length == 0:
            return None
        member = self.members.get(PyBytes_FromStringAndSize(<const char *>text,
                                                            <Py_ssize_t>min(length, 1024)))
        if member is None:
            _fail(GOB_E_NAME)
        _check(gob_read_int(&data.cursor, &id))
        index = gob_types_find(&data.table.types, id)
        _check(gob_read_uint(&data.cursor, &length))
        return data.table.reader(member, index).read(data)


cdef class _TreeReader(_Reader):
    """A file-system tree, straight into its packed tables."""

    cdef uint32_t type

    cdef object read(self, _Input data):
        cdef gob_tree tree
        cdef int result, checked = 0
        cdef uint32_t inodes, entries, type = self.type
        cdef gob_types *types = &data.table.types
        cdef gob_cursor cursor = data.cursor
        cdef uint64_t max_inodes = data.max_inodes
        with nogil:
            result = gob_tree_read(types, type, &cursor, max_inodes, &tree)
            if result == 0:
                inodes = <uint32_t>(tree.inodes.len // sizeof(ss_inode))
                entries = <uint32_t>(tree.entries.len // sizeof(ss_entry))
                checked = check_tables(<ss_inode *>tree.inodes.data, &inodes,
                                       <ss_entry *>tree.entries.data, &entries, tree.blob.data,
                                       tree.blob.len, &tree.problem)
        try:
            if checked:
                if tree.problem.fault == 0:
                    raise MemoryError
                tree.problem_number = (<ss_inode *>tree.inodes.data)[tree.problem.inode].number
                result = GOB_E_TREE
            if result == GOB_E_TREE:
                raise GobError(what=f"file-system tree: {_tree_fault(&tree)}")
            _check(result)
            data.cursor = cursor
            return FileSystem(
                PyBytes_FromStringAndSize(<const char *>tree.inodes.data,
                                          inodes * sizeof(ss_inode)),
                PyBytes_FromStringAndSize(<const char *>tree.entries.data,
                                          entries * sizeof(ss_entry)),
                PyBytes_FromStringAndSize(<const char *>tree.blob.data,
                                          <Py_ssize_t>tree.blob.len),
                num_regular_inodes=tree.num_regular_inodes,
                total_data_bytes=tree.total_data_bytes,
                directory_count=tree.directory_count,
            )
        finally:
            gob_tree_free(&tree)


cdef str _tree_fault(gob_tree *tree):
    cdef ss_entry *entry
    name = b""
    if tree.problem.entry < tree.entries.len // sizeof(ss_entry):
        entry = &(<ss_entry *>tree.entries.data)[tree.problem.entry]
        if <uint64_t>entry.name_off + entry.name_len <= tree.blob.len:
            name = PyBytes_FromStringAndSize(<const char *>tree.blob.data + entry.name_off,
                                             min(entry.name_len, 255))
    return describe(tree.problem.fault, tree.problem_number, name)


cdef object _ZERO_TIME = Time()


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
            _check(result)
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
            _check(gob_read_int(&message, &id))
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
        cdef _Table table = self.types.table()
        cdef gob_cursor cursor = message[0]
        self.wanted = gob_types_find(&table.types, id)
        self.spilled = False
        self.flat.len = 0
        if self.wanted >= table.types.count:
            _fail(GOB_E_TYPE)
        if not table.types.any_interface:
            return True
        self.scan.max_depth = min(<uint32_t>self.limits.depth, <uint32_t>GOB_MAX_DEPTH)
        self.scan.max_count = max(<uint64_t>self.limits.elements, <uint64_t>self.limits.inodes)
        _check(gob_scan_start(&self.scan, &table.types, self.wanted, &cursor))
        self.in_value = True
        return self.scan_on(message.at, &cursor)

    cdef bint scan_on(self, const uint8_t *begin, gob_cursor *cursor) except -1:
        """Scans to the end of a message and learns the types defined there; whether the value ends.

        When it goes over more than one message, or has definitions inside, it collects in ``flat``.
        """
        cdef _Table table
        cdef uint64_t skipped = 0
        cdef int result
        while True:
            table = self.types.table()
            with nogil:
                result = gob_scan_run(&self.scan, &table.types, cursor)
            _check(result)
            if result == GOB_SCAN_DEFINE:
                self.keep(begin, cursor.at)
                self.define(cursor)
                if cursor.at != cursor.end:
                    _check(gob_read_uint(cursor, &skipped))
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
        gob_write(&self.flat, begin, length)
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
            _check(gob_read_int(cursor, &id))
            _check(gob_read_type(cursor, -id, &type, room, &count))
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
        cdef _Input data = _Input.__new__(_Input)
        cdef _Table table = self.types.table()
        cdef _Reader reader = table.reader(node, self.wanted)
        cdef uint64_t delta = 0
        data.cursor = cursor[0]
        data.budget = self.limits.values
        data.max_elements = self.limits.elements
        data.max_inodes = self.limits.inodes
        data.keep_mapped = self.keep_mapped
        data.table = table
        if table.types.type[self.wanted].kind != <uint32_t>GOB_STRUCT:
            _check(gob_read_uint(&data.cursor, &delta))
            if delta:
                _fail(GOB_E_VALUE)
        value = reader.read(data)
        if data.cursor.at != data.cursor.end:
            raise GobError(what="there are bytes behind a value")
        return value


# ---- writing values ----------------------------------------------------------------------------

cdef bytes _uint(object value):
    if value <= 0x7f:
        return bytes([value])
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([256 - len(raw)]) + raw


cdef bytes _int(object value):
    return _uint(~value << 1 | 1 if value < 0 else value << 1)


cdef bytes _text(str value):
    raw = value.encode("utf-8", "surrogateescape")
    return _uint(len(raw)) + raw


cdef dict _BUILTIN_IDS = {
    "bool": 1, "int": 2, "uint": 3, "enum": 3, "bytes": 5, "ip": 5, "string": 6, "interface": 8,
}


cdef class _Sent:
    """Which types a stream has defined, and their ids; a tree like :class:`_Types`."""

    cdef dict ids
    cdef int next_id
    cdef dict steps

    def __cinit__(self, dict ids, int next_id):
        self.ids = ids
        self.next_id = next_id
        self.steps = {}

    cdef tuple step(self, object node):
        """What to send before a value of a type: (id, definitions, the state behind them)."""
        found = self.steps.get(node.go)
        if found is None:
            found = self.steps[node.go] = self.work_out(node)
        return found

    cdef tuple work_out(self, object node):
        ids = dict(self.ids)
        counter = [self.next_id]
        names = {}
        number = _assign(node, node.name, ids, names, counter)
        if not names:
            return number, (), self
        bodies = []
        _define(node, ids, names, bodies)
        return number, tuple(bodies), _Sent.__new__(_Sent, ids, counter[0])


cdef dict _NOTHING_SENT = {64: _Sent.__new__(_Sent, {}, 64), 65: _Sent.__new__(_Sent, {}, 65)}


cdef int _assign(object node, str name, dict ids, dict names, list counter) except -1:
    """The id of a type; new ones are numbered in upstream's order.

    Structures are numbered before their parts, everything else behind them, and a type is known by
    the name under which it was first met: "" for what is behind a pointer or in a map.
    """
    builtin = _BUILTIN_IDS.get(node.kind)
    if builtin is not None:
        return builtin
    if node.go in ids:
        return ids[node.go]
    names[node.go] = name
    if node.kind in ("struct", "tree", "time"):
        ids[node.go] = counter[0]
        counter[0] += 1
        for field in node.fields:
            _assign(field.node, field.node.name or field.node.go, ids, names, counter)
        return ids[node.go]
    if node.kind == "map":
        _assign(node.key, "", ids, names, counter)
        _assign(node.elem, "", ids, names, counter)
    elif node.kind == "list":
        _assign(node.elem, "" if node.elem_pointer else node.elem.name, ids, names, counter)
    ids[node.go] = counter[0]
    counter[0] += 1
    return ids[node.go]


cdef object _define(object node, dict ids, dict names, list bodies):
    """Definitions of a type and its parts, those that are still in ``names``."""
    if node.go not in names:
        return None
    name = names.pop(node.go)
    number = ids[node.go]
    common = (b"\1" + _text(name) + b"\1" if name else b"\2") + _int(number) + b"\0"
    if node.kind in ("struct", "tree"):
        fields = b"".join(
            b"\1" + _text(field.wire_name) + b"\1" + _int(_id_of(field.node, ids)) + b"\0"
            for field in node.fields
        )
        body = b"\3\1" + common
        if node.fields:
            body += b"\1" + _uint(len(node.fields)) + fields
        below = [field.node for field in node.fields]
    elif node.kind == "map":
        body = (b"\4\1" + common + b"\1" + _int(_id_of(node.key, ids))
                + b"\1" + _int(_id_of(node.elem, ids)))
        below = [node.key, node.elem]
    elif node.kind == "list":
        body = b"\2\1" + common + b"\1" + _int(_id_of(node.elem, ids))
        below = [node.elem]
    elif node.kind == "hash":
        body = b"\1\1" + common + b"\1" + _int(3) + b"\1" + _int(64)
        below = []
    else:
        body = b"\5\1" + common
        below = []
    bodies.append(_int(-number) + body + b"\0\0")
    for part in below:
        _define(part, ids, names, bodies)
    return None


cdef int _id_of(object node, dict ids) except -1:
    builtin = _BUILTIN_IDS.get(node.kind)
    return ids[node.go] if builtin is None else builtin


cdef bytes _framed(tuple bodies):
    return b"".join([_uint(len(body)) + body for body in bodies])


cdef class _Output:
    """The message being written, and those that are done."""

    cdef gob_buffer message
    cdef gob_buffer done
    cdef _Sent sent

    def __cinit__(self):
        memset(&self.message, 0, sizeof(self.message))
        memset(&self.done, 0, sizeof(self.done))

    def __dealloc__(self):
        gob_buffer_free(&self.message)
        gob_buffer_free(&self.done)

    cdef int close(self) except -1:
        """Ends the message."""
        gob_write_bytes(&self.done, self.message.data, self.message.len)
        self.message.len = 0
        return self.verify()

    cdef int verify(self) except -1:
        if self.message.failed or self.done.failed:
            raise MemoryError
        return 0


cdef int _refuse(object node, object value) except -1:
    text = repr(value)
    raise LocalProtocolError(what=f"{text[:100]} is no value of type {node.go}")


cdef class _Writer:
    """Writes one type; sub-classes say how."""

    cdef object node

    cdef bint empty(self, object value) except -1:
        """Whether a field of this value is left out."""
        return not value

    cdef int write(self, _Output out, object value) except -1:
        raise NotImplementedError


cdef class _BoolWriter(_Writer):
    cdef int write(self, _Output out, object value) except -1:
        if value is not True and value is not False:
            _refuse(self.node, value)
        gob_write_uint(&out.message, 1 if value else 0)
        return 0


cdef class _IntWriter(_Writer):
    cdef int bits

    cdef int write(self, _Output out, object value) except -1:
        cdef int64_t number
        if not isinstance(value, int):
            _refuse(self.node, value)
        try:
            number = value
        except OverflowError:
            return _refuse(self.node, value)
        if self.bits == 32 and number != <int32_t>number:
            _refuse(self.node, value)
        gob_write_int(&out.message, number)
        return 0


cdef class _UintWriter(_Writer):
    cdef int bits

    cdef int write(self, _Output out, object value) except -1:
        cdef uint64_t number
        if not isinstance(value, int):
            _refuse(self.node, value)
        try:
            number = <uint64_t>value
        except OverflowError:
            return _refuse(self.node, value)
        if self.bits < 64 and number >> self.bits:
            _refuse(self.node, value)
        gob_write_uint(&out.message, number)
        return 0


cdef class _StringWriter(_Writer):
    cdef int write(self, _Output out, object value) except -1:
        cdef const char *text
        cdef Py_ssize_t length = 0
        if not PyUnicode_Check(value):
            _refuse(self.node, value)
        if PyUnicode_IS_COMPACT_ASCII(value):
            text = PyUnicode_AsUTF8AndSize(value, &length)
            gob_write_bytes(&out.message, text, <size_t>length)
            return 0
        try:
            raw = (<str>value).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return _refuse(self.node, value)
        gob_write_bytes(&out.message, PyBytes_AS_STRING(raw), <size_t>PyBytes_GET_SIZE(raw))
        return 0


cdef class _BytesWriter(_Writer):
    cdef int write(self, _Output out, object value) except -1:
        if not isinstance(value, bytes):
            if not isinstance(value, (bytearray, memoryview)):
                _refuse(self.node, value)
            value = bytes(value)
        gob_write_bytes(&out.message, PyBytes_AS_STRING(value), <size_t>PyBytes_GET_SIZE(value))
        return 0


cdef class _IpWriter(_Writer):
    cdef int write(self, _Output out, object value) except -1:
        cdef uint8_t raw[16]
        cdef const char *text
        cdef Py_ssize_t length = 0
        cdef int family
        if not PyUnicode_Check(value) or not PyUnicode_IS_COMPACT_ASCII(value):
            _refuse(self.node, value)
        text = PyUnicode_AsUTF8AndSize(value, &length)
        if length == 0:
            gob_write_uint(&out.message, 0)
            return 0
        family = AF_INET6 if ":" in value else AF_INET
        if "\0" in value or inet_pton(family, text, raw) != 1:
            _refuse(self.node, value)
        gob_write_bytes(&out.message, raw, 16 if family == AF_INET6 else 4)
        return 0


cdef class _TimeWriter(_Writer):
    cdef bint empty(self, object value) except -1:
        return value is _ZERO_TIME or value == _ZERO_TIME

    cdef int write(self, _Output out, object value) except -1:
        if not isinstance(value, Time):
            _refuse(self.node, value)
        seconds = value.unix_seconds - YEAR_ONE
        zone = -1 if value.zone_minutes is None else value.zone_minutes
        if not (-1 << 63 <= seconds < 1 << 63 and 0 <= value.nanoseconds < 1000000000
                and -0x8000 <= zone < 0x8000):
            _refuse(self.node, value)
        raw = (b"\1" + (seconds & 0xffffffffffffffff).to_bytes(8, "big")
               + value.nanoseconds.to_bytes(4, "big") + (zone & 0xffff).to_bytes(2, "big"))
        gob_write_bytes(&out.message, PyBytes_AS_STRING(raw), 15)
        return 0


cdef class _HashWriter(_Writer):
    cdef bint empty(self, object value) except -1:
        return False

    cdef int write(self, _Output out, object value) except -1:
        if not isinstance(value, bytes) or len(value) != 64:
            _refuse(self.node, value)
        gob_write_uint(&out.message, 64)
        gob_write_byte_array(&out.message, <const uint8_t *>PyBytes_AS_STRING(value), 64)
        return 0


cdef class _ListWriter(_Writer):
    cdef _Writer elem

    cdef int write(self, _Output out, object value) except -1:
        if not isinstance(value, (list, tuple)):
            _refuse(self.node, value)
        gob_write_uint(&out.message, <uint64_t>len(value))
        for element in value:
            self.elem.write(out, element)
        return 0


def _raw(text):
    return text.encode("utf-8", "surrogateescape")


cdef class _MapWriter(_Writer):
    """Sorted by key (strings by their bytes), so that equal maps are equal bytes."""

    cdef _Writer key
    cdef _Writer elem

    cdef int write(self, _Output out, object value) except -1:
        if not isinstance(value, dict):
            _refuse(self.node, value)
        gob_write_uint(&out.message, <uint64_t>len(value))
        try:
            if self.node.key.kind == "string" and not "".join(value).isascii():
                order = sorted(value, key=_raw)
            else:
                order = sorted(value)
        except (TypeError, UnicodeEncodeError):
            return _refuse(self.node, value)
        for key in order:
            self.key.write(out, key)
            self.elem.write(out, value[key])
        return 0


cdef class _StructWriter(_Writer):
    cdef object cls
    cdef list attributes
    cdef list writers
    cdef list nullable

    cdef bint empty(self, object value) except -1:
        return False

    cdef int write(self, _Output out, object value) except -1:
        cdef Py_ssize_t i, last = -1
        cdef _Writer writer
        if not isinstance(value, self.cls):
            _refuse(self.node, value)
        for i in range(PyList_GET_SIZE(self.attributes)):
            part = getattr(value, <object>PyList_GET_ITEM(self.attributes, i))
            writer = <_Writer>PyList_GET_ITEM(self.writers, i)
            if <object>PyList_GET_ITEM(self.nullable, i) is True:
                if part is None:
                    continue
            elif writer.empty(part):
                continue
            gob_write_uint(&out.message, <uint64_t>(i - last))
            last = i
            writer.write(out, part)
        gob_write_uint(&out.message, 0)
        return 0


cdef class _InterfaceWriter(_Writer):
    """A registered name, the type id, a length and the value; definitions come in between."""

    cdef dict members

    cdef bint empty(self, object value) except -1:
        return value is None

    cdef int write(self, _Output out, object value) except -1:
        cdef gob_buffer outer
        cdef int number
        if value is None:
            gob_write_uint(&out.message, 0)
            return 0
        found = self.members.get(type(value))
        if found is None:
            _refuse(self.node, value)
        name, node = found
        gob_write_bytes(&out.message, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))
        number, bodies, sent = out.sent.step(node)
        if bodies:
            first = <bytes>bodies[0]
            gob_write(&out.message, PyBytes_AS_STRING(first), <size_t>PyBytes_GET_SIZE(first))
            out.close()
            rest = _framed(bodies[1:])
            gob_write(&out.done, PyBytes_AS_STRING(rest), <size_t>PyBytes_GET_SIZE(rest))
            out.sent = sent
        gob_write_int(&out.message, number)
        outer = out.message
        memset(&out.message, 0, sizeof(out.message))
        try:
            _writer(node).write(out, value)
            gob_write_bytes(&outer, out.message.data, out.message.len)
        finally:
            gob_buffer_free(&out.message)
            out.message = outer
        return out.verify()


cdef class _TreeWriter(_Writer):
    cdef list kinds

    cdef bint empty(self, object value) except -1:
        return False

    cdef int write(self, _Output out, object value) except -1:
        cdef gob_tree_announcement announced[5]
        cdef const ss_inode *inodes
        cdef const ss_entry *entries
        cdef const uint8_t *blob
        cdef uint32_t count, i
        cdef uint64_t regular, total, directories
        cdef int kind, result, number
        cdef bint seen[5]
        if not isinstance(value, FileSystem):
            _refuse(self.node, value)
        raw_inodes, raw_entries, raw_blob = <bytes>value.inodes, <bytes>value.entries, <bytes>value.blob
        regular = value.num_regular_inodes
        total = value.total_data_bytes
        directories = value.directory_count
        inodes = <const ss_inode *>PyBytes_AS_STRING(raw_inodes)
        entries = <const ss_entry *>PyBytes_AS_STRING(raw_entries)
        blob = <const uint8_t *>PyBytes_AS_STRING(raw_blob)
        count = <uint32_t>(PyBytes_GET_SIZE(raw_inodes) // sizeof(ss_inode))
        memset(announced, 0, sizeof(announced))
        memset(seen, 0, sizeof(seen))
        kept = []
        for i in range(1, count):
            kind = gob_tree_kind_of(&inodes[i])
            if seen[kind]:
                continue
            seen[kind] = True
            number, bodies, sent = out.sent.step(self.kinds[kind])
            announced[kind].id = number
            if bodies:
                first, rest = <bytes>bodies[0], _framed(bodies[1:])
                kept.append((first, rest))
                announced[kind].first = <const uint8_t *>PyBytes_AS_STRING(first)
                announced[kind].first_len = <size_t>PyBytes_GET_SIZE(first)
                announced[kind].rest = <const uint8_t *>PyBytes_AS_STRING(rest)
                announced[kind].rest_len = <size_t>PyBytes_GET_SIZE(rest)
                out.sent = sent
        with nogil:
            result = gob_tree_write(inodes, count, entries, blob, regular, total, directories,
                                    announced, &out.message, &out.done)
        _check(result)
        return 0


cdef dict _writers = {}


cdef _Writer _writer(object node):
    found = _writers.get(node)
    if found is None:
        found = _writers[node] = _compile_writer(node)
    return <_Writer>found


cdef _Writer _compile_writer(object node):
    cdef _Writer made
    kind = node.kind
    if kind == "bool":
        made = _BoolWriter.__new__(_BoolWriter)
    elif kind == "int":
        made = _IntWriter.__new__(_IntWriter)
        (<_IntWriter>made).bits = node.bits
    elif kind in ("uint", "enum"):
        made = _UintWriter.__new__(_UintWriter)
        (<_UintWriter>made).bits = node.bits
    elif kind == "string":
        made = _StringWriter.__new__(_StringWriter)
    elif kind == "bytes":
        made = _BytesWriter.__new__(_BytesWriter)
    elif kind == "ip":
        made = _IpWriter.__new__(_IpWriter)
    elif kind == "time":
        made = _TimeWriter.__new__(_TimeWriter)
    elif kind == "hash":
        made = _HashWriter.__new__(_HashWriter)
    elif kind == "list":
        made = _ListWriter.__new__(_ListWriter)
        (<_ListWriter>made).elem = _writer(node.elem)
    elif kind == "map":
        made = _MapWriter.__new__(_MapWriter)
        (<_MapWriter>made).key = _writer(node.key)
        (<_MapWriter>made).elem = _writer(node.elem)
    elif kind == "struct":
        made = _StructWriter.__new__(_StructWriter)
        (<_StructWriter>made).cls = node.cls
        (<_StructWriter>made).attributes = [field.attribute for field in node.fields]
        (<_StructWriter>made).writers = [_writer(field.node) for field in node.fields]
        (<_StructWriter>made).nullable = [field.nullable for field in node.fields]
    elif kind == "interface":
        made = _InterfaceWriter.__new__(_InterfaceWriter)
        (<_InterfaceWriter>made).members = {
            member.cls: (name.encode(), member) for name, member in node.members.items()
        }
    else:
        made = _TreeWriter.__new__(_TreeWriter)
        members = node.fields[0].node.elem.members
        (<_TreeWriter>made).kinds = [
            members[(<const char *>gob_tree_names[i]).decode()] for i in range(GOB_TREE_KINDS)
        ]
    made.node = node
    return made


cdef class Encoder:
    """Turns values into bytes; one for each call and direction."""

    cdef _Sent sent

    def __init__(self, *, first_id=64):
        """``first_id``: the id of the first type, 64, or 65 as in older encoders."""
        self.sent = _NOTHING_SENT[first_id]

    def encode(self, value, type_=None):
        """The definitions still needed and the value; raises LocalProtocolError.

        ``type_`` is needed where the value's class does not say what it is, as for a list.
        """
        cdef _Output out = _Output.__new__(_Output)
        cdef int number
        node = node_of(type(value) if type_ is None else type_)
        number, bodies, sent = self.sent.step(node)
        out.sent = sent
        for body in bodies:
            gob_write_bytes(&out.done, PyBytes_AS_STRING(body), <size_t>PyBytes_GET_SIZE(body))
        gob_write_int(&out.message, number)
        if node.kind not in ("struct", "tree"):
            gob_write_uint(&out.message, 0)
        _writer(node).write(out, value)
        out.verify()
        out.close()
        self.sent = out.sent
        return PyBytes_FromStringAndSize(<const char *>out.done.data, <Py_ssize_t>out.done.len)
