# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# distutils: sources = csrc/gob.c csrc/gob_tree_read.c csrc/gob_tree_link.c
"""Reading gob values: one reader for each pair of a message's type and a peer's.

All reading goes over contiguous bytes in which no definitions are left; see ``gob_decoder``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from smallstack.proto.tree cimport check_tables, describe, ss_entry, ss_inode
from smallstack.srpc.gob_c cimport *

from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import YEAR_ONE, Hash, Time
from smallstack.srpc.errors import GobError

cdef extern from "Python.h":
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *)

cdef extern from "arpa/inet.h" nogil:
    int AF_INET, AF_INET6
    const char *inet_ntop(int, const void *, char *, uint32_t)

cdef object _ZERO_TIME = Time()


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


cdef int fail(int result) except -1:
    """Raises what an error number of csrc/gob.h stands for."""
    if result == GOB_E_MEMORY:
        raise MemoryError
    raise GobError(what=_WHAT.get(result, f"error {result}"))


cdef int check(int result) except -1:
    if result < 0:
        fail(result)
    return result


cdef class Table:
    """The types of a stream for the C code, and the readers compiled for them."""

    def __cinit__(self):
        memset(&self.types, 0, sizeof(self.types))
        self.fields = NULL
        self.readers = {}

    def __dealloc__(self):
        PyMem_Free(self.types.type)
        PyMem_Free(self.types.by_id)
        PyMem_Free(self.fields)

    cdef str name_of(self, uint32_t index):
        """What a wire type is, for error messages."""
        if index >= self.types.count:
            return "an undefined type"
        return _KINDS[self.types.type[index].kind]

    cdef Reader reader(self, object node, uint32_t index):
        """The reader of wire type ``index`` into ``node``; raises GobError if they don't fit."""
        key = (node, index)
        found = self.readers.get(key)
        if found is None:
            wanted, made = _READERS[node.kind]
            if index >= self.types.count:
                fail(GOB_E_TYPE)
            if self.types.type[index].kind != <uint32_t>wanted:
                raise GobError(what=f"{node.go} is sent as {self.name_of(index)}")
            found = self.readers[key] = made(self, node, index)
        return <Reader>found


cdef dict _KINDS = {
    0: "nothing", GOB_BOOL: "a bool", GOB_INT: "a signed integer", GOB_UINT: "an unsigned integer",
    GOB_FLOAT: "a float", GOB_BYTES: "bytes", GOB_STRING: "a string", GOB_COMPLEX: "a complex",
    GOB_INTERFACE: "an interface", GOB_ARRAY: "an array", GOB_SLICE: "a list",
    GOB_STRUCT: "a structure", GOB_MAP: "a map", GOB_OPAQUE: "bytes of its own making",
}


cdef class Input:
    """Contiguous bytes of one value, and what its readers need to know."""

    cdef int spend(self, uint64_t weight, uint64_t count) except -1:
        if count > <uint64_t>self.budget:
            fail(GOB_E_LIMIT)
        self.budget -= <int64_t>(weight * count)
        if self.budget < 0:
            fail(GOB_E_LIMIT)
        return 0

    cdef uint64_t count(self) except? 0:
        """The number of elements that follow; each takes at least a byte."""
        cdef uint64_t count = 0
        check(gob_read_uint(&self.cursor, &count))
        if count > <uint64_t>(self.cursor.end - self.cursor.at):
            fail(GOB_E_SHORT)
        if count > self.max_elements:
            fail(GOB_E_LIMIT)
        self.spend(1, count)
        return count


cdef class Reader:
    """Reads past a value of wire type ``index``; sub-classes read it into a node."""

    def __cinit__(self, Table table, object node, uint32_t index):
        self.type = index

    cdef object read(self, Input data):
        check(gob_skip(&data.table.types, self.type, &data.cursor))
        return None


cdef class _BoolReader(Reader):
    cdef object read(self, Input data):
        cdef uint64_t value = 0
        check(gob_read_uint(&data.cursor, &value))
        if value > 1:
            fail(GOB_E_VALUE)
        return value == 1


cdef class _IntReader(Reader):
    cdef int bits

    def __cinit__(self, Table table, object node, uint32_t index):
        self.bits = node.bits

    cdef object read(self, Input data):
        cdef int64_t value = 0
        check(gob_read_int(&data.cursor, &value))
        if value >> (self.bits - 1) not in (0, -1):
            fail(GOB_E_VALUE)
        return value


cdef class _UintReader(Reader):
    cdef int bits

    def __cinit__(self, Table table, object node, uint32_t index):
        self.bits = node.bits

    cdef object read(self, Input data):
        cdef uint64_t value = 0
        check(gob_read_uint(&data.cursor, &value))
        if self.bits < 64 and value >> self.bits:
            fail(GOB_E_VALUE)
        return value


cdef class _EnumReader(Reader):
    cdef object cls
    cdef dict known

    def __cinit__(self, Table table, object node, uint32_t index):
        self.cls = node.cls
        self.known = {int(member): member for member in node.cls}

    cdef object read(self, Input data):
        cdef uint64_t value = 0
        check(gob_read_uint(&data.cursor, &value))
        number = value
        found = self.known.get(number)
        return self.cls(number) if found is None else found


cdef class _StringReader(Reader):
    cdef object read(self, Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        check(gob_read_bytes(&data.cursor, &text, &length))
        if length == 0:
            return ""
        return PyUnicode_DecodeUTF8(<char *>text, <Py_ssize_t>length, "surrogateescape")


cdef class _BytesReader(Reader):
    cdef object read(self, Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        check(gob_read_bytes(&data.cursor, &text, &length))
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
        fail(GOB_E_VALUE)
    return (<const char *>text).decode("ascii")


cdef class _IpReader(Reader):
    cdef object read(self, Input data):
        cdef const uint8_t *raw = NULL
        cdef uint64_t length = 0
        check(gob_read_bytes(&data.cursor, &raw, &length))
        return _ip_text(raw, length, data.keep_mapped)


cdef class _TimeReader(Reader):
    """Version 1 or 2, seconds since year 1 (8 bytes), nanoseconds (4), zone in minutes (2)."""

    cdef object read(self, Input data):
        cdef const uint8_t *raw = NULL
        cdef uint64_t length = 0, seconds = 0
        cdef uint32_t nanoseconds = 0
        cdef int16_t zone
        cdef int i
        check(gob_read_bytes(&data.cursor, &raw, &length))
        if length == 0 or length != 14 + <uint64_t>raw[0] or raw[0] > 2 or raw[0] == 0:
            raise GobError(what=f"a time has {length} bytes")
        for i in range(1, 9):
            seconds = seconds << 8 | raw[i]
        for i in range(9, 13):
            nanoseconds = nanoseconds << 8 | raw[i]
        zone = <int16_t>(<uint32_t>raw[13] << 8 | raw[14])
        if nanoseconds > 999999999:
            fail(GOB_E_VALUE)
        if zone == -1:
            if <int64_t>seconds == 0 and nanoseconds == 0:
                return _ZERO_TIME
            return Time(<int64_t>seconds + YEAR_ONE, nanoseconds, None)
        return Time(<int64_t>seconds + YEAR_ONE, nanoseconds, zone)


cdef class _HashReader(Reader):
    def __cinit__(self, Table table, object node, uint32_t index):
        cdef gob_type *type = &table.types.type[index]
        if type.length != 64 or type.elem != <uint32_t>GOB_UINT:
            raise GobError(what=f"{node.go} is sent as another array")

    cdef object read(self, Input data):
        cdef uint64_t count = 0
        cdef uint8_t raw[64]
        check(gob_read_uint(&data.cursor, &count))
        if count != 64:
            fail(GOB_E_LENGTH)
        check(gob_read_byte_array(&data.cursor, raw, 64))
        return Hash(PyBytes_FromStringAndSize(<const char *>raw, 64))


cdef class _ListReader(Reader):
    cdef Reader elem

    def __cinit__(self, Table table, object node, uint32_t index):
        self.elem = table.reader(node.elem, table.types.type[index].elem)

    cdef object read(self, Input data):
        cdef uint64_t count = data.count(), i
        cdef list made = []
        cdef Reader elem = self.elem
        for i in range(count):
            made.append(elem.read(data))
        return made


cdef class _MapReader(Reader):
    cdef Reader key
    cdef Reader elem

    def __cinit__(self, Table table, object node, uint32_t index):
        self.key = table.reader(node.key, table.types.type[index].key)
        self.elem = table.reader(node.elem, table.types.type[index].elem)

    cdef object read(self, Input data):
        cdef uint64_t count = data.count(), i
        cdef dict made = {}
        for i in range(count):
            key = self.key.read(data)
            made[key] = self.elem.read(data)
        return made


cdef class _StructReader(Reader):
    """Reads a structure into keyword arguments of its class."""

    cdef object cls
    cdef list names
    cdef list readers
    cdef uint64_t weight
    cdef uint32_t field_count
    cdef uint64_t last_mask
    cdef tuple last_names

    def __cinit__(self, Table table, object node, uint32_t index):
        cdef gob_type *type = &table.types.type[index]
        cdef uint32_t f
        wanted = {field.wire_name.encode(): field for field in node.fields}
        if len(wanted) > 64:
            raise TypeError(f"{node.go} has more than 64 fields")
        self.cls = node.cls
        self.names = []
        self.readers = []
        self.weight = 1 + len(wanted) // 4
        self.field_count = type.field_count
        for f in range(type.field_count):
            name = PyBytes_FromStringAndSize(<const char *>type.fields[f].name,
                                             type.fields[f].name_len)
            field = wanted.pop(name, None)
            if field is None:
                self.names.append(None)
                self.readers.append(Reader(table, None, type.fields[f].type))
                continue
            try:
                self.readers.append(table.reader(field.node, type.fields[f].type))
            except GobError as error:
                raise GobError(what=f"{node.name}.{field.wire_name}: {error.what}") from None
            self.names.append(field.attribute)

    cdef object read(self, Input data):
        cdef PyObject *values[64]
        cdef PyObject *reader
        cdef uint8_t where[64]
        cdef int count = 0, i
        cdef uint64_t delta = 0, mask = 0
        cdef int64_t field = -1
        data.spend(self.weight, 1)
        try:
            while True:
                check(gob_read_uint(&data.cursor, &delta))
                if delta == 0:
                    break
                if delta > <uint64_t>(<int64_t>self.field_count - 1 - field):
                    fail(GOB_E_FIELD)
                field += <int64_t>delta
                reader = PyList_GET_ITEM(self.readers, field)
                value = (<Reader>reader).read(data)
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

    cdef object slow(self, Input data, int64_t field, PyObject **values, uint8_t *where,
                     int count):
        """The rest of a structure with known fields beyond its 64th."""
        cdef uint64_t delta = 0
        cdef int i
        cdef dict found = {self.names[where[i]]: <object>values[i] for i in range(count - 1)}
        found[self.names[field]] = <object>values[count - 1]
        while True:
            check(gob_read_uint(&data.cursor, &delta))
            if delta == 0:
                return self.cls(**found)
            if delta > <uint64_t>(<int64_t>self.field_count - 1 - field):
                fail(GOB_E_FIELD)
            field += <int64_t>delta
            value = (<Reader>PyList_GET_ITEM(self.readers, field)).read(data)
            if self.names[field] is not None:
                found[self.names[field]] = value


cdef class _InterfaceReader(Reader):
    """A registered name, a type id, a length nobody needs, and the value."""

    cdef dict members

    def __cinit__(self, Table table, object node, uint32_t index):
        self.members = {name.encode(): member for name, member in node.members.items()}

    cdef object read(self, Input data):
        cdef const uint8_t *text = NULL
        cdef uint64_t length = 0
        cdef int64_t id = 0
        cdef uint32_t index
        check(gob_read_bytes(&data.cursor, &text, &length))
        if length == 0:
            return None
        member = self.members.get(PyBytes_FromStringAndSize(<const char *>text,
                                                            <Py_ssize_t>min(length, 1024)))
        if member is None:
            fail(GOB_E_NAME)
        check(gob_read_int(&data.cursor, &id))
        index = gob_types_find(&data.table.types, id)
        check(gob_read_uint(&data.cursor, &length))
        return data.table.reader(member, index).read(data)


cdef bytes _taken(gob_buffer *table, uint64_t length):
    """The first bytes of a table; the table is then no more."""
    cdef bytes taken = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
    cdef char *to = PyBytes_AS_STRING(taken)
    with nogil:
        gob_move(to, table.data, length)
    gob_buffer_free(table)
    return taken


cdef class _TreeReader(Reader):
    """A file-system tree, straight into its packed tables; its input is dropped as it is read."""

    cdef object read(self, Input data):
        cdef gob_tree tree
        cdef int result, checked = 0
        cdef uint32_t inodes, entries, type = self.type
        cdef gob_types *types = &data.table.types
        cdef gob_cursor cursor = data.cursor
        cdef uint64_t max_inodes = data.max_inodes
        with nogil:
            result = gob_tree_read(types, type, &cursor, max_inodes, True, &tree)
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
            check(result)
            data.cursor = cursor
            return FileSystem(
                _taken(&tree.inodes, inodes * sizeof(ss_inode)),
                _taken(&tree.entries, entries * sizeof(ss_entry)),
                _taken(&tree.blob, tree.blob.len),
                num_regular_inodes=tree.num_regular_inodes,
                total_data_bytes=tree.total_data_bytes,
                directory_count=tree.directory_count,
            )
        finally:
            gob_tree_free(&tree)


cdef dict _READERS = {
    "bool": (GOB_BOOL, _BoolReader), "int": (GOB_INT, _IntReader), "uint": (GOB_UINT, _UintReader),
    "enum": (GOB_UINT, _EnumReader), "string": (GOB_STRING, _StringReader),
    "bytes": (GOB_BYTES, _BytesReader), "ip": (GOB_BYTES, _IpReader),
    "time": (GOB_OPAQUE, _TimeReader), "hash": (GOB_ARRAY, _HashReader),
    "list": (GOB_SLICE, _ListReader), "map": (GOB_MAP, _MapReader),
    "struct": (GOB_STRUCT, _StructReader), "tree": (GOB_STRUCT, _TreeReader),
    "interface": (GOB_INTERFACE, _InterfaceReader),
}


cdef str _tree_fault(gob_tree *tree):
    cdef ss_entry *entry
    name = b""
    if tree.problem.entry < tree.entries.len // sizeof(ss_entry):
        entry = &(<ss_entry *>tree.entries.data)[tree.problem.entry]
        if <uint64_t>entry.name_off + entry.name_len <= tree.blob.len:
            name = PyBytes_FromStringAndSize(<const char *>tree.blob.data + entry.name_off,
                                             min(entry.name_len, 255))
    return describe(tree.problem.fault, tree.problem_number, name)
