# distutils: sources = csrc/kvm_probe.c
# cython: language_level=3
"""Glue over csrc/kvm_probe.c: does a KVM device run a real 64-bit guest?"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef extern from "kvm_probe.h":
    struct ss_kvm_program:
        const uint8_t *code
        size_t length
        uint64_t argument
        uint64_t expected

    struct ss_kvm_verdict:
        int32_t outcome
        int32_t detail
        uint64_t elapsed_ns

    ss_kvm_program ss_kvm_program_real() nogil
    int ss_kvm_probe(const char *device, const ss_kvm_program *program, uint32_t limit_ms,
                     ss_kvm_verdict *verdict) nogil


def real_program():
    """The guest that decides: (code, argument, expected value of rax)."""
    cdef ss_kvm_program program = ss_kvm_program_real()
    return program.code[:program.length], program.argument, program.expected


def run(bytes device, uint32_t limit_ms, program=None):
    """(outcome, detail, nanoseconds) of csrc/kvm_probe.h; ``program``: as real_program gives it."""
    cdef ss_kvm_program chosen = ss_kvm_program_real()
    cdef ss_kvm_verdict verdict
    cdef const char *path = device
    cdef bytes code
    cdef int error
    if program is not None:
        code, argument, expected = program
        chosen.code = <const uint8_t *><const char *>code
        chosen.length = len(code)
        chosen.argument = argument
        chosen.expected = expected
    with nogil:
        error = ss_kvm_probe(path, &chosen, limit_ms, &verdict)
    if error < 0:
        raise OSError(-error, "the KVM probe could not be run")
    return verdict.outcome, verdict.detail, verdict.elapsed_ns
