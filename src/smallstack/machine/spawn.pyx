# distutils: sources = csrc/spawn.c
# cython: language_level=3
"""Glue over csrc/spawn.c: start a detached, unprivileged process."""

import os

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc


cdef extern from "<sys/types.h>":
    ctypedef int pid_t
    ctypedef unsigned int uid_t
    ctypedef unsigned int gid_t

cdef extern from "spawn.h":
    enum ss_spawn_stage:
        pass

    struct ss_spawn:
        const char *path
        char **argv
        char **envp
        const char *directory
        const int *fds
        size_t fd_count
        int output_fd
        int record_fd
        int group_fd
        const char *group_file
        int change_identity
        uid_t uid
        gid_t gid
        const gid_t *groups
        size_t group_count
        uint64_t open_files

    int ss_spawn_c "ss_spawn"(const ss_spawn *request, pid_t *pid, int *pidfd,
                              ss_spawn_stage *stage) nogil


GROUP_STAGE = "it could not be put into its control group"
STAGES = (
    "no process could be made",
    "it could not get its own session",
    GROUP_STAGE,
    "its descriptors could not be passed",
    "its limits could not be set",
    "its pid could not be recorded",
    "its privileges could not be dropped",
    "its working directory could not be entered",
    "it could not be executed",
)


cdef char **_vector(list strings) except NULL:
    # The list keeps its strings alive for as long as the vector points into them.
    cdef bytes string
    cdef char **vector
    for string in strings:
        if string is None:
            raise TypeError("None among the arguments")
    vector = <char **>malloc((len(strings) + 1) * sizeof(char *))
    if vector is NULL:
        raise MemoryError
    for i, string in enumerate(strings):
        vector[i] = PyBytes_AS_STRING(string)
    vector[len(strings)] = NULL
    return vector


def spawn(bytes path, list argv, list envp, bytes directory, list fds, int output_fd,
          int record_fd, identity, uint64_t open_files, group=None):
    """(pid, pidfd) of a process that runs ``path``; ``identity`` is (uid, gid, groups) or None.

    ``group`` is the directory of a control group, as a descriptor, and the file in it that takes
    a process (b"tasks"), None on cgroup v2.

    Raises OSError whose filename is the stage that failed, one of STAGES.
    """
    cdef ss_spawn request
    cdef ss_spawn_stage stage
    cdef pid_t pid = -1
    cdef int pidfd = -1
    cdef int error
    cdef char **arguments = NULL
    cdef char **environment = NULL
    cdef int *descriptors = NULL
    cdef gid_t *groups = NULL
    cdef list group_list = []
    cdef bytes group_file
    request.path = path
    request.directory = directory
    request.output_fd = output_fd
    request.record_fd = record_fd
    request.open_files = open_files
    request.group_fd = -1
    request.group_file = NULL
    if group is not None:
        request.group_fd, group_file = group
        if group_file is not None:
            request.group_file = group_file
    request.change_identity = identity is not None
    request.uid = 0
    request.gid = 0
    if identity is not None:
        request.uid, request.gid, group_list = identity
    try:
        arguments = _vector(argv)
        environment = _vector(envp)
        descriptors = <int *>malloc((len(fds) + 1) * sizeof(int))
        groups = <gid_t *>malloc((len(group_list) + 1) * sizeof(gid_t))
        if descriptors is NULL or groups is NULL:
            raise MemoryError
        for i, fd in enumerate(fds):
            descriptors[i] = fd
        for i, group in enumerate(group_list):
            groups[i] = group
        request.argv = arguments
        request.envp = environment
        request.fds = descriptors
        request.fd_count = len(fds)
        request.groups = groups
        request.group_count = len(group_list)
        with nogil:
            error = ss_spawn_c(&request, &pid, &pidfd, &stage)
    finally:
        free(arguments)
        free(environment)
        free(descriptors)
        free(groups)
    if error < 0:
        raise OSError(-error, os.strerror(-error), STAGES[<int>stage])
    return pid, pidfd
