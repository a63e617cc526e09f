#define _GNU_SOURCE
#include "kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GRACE_MS 500u /* for a child on a busy host to get its turn */

static uint64_t now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__)

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define CODE 0x8000u
#define CODE_LIMIT 4096u
#define STACK_TOP 0xf000u
#define MEMORY 0x10000u
#define API_VERSION 12

static const uint8_t real_code[] = {
    0x31, 0xc0,                   /*    xor    %eax,%eax             */
    0x66, 0x0f, 0xef, 0xc0,       /*    pxor   %xmm0,%xmm0           */
    0x66, 0x0f, 0x6e, 0xcf,       /*    movd   %edi,%xmm1            */
    0xb9, 0x50, 0xc3, 0x00, 0x00, /*    mov    $50000,%ecx           */
    0xf3, 0x48, 0x0f, 0xb8, 0xd7, /* 1: popcnt %rdi,%rdx             */
    0x48, 0x01, 0xd0,             /*    add    %rdx,%rax             */
    0x66, 0x0f, 0xfe, 0xc1,       /*    paddd  %xmm1,%xmm0           */
    0xff, 0xc9,                   /*    dec    %ecx                  */
    0x75, 0xf0,                   /*    jne    1b                    */
    0x66, 0x0f, 0x7e, 0xc2,       /*    movd   %xmm0,%edx            */
    0x48, 0xc1, 0xe2, 0x20,       /*    shl    $32,%rdx              */
    0x48, 0x09, 0xd0,             /*    or     %rdx,%rax             */
    0xf4,                         /*    hlt                          */
};

struct ss_kvm_program ss_kvm_program_real(void)
{
    const uint64_t argument = 0xf0f0123456789abdu;
    const uint32_t sum = 50000u * (uint32_t)argument; /* modulo 2^32, as paddd has it */
    const struct ss_kvm_program program = {
        real_code, sizeof real_code, argument,
        50000u * (uint64_t)__builtin_popcountll(argument) | (uint64_t)sum << 32};

    return program;
}

/* The signal may come before KVM_RUN is entered; immediate_exit makes that entry return too. */
static void on_timer(int number, siginfo_t *info, void *context)
{
    struct kvm_run *run = info->si_value.sival_ptr;

    (void)number;
    (void)context;
    run->immediate_exit = 1;
}

static int arm_timer(struct kvm_run *run, uint32_t limit_ms)
{
    struct sigaction action;
    struct sigevent event;
    struct itimerspec when;
    timer_t timer;

    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_timer;
    action.sa_flags = SA_SIGINFO;
    if (sigaction(SIGALRM, &action, NULL) < 0)
        return -errno;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGALRM;
    event.sigev_value.sival_ptr = run;
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
        return -errno;
    memset(&when, 0, sizeof when);
    when.it_value.tv_sec = limit_ms / 1000;
    when.it_value.tv_nsec = (long)(limit_ms % 1000) * 1000000L;
    return timer_settime(timer, 0, &when, NULL) < 0 ? -errno : 0;
}

static void put_u64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

/* Long mode with the first 2 MiB mapped to themselves; flat segments, SSE on. */
static void fill_memory(uint8_t *memory, const struct ss_kvm_program *program)
{
    put_u64(memory + PML4, PDPT | 3u);  /* present, writable */
    put_u64(memory + PDPT, PD | 3u);
    put_u64(memory + PD, 0x83u);        /* a 2 MiB page */
    memcpy(memory + CODE, program->code, program->length);
}

static int fill_registers(int vcpu, const struct ss_kvm_program *program)
{
    struct kvm_sregs system;
    struct kvm_regs general;
    struct kvm_segment code;

    if (ioctl(vcpu, KVM_GET_SREGS, &system) < 0)
        return -errno;
    memset(&code, 0, sizeof code);
    code.limit = 0xffffffffu;
    code.selector = 8;
    code.type = 11; /* execute, read, accessed */
    code.present = 1;
    code.s = 1;
    code.l = 1;
    code.g = 1;
    system.cs = code;
    code.selector = 16;
    code.type = 3; /* read, write, accessed */
    code.l = 0;
    code.db = 1;
    system.ds = system.es = system.fs = system.gs = system.ss = code;
    system.cr3 = PML4;
    system.cr4 = 0x620;      /* PAE, OSFXSR, OSXMMEXCPT */
    system.cr0 = 0x80000033; /* PE, MP, ET, NE, PG */
    system.efer = 0x500;     /* LME, LMA */
    if (ioctl(vcpu, KVM_SET_SREGS, &system) < 0)
        return -errno;
    memset(&general, 0, sizeof general);
    general.rip = CODE;
    general.rsp = STACK_TOP;
    general.rdi = program->argument;
    general.rflags = 2;
    return ioctl(vcpu, KVM_SET_REGS, &general) < 0 ? -errno : 0;
}

/* What the host supports is what the guest is told it has. */
static int fill_cpuid(int kvm, int vcpu)
{
    enum { ENTRIES = 256 };
    struct kvm_cpuid2 *cpuid;
    const size_t size = sizeof *cpuid + ENTRIES * sizeof(struct kvm_cpuid_entry2);
    int error = 0;

    cpuid = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (cpuid == MAP_FAILED)
        return -errno;
    cpuid->nent = ENTRIES;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0 ||
        ioctl(vcpu, KVM_SET_CPUID2, cpuid) < 0)
        error = -errno;
    (void)munmap(cpuid, size);
    return error;
}

static struct ss_kvm_verdict verdict_of(enum ss_kvm_outcome outcome, int detail)
{
    const struct ss_kvm_verdict verdict = {(int32_t)outcome, detail, 0};

    return verdict;
}

static struct ss_kvm_verdict run_guest(int vcpu, struct kvm_run *run,
                                       const struct ss_kvm_program *program, uint32_t limit_ms)
{
    struct ss_kvm_verdict verdict = verdict_of(SS_KVM_WORKS, 0);
    struct kvm_regs registers;
    const uint64_t start = now_ns();
    int status;
    int error = arm_timer(run, limit_ms);

    if (error < 0)
        return verdict_of(SS_KVM_SETUP, -error);
    status = ioctl(vcpu, KVM_RUN, 0);
    error = errno;
    verdict.elapsed_ns = now_ns() - start;
    if (status < 0) {
        verdict.outcome = error == EINTR ? SS_KVM_TIMEOUT : SS_KVM_RUN;
        verdict.detail = error;
    } else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
        verdict.outcome = SS_KVM_INTERNAL;
        verdict.detail = (int32_t)run->internal.suberror;
    } else if (run->exit_reason != KVM_EXIT_HLT) {
        verdict.outcome = SS_KVM_EXIT;
        verdict.detail = (int32_t)run->exit_reason;
    } else if (ioctl(vcpu, KVM_GET_REGS, &registers) < 0) {
        verdict.outcome = SS_KVM_RUN;
        verdict.detail = errno;
    } else if (registers.rax != program->expected) {
        verdict.outcome = SS_KVM_WRONG;
    }
    return verdict;
}

/* Descriptors and mappings go with the child. */
static struct ss_kvm_verdict probe_here(const char *device, const struct ss_kvm_program *program,
                                        uint32_t limit_ms)
{
    struct kvm_userspace_memory_region region;
    const int kvm = open(device, O_RDWR | O_CLOEXEC);
    struct kvm_run *run;
    uint8_t *memory;
    int version, machine, vcpu, size, error;

    if (kvm < 0)
        return verdict_of(SS_KVM_NO_DEVICE, errno);
    version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    if (version != API_VERSION)
        return verdict_of(SS_KVM_NOT_KVM, version < 0 ? -errno : version);
    machine = ioctl(kvm, KVM_CREATE_VM, 0);
    if (machine < 0)
        return verdict_of(SS_KVM_SETUP, errno);
    /* Intel without unrestricted guests wants three pages for itself; others refuse, no matter. */
    (void)ioctl(machine, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return verdict_of(SS_KVM_SETUP, errno);
    fill_memory(memory, program);
    memset(&region, 0, sizeof region);
    region.memory_size = MEMORY;
    region.userspace_addr = (uint64_t)(uintptr_t)memory;
    if (ioctl(machine, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return verdict_of(SS_KVM_SETUP, errno);
    vcpu = ioctl(machine, KVM_CREATE_VCPU, 0);
    size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (vcpu < 0 || size < (int)sizeof(struct kvm_run))
        return verdict_of(SS_KVM_SETUP, errno);
    run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        return verdict_of(SS_KVM_SETUP, errno);
    error = fill_cpuid(kvm, vcpu);
    if (error == 0)
        error = fill_registers(vcpu, program);
    if (error < 0)
        return verdict_of(SS_KVM_SETUP, -error);
    return run_guest(vcpu, run, program, limit_ms);
}

#else /* another architecture: its own program has to be written first */

static const uint8_t real_code[] = {0};
#define CODE_LIMIT 4096u

struct ss_kvm_program ss_kvm_program_real(void)
{
    const struct ss_kvm_program program = {real_code, sizeof real_code, 0, 0};

    return program;
}

static struct ss_kvm_verdict probe_here(const char *device, const struct ss_kvm_program *program,
                                        uint32_t limit_ms)
{
    const struct ss_kvm_verdict verdict = {SS_KVM_SETUP, ENOSYS, 0};

    (void)device;
    (void)program;
    (void)limit_ms;
    return verdict;
}

#endif

static void reset_signals(void)
{
    struct sigaction action;
    sigset_t none;

    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    for (int number = 1; number < NSIG; number++)
        (void)sigaction(number, &action, NULL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* 1: the child's verdict is in; 0: the child ended without; -1: the time is over. */
static int read_verdict(int fd, uint64_t deadline, struct ss_kvm_verdict *verdict)
{
    for (;;) {
        struct pollfd wait = {fd, POLLIN, 0};
        const uint64_t now = now_ns();
        const int left = now < deadline ? (int)((deadline - now) / 1000000u) + 1 : 0;
        const int ready = poll(&wait, 1, left);

        if (ready > 0)
            return read(fd, verdict, sizeof *verdict) == (ssize_t)sizeof *verdict;
        if (ready == 0)
            return -1;
        if (errno != EINTR)
            return 0;
    }
}

int ss_kvm_probe(const char *device, const struct ss_kvm_program *program, uint32_t limit_ms,
                 struct ss_kvm_verdict *verdict)
{
    const uint64_t deadline = now_ns() + ((uint64_t)limit_ms + GRACE_MS) * 1000000u;
    sigset_t all;
    sigset_t before;
    int ends[2];
    int got, status;
    pid_t child;

    if (program->length > CODE_LIMIT)
        return -E2BIG;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    /* None of the caller's handlers may run in the child: they could write to its pipes. */
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    child = fork();
    if (child == 0) {
        struct ss_kvm_verdict mine;

        reset_signals();
        mine = probe_here(device, program, limit_ms);
        _exit(write(ends[1], &mine, sizeof mine) == (ssize_t)sizeof mine ? 0 : 1);
    }
    got = child < 0 ? -errno : 0;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)close(ends[1]);
    if (child < 0) {
        (void)close(ends[0]);
        return got;
    }
    got = read_verdict(ends[0], deadline, verdict);
    (void)close(ends[0]);
    if (got <= 0) {
        verdict->outcome = got < 0 ? SS_KVM_HUNG : SS_KVM_DIED;
        verdict->detail = 0;
        verdict->elapsed_ns = 0;
        (void)kill(child, SIGKILL);
    }
    /* One that cannot even be killed is left to the system: waiting for it would hang the caller. */
    for (unsigned tries = 0; tries < 100; tries++) {
        const struct timespec moment = {0, 1000000};
        const pid_t done = waitpid(child, &status, got < 0 ? WNOHANG : 0);

        if (done == child && got == 0)
            verdict->detail = status;
        if (done > 0 || (done < 0 && errno != EINTR))
            break;
        if (done == 0)
            (void)nanosleep(&moment, NULL);
    }
    return 0;
}
