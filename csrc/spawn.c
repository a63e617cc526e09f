#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_SIZE (64u * 1024u)
#define LAST_CAPABILITY 63 /* the kernel refuses those above its own last one */

struct child {
    const struct ss_spawn *request;
    int error; /* negative errno */
    enum ss_spawn_stage stage;
};

/* The child runs on the parent's memory: only system calls from here on. The C library's own
 * setuid and setgroups would signal the parent's threads to follow, hence syscall(). */

static int reset_signals(void)
{
    struct sigaction action;
    sigset_t none;

    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    for (int number = 1; number < NSIG; number++)
        (void)sigaction(number, &action, NULL); /* SIGKILL, SIGSTOP, the C library's: refused */
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL) < 0 ? -errno : 0;
}

#if defined(__x86_64__)
#define CAN_CLONE_INTO_GROUP 1

/* clone(2), by clone3: the C library has no name for it. The child gets a stack of its own, hence
 * a call that must not return through the parent's. Costs nothing beside clone; to move a process
 * between groups of cgroup v2 waits for an RCU grace period, 10 to 20 ms. */
static pid_t clone_into_group(int (*entry)(void *), struct child *child, char *stack, int *pidfd)
{
    struct clone_args arguments;
    long made;

    memset(&arguments, 0, sizeof arguments);
    arguments.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_INTO_CGROUP;
    arguments.pidfd = (uint64_t)(uintptr_t)pidfd;
    arguments.exit_signal = SIGCHLD;
    arguments.stack = (uint64_t)(uintptr_t)stack;
    arguments.stack_size = STACK_SIZE;
    arguments.cgroup = (unsigned)child->request->group_fd;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "movq %[child], %%rdi\n\t"
                     "callq *%[entry]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(made)
                     : "0"((long)SYS_clone3), "D"(&arguments), "S"(sizeof arguments),
                       [child] "r"(child), [entry] "r"(entry)
                     : "rcx", "r11", "memory", "cc");
    if (made >= 0)
        return (pid_t)made;
    errno = (int)-made;
    return -1;
}
#else
#define CAN_CLONE_INTO_GROUP 0
static pid_t clone_into_group(int (*entry)(void *), struct child *child, char *stack, int *pidfd)
{
    (void)entry, (void)child, (void)stack, (void)pidfd;
    errno = ENOSYS;
    return -1;
}
#endif

/* Nothing to do for a child that was made inside its group. */
static int enter_group(const struct ss_spawn *request)
{
    const char *name = request->group_file;
    int error;
    int fd;

    if (request->group_fd < 0 || (name == NULL && CAN_CLONE_INTO_GROUP))
        return 0;
    fd = openat(request->group_fd, name != NULL ? name : "cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    error = write(fd, "0", 1) < 0 ? -errno : 0;
    (void)close(fd);
    return error;
}

static int place_descriptors(const struct ss_spawn *request, int *output, int *record)
{
    int moved[SS_SPAWN_MAX_FDS];
    const int above = SS_SPAWN_FIRST_FD + (int)request->fd_count + 2;
    int null;

    /* First out of the way of every target, then down into place. */
    for (size_t i = 0; i < request->fd_count; i++) {
        moved[i] = fcntl(request->fds[i], F_DUPFD_CLOEXEC, above);
        if (moved[i] < 0)
            return -errno;
    }
    *output = fcntl(request->output_fd, F_DUPFD_CLOEXEC, above);
    if (*output < 0)
        return -errno;
    if (request->record_fd >= 0) {
        const int high = fcntl(request->record_fd, F_DUPFD_CLOEXEC, above);
        if (high < 0)
            return -errno;
        *record = above - 1;
        if (dup3(high, *record, O_CLOEXEC) < 0)
            return -errno;
    }
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return -errno;
    if (null == 0) {
        if (fcntl(0, F_SETFD, 0) < 0)
            return -errno;
    } else if (dup2(null, 0) < 0) {
        return -errno;
    }
    if (dup2(*output, 1) < 0 || dup2(*output, 2) < 0)
        return -errno;
    for (size_t i = 0; i < request->fd_count; i++)
        if (dup2(moved[i], SS_SPAWN_FIRST_FD + (int)i) < 0)
            return -errno;
    if (syscall(SYS_close_range, (unsigned)above, ~0u, 0u) < 0)
        return -errno;
    /* Between the last target and `above`: the record, and whatever the parent had there. */
    for (int fd = SS_SPAWN_FIRST_FD + (int)request->fd_count; fd < above; fd++)
        if (fd != *record)
            (void)close(fd);
    return 0;
}

static int set_limits(const struct ss_spawn *request)
{
    const struct rlimit none = {0, 0};
    const struct rlimit files = {request->open_files, request->open_files};

    if (setrlimit(RLIMIT_CORE, &none) < 0)
        return -errno;
    return setrlimit(RLIMIT_NOFILE, &files) < 0 ? -errno : 0;
}

static size_t put_number(char *out, uint64_t value)
{
    char digits[20];
    size_t count = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    for (size_t i = 0; i < count; i++)
        out[i] = digits[count - 1 - i];
    return count;
}

/* Field 22 of /proc/self/stat (proc(5)): ticks from boot to the process's start. The command's
 * name in parentheses may hold anything, so fields are counted behind the last ')'. */
static int start_time(uint64_t *ticks)
{
    char text[1024];
    const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t length;
    ssize_t at = -1;
    int field = 2;

    if (fd < 0)
        return -errno;
    length = read(fd, text, sizeof text);
    (void)close(fd);
    if (length < 0)
        return -errno;
    for (ssize_t i = 0; i < length; i++)
        if (text[i] == ')')
            at = i;
    if (at < 0)
        return -EPROTO;
    while (at < length && field < 22)
        if (text[at++] == ' ')
            field++;
    *ticks = 0;
    if (at >= length || text[at] < '0' || text[at] > '9')
        return -EPROTO;
    for (; at < length && text[at] >= '0' && text[at] <= '9'; at++)
        *ticks = *ticks * 10 + (uint64_t)(text[at] - '0');
    return 0;
}

static int write_record(int fd)
{
    char line[48];
    uint64_t ticks;
    size_t length;
    const int error = start_time(&ticks);

    if (error < 0)
        return error;
    length = put_number(line, (uint64_t)getpid());
    line[length++] = ' ';
    length += put_number(line + length, ticks);
    line[length++] = '\n';
    if (write(fd, line, length) != (ssize_t)length)
        return errno != 0 ? -errno : -EIO;
    return 0;
}

static int change_identity(const struct ss_spawn *request)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2];

    memset(none, 0, sizeof none);
    if (request->change_identity) {
        for (unsigned long capability = 0; capability <= LAST_CAPABILITY; capability++)
            if (prctl(PR_CAPBSET_DROP, capability, 0ul, 0ul, 0ul) < 0) {
                if (errno == EINVAL)
                    break;
                return -errno;
            }
        if (syscall(SYS_setgroups, request->group_count, request->groups) < 0)
            return -errno;
        if (syscall(SYS_setresgid, request->gid, request->gid, request->gid) < 0)
            return -errno;
        if (syscall(SYS_setresuid, request->uid, request->uid, request->uid) < 0)
            return -errno;
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0ul, 0ul, 0ul) < 0)
        return -errno;
    if (syscall(SYS_capset, &header, none) < 0)
        return -errno;
    return prctl(PR_SET_NO_NEW_PRIVS, 1ul, 0ul, 0ul, 0ul) < 0 ? -errno : 0;
}

static int run_child(void *argument)
{
    struct child *child = argument;
    const struct ss_spawn *request = child->request;
    int output = -1;
    int record = -1;

    child->stage = SS_SPAWN_SESSION;
    child->error = reset_signals();
    if (child->error == 0 && setsid() < 0)
        child->error = -errno;
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_GROUP;
    child->error = enter_group(request);
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_DESCRIPTORS;
    child->error = place_descriptors(request, &output, &record);
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_LIMITS;
    child->error = set_limits(request);
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_RECORD;
    if (record >= 0)
        child->error = write_record(record);
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_IDENTITY;
    child->error = change_identity(request);
    if (child->error < 0)
        _exit(127);
    child->stage = SS_SPAWN_DIRECTORY;
    if (chdir(request->directory) < 0) {
        child->error = -errno;
        _exit(127);
    }
    child->stage = SS_SPAWN_EXEC;
    execve(request->path, request->argv, request->envp);
    child->error = -errno;
    _exit(127);
}

int ss_spawn(const struct ss_spawn *request, pid_t *pid, int *pidfd, enum ss_spawn_stage *stage)
{
    struct child child = {request, 0, SS_SPAWN_CLONE};
    sigset_t all;
    sigset_t before;
    int dumpable;
    int fd = -1;
    int error = 0;
    pid_t made;
    char *stack;

    *pid = -1;
    *pidfd = -1;
    *stage = SS_SPAWN_CLONE;
    if (request->fd_count > SS_SPAWN_MAX_FDS)
        return -E2BIG;
    stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return -errno;
    /* No handler of the parent may run in the child, which shares its memory. */
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    /* A change of credentials marks the shared memory non-dumpable, so that no process of the
     * new user can trace the child while it still sees the parent's memory. The mark goes with
     * the exec for the child; the parent gets its own one back. */
    dumpable = prctl(PR_GET_DUMPABLE, 0ul, 0ul, 0ul, 0ul);
    if (CAN_CLONE_INTO_GROUP && request->group_fd >= 0 && request->group_file == NULL) {
        child.stage = SS_SPAWN_GROUP;
        made = clone_into_group(run_child, &child, stack, &fd);
    } else {
        made = clone(run_child, stack + STACK_SIZE,
                     CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &child, &fd);
    }
    if (made < 0)
        error = -errno;
    if (dumpable == 1)
        (void)prctl(PR_SET_DUMPABLE, 1ul, 0ul, 0ul, 0ul);
    if (made > 0 && child.error < 0) {
        int status;

        while (waitpid(made, &status, 0) < 0 && errno == EINTR)
            ;
        (void)close(fd);
        error = child.error;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)munmap(stack, STACK_SIZE);
    *stage = child.stage;
    if (error < 0)
        return error;
    *pid = made;
    *pidfd = fd;
    return 0;
}
