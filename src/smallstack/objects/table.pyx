# cython: language_level=3, boundscheck=False, wraparound=False
"""A dict by digest that never takes long for one entry.

A dict that grows is copied whole from time to time: at 100,000 entries that takes 5 ms. This is one
of many small ones, by the first byte of the digest, which grow at different moments.
"""

from collections.abc import MutableMapping

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check
from cpython.dict cimport PyDict_Contains, PyDict_GetItemWithError, PyDict_SetItem
from cpython.object cimport PyObject

SHARDS = 256


cdef class Table:
    """Keys are digests. One thread changes it; others may look things up and iterate meanwhile.

    An iteration shows what each part held when it came to it.
    """

    cdef list shards

    def __init__(self, entries=None):
        self.shards = [{} for _ in range(SHARDS)]
        if entries is not None:
            for key, value in entries.items():
                PyDict_SetItem(self.shard(key), key, value)

    @classmethod
    def __class_getitem__(cls, item):
        return cls

    @staticmethod
    def of(keys):
        """A table of these keys, each with the value None."""
        cdef Table table = Table()
        for key in keys:
            PyDict_SetItem(table.shard(key), key, None)
        return table

    cdef dict shard(self, object key):
        if not PyBytes_Check(key):
            raise TypeError("a key is a digest")
        return <dict>self.shards[<unsigned char>PyBytes_AS_STRING(key)[0]]

    def __contains__(self, key):
        return PyBytes_Check(key) and PyDict_Contains(self.shard(key), key) == 1

    def __getitem__(self, key):
        return self.shard(key)[key]

    def __setitem__(self, key, value):
        PyDict_SetItem(self.shard(key), key, value)

    def __delitem__(self, key):
        del self.shard(key)[key]

    def __len__(self):
        cdef Py_ssize_t total = 0
        for shard in self.shards:
            total += len(<dict>shard)
        return total

    def __iter__(self):
        for shard in self.shards:
            yield from list(shard)

    def take(self, key):
        """Remove an entry and return its value; raises KeyError."""
        return self.shard(key).pop(key)

    def find(self, key):
        """The value of a key, None when there is none."""
        cdef PyObject *found = PyDict_GetItemWithError(self.shard(key), key)
        return <object>found if found != NULL else None

    def put(self, keys, value):
        """Give every one of these that has an entry this value."""
        cdef dict shard
        for key in keys:
            shard = self.shard(key)
            if PyDict_Contains(shard, key) == 1:
                PyDict_SetItem(shard, key, value)

    def apart(self, list items not None):
        """Those of some tuples, each with a digest first, that have no entry, and pairs of the
        others and their values."""
        cdef list missing = [], found = []
        cdef PyObject *value
        for item in items:
            key = (<tuple>item)[0]
            value = PyDict_GetItemWithError(self.shard(key), key)
            if value == NULL:
                missing.append(item)
            else:
                held = <object>value  # before anything else runs: it is only borrowed
                found.append((item, held))
        return missing, found

    def enter(self, list items not None):
        """Have each of some tuples as the value of the digest that it begins with."""
        for item in items:
            key = (<tuple>item)[0]
            PyDict_SetItem(self.shard(key), key, item)

    def enter_all(self, list items not None, value):
        """Have the digests that some tuples begin with have this value."""
        for item in items:
            key = (<tuple>item)[0]
            PyDict_SetItem(self.shard(key), key, value)

    get = MutableMapping.get
    keys = MutableMapping.keys
    items = MutableMapping.items
    values = MutableMapping.values


MutableMapping.register(Table)
