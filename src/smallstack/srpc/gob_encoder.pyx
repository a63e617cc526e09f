# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# distutils: sources = csrc/gob_tree_write.c
"""The writing side of gob.

An :class:`Encoder` sends the definitions of a type before its first value, in the order and with
the ids, from 64 up, that upstream's encoder has in a fresh process. Which types were sent is a
:class:`_Sent`, shared by all encoders: what a definition looks like is worked out once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from smallstack.proto.tree cimport ss_entry, ss_inode
from smallstack.srpc.gob_c cimport *

from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import YEAR_ONE, Time
from smallstack.srpc.errors import LocalProtocolError
from smallstack.srpc.schema import node_of

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bint PyUnicode_Check(object)
    bint PyUnicode_IS_COMPACT_ASCII(object)

cdef extern from "arpa/inet.h" nogil:
    int AF_INET, AF_INET6
    int inet_pton(int, const char *, void *)

cdef object _ZERO_TIME = Time()


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
    """Writes one type: of itself it refuses every value, sub-classes know theirs."""

    cdef object node

    def __cinit__(self, object node):
        self.node = node

    cdef bint empty(self, object value) except -1:
        """Whether a field of this value is left out."""
        return not value

    cdef int write(self, _Output out, object value) except -1:
        return _refuse(self.node, value)


cdef class _BoolWriter(_Writer):
    cdef int write(self, _Output out, object value) except -1:
        if value is not True and value is not False:
            _refuse(self.node, value)
        gob_write_uint(&out.message, 1 if value else 0)
        return 0


cdef class _IntWriter(_Writer):
    cdef int bits

    def __cinit__(self, object node):
        self.bits = node.bits

    cdef int write(self, _Output out, object value) except -1:
        cdef int64_t number
        if not isinstance(value, int):
            _refuse(self.node, value)
        try:
            number = value
        except OverflowError:
            return _refuse(self.node, value)
        if number >> (self.bits - 1) not in (0, -1):
            _refuse(self.node, value)
        gob_write_int(&out.message, number)
        return 0


cdef class _UintWriter(_Writer):
    cdef int bits

    def __cinit__(self, object node):
        self.bits = node.bits

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

    def __cinit__(self, object node):
        self.elem = _writer(node.elem)

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

    def __cinit__(self, object node):
        self.key = _writer(node.key)
        self.elem = _writer(node.elem)

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

    def __cinit__(self, object node):
        self.cls = node.cls
        self.attributes = [field.attribute for field in node.fields]
        self.writers = [_writer(field.node) for field in node.fields]
        self.nullable = [field.nullable for field in node.fields]

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

    def __cinit__(self, object node):
        self.members = {
            member.cls: (name.encode(), member) for name, member in node.members.items()
        }

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

    def __cinit__(self, object node):
        members = node.fields[0].node.elem.members
        self.kinds = [
            members[(<const char *>gob_tree_names[i]).decode()] for i in range(GOB_TREE_KINDS)
        ]

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
        if result:
            raise MemoryError
        return 0


cdef dict _CLASSES = {
    "bool": _BoolWriter, "int": _IntWriter, "uint": _UintWriter, "enum": _UintWriter,
    "string": _StringWriter, "bytes": _BytesWriter, "ip": _IpWriter, "time": _TimeWriter,
    "hash": _HashWriter, "list": _ListWriter, "map": _MapWriter, "struct": _StructWriter,
    "interface": _InterfaceWriter, "tree": _TreeWriter,
}
cdef dict _writers = {}


cdef _Writer _writer(object node):
    found = _writers.get(node)
    if found is None:
        found = _writers[node] = _CLASSES[node.kind](node)
    return <_Writer>found


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
