from libc.stdint cimport int64_t, uint32_t, uint64_t

from smallstack.srpc.gob_c cimport gob_cursor, gob_field, gob_types

cdef int fail(int result) except -1
cdef int check(int result) except -1


cdef class Table:
    cdef gob_types types
    cdef gob_field *fields
    cdef list bodies
    cdef dict readers

    cdef str name_of(self, uint32_t index)
    cdef Reader reader(self, object node, uint32_t index)


cdef class Input:
    cdef gob_cursor cursor
    cdef int64_t budget
    cdef uint64_t max_elements
    cdef uint64_t max_inodes
    cdef Table table
    cdef bint keep_mapped

    cdef int spend(self, uint64_t weight, uint64_t count) except -1
    cdef uint64_t count(self) except? 0


cdef class Reader:
    cdef uint32_t type

    cdef object read(self, Input data)
