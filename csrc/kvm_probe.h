/* Find out whether /dev/kvm can really run a 64-bit guest.
 *
 * A KVM without hardware virtualisation can open, make machines and run a few instructions in its
 * emulator, and still hang every ordinary kernel. So the probe enters long mode and runs a loop of
 * instructions that emulators lack (popcnt, pxor, movd, paddd), checks what they computed, and is
 * bounded by a timer. Formats and calls: Documentation/virt/kvm/api.rst of the Linux kernel.
 *
 * No globals; everything is in the child process that ss_kvm_probe makes, so that nothing a
 * broken KVM does to its caller reaches the agent.
 */
#ifndef SS_KVM_PROBE_H
#define SS_KVM_PROBE_H

#include <stddef.h>
#include <stdint.h>

enum ss_kvm_outcome {
    SS_KVM_WORKS = 0,
    SS_KVM_NO_DEVICE,     /* detail: errno of open (ENOENT, EACCES, …) */
    SS_KVM_NOT_KVM,       /* the device does not speak KVM's API version 12; detail: version or -errno */
    SS_KVM_SETUP,         /* a machine or vCPU could not be made; detail: errno */
    SS_KVM_INTERNAL,      /* KVM_EXIT_INTERNAL_ERROR; detail: suberror (1: emulation failed) */
    SS_KVM_EXIT,          /* another unexpected exit; detail: its number */
    SS_KVM_RUN,           /* KVM_RUN failed; detail: errno */
    SS_KVM_WRONG,         /* the guest computed something else; detail: 0 */
    SS_KVM_TIMEOUT,       /* the guest did not finish in time */
    SS_KVM_HUNG,          /* the child did not even obey its timer, and was killed */
    SS_KVM_DIED           /* the child ended without a verdict; detail: wait status */
};

/* 64-bit code, loaded at guest address 0x8000 and entered with rdi = argument and a stack; it
 * ends with hlt. What rax must then hold says whether it ran. */
struct ss_kvm_program {
    const uint8_t *code;
    size_t length;        /* at most 4096 bytes */
    uint64_t argument;
    uint64_t expected;
};

struct ss_kvm_verdict {
    int32_t outcome;      /* enum ss_kvm_outcome */
    int32_t detail;
    uint64_t elapsed_ns;  /* of KVM_RUN, by CLOCK_MONOTONIC */
};

/* The program that decides: 50,000 rounds of popcnt and SSE2, a fraction of a millisecond on
 * hardware and a second or more in an emulator. */
struct ss_kvm_program ss_kvm_program_real(void);

/* Run `program` under `device` in a child process; returns 0 with the verdict filled in, or a
 * negative errno if no child could be made. The guest is stopped after limit_ms milliseconds by
 * a timer, the child killed half a second after that. Blocks for that long at most. */
int ss_kvm_probe(const char *device, const struct ss_kvm_program *program, uint32_t limit_ms,
                 struct ss_kvm_verdict *verdict);

#endif
