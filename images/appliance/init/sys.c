#include "sys.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <linux/reboot.h>
#include <linux/time.h>
#include <linux/time_types.h>

#ifndef AT_FDCWD
#define AT_FDCWD (-100)
#endif
#define WNOHANG 1

int sys_open(const char *path, int flags, unsigned mode)
{
    return (int)SYS4(__NR_openat, AT_FDCWD, path, flags, mode);
}

int sys_close(int fd)
{
    return (int)SYS1(__NR_close, fd);
}

long sys_read(int fd, void *data, size_t size)
{
    return SYS3(__NR_read, fd, data, size);
}

long sys_write(int fd, const void *data, size_t size)
{
    return SYS3(__NR_write, fd, data, size);
}

int sys_dup2(int from, int to)
{
    if (from == to)
        return to;
    return (int)SYS3(__NR_dup3, from, to, 0);
}

int sys_mkdir(const char *path, unsigned mode)
{
    return (int)SYS3(__NR_mkdirat, AT_FDCWD, path, mode);
}

int sys_symlink(const char *target, const char *path)
{
    return (int)SYS3(__NR_symlinkat, target, AT_FDCWD, path);
}

int sys_unlink(const char *path)
{
    return (int)SYS3(__NR_unlinkat, AT_FDCWD, path, 0);
}

int sys_chdir(const char *path)
{
    return (int)SYS1(__NR_chdir, path);
}

int sys_access(const char *path, int mode)
{
    return (int)SYS3(__NR_faccessat, AT_FDCWD, path, mode);
}

long sys_list(int fd, void *entries, size_t size)
{
    return SYS3(__NR_getdents64, fd, entries, size);
}

int sys_mount(const char *source, const char *target, const char *type, unsigned long flags,
              const char *data)
{
    return (int)SYS5(__NR_mount, source, target, type, flags, data);
}

int sys_unmount(const char *target, int flags)
{
    return (int)SYS2(__NR_umount2, target, flags);
}

void sys_sync(void)
{
    SYS0(__NR_sync);
}

int sys_ioctl(int fd, unsigned long request, void *argument)
{
    return (int)SYS3(__NR_ioctl, fd, request, argument);
}

int sys_control(int fd, int command, long argument)
{
    return (int)SYS3(__NR_fcntl, fd, command, argument);
}

int sys_poll(struct pollfd *fds, unsigned count, int64_t timeout_ms)
{
    struct __kernel_timespec limit = {
        .tv_sec = timeout_ms / 1000,
        .tv_nsec = timeout_ms % 1000 * 1000000,
    };

    return (int)SYS5(__NR_ppoll, fds, count, timeout_ms < 0 ? NULL : &limit, NULL, 0);
}

int sys_socket(int domain, int type, int protocol)
{
    return (int)SYS3(__NR_socket, domain, type, protocol);
}

int sys_bind(int fd, const void *address, size_t size)
{
    return (int)SYS3(__NR_bind, fd, address, size);
}

int sys_connect(int fd, const void *address, size_t size)
{
    return (int)SYS3(__NR_connect, fd, address, size);
}

int sys_set_option(int fd, int level, int option, const void *value, size_t size)
{
    return (int)SYS5(__NR_setsockopt, fd, level, option, value, size);
}

int sys_get_option(int fd, int level, int option, void *value, int *size)
{
    return (int)SYS5(__NR_getsockopt, fd, level, option, value, size);
}

long sys_send_to(int fd, const void *data, size_t size, const void *address, size_t address_size)
{
    return SYS6(__NR_sendto, fd, data, size, 0, address, address_size);
}

long sys_receive(int fd, void *data, size_t size)
{
    return SYS6(__NR_recvfrom, fd, data, size, 0, NULL, NULL);
}

long sys_fork(void)
{
    return SYS5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
}

int sys_execute(const char *path, const char *const *arguments, const char *const *environment)
{
    return (int)SYS3(__NR_execve, path, arguments, environment);
}

_Noreturn void sys_exit(int code)
{
    for (;;)
        SYS1(__NR_exit_group, code);
}

long sys_wait(int *status)
{
    return SYS4(__NR_wait4, -1, status, WNOHANG, NULL);
}

int sys_kill(long pid, int signal)
{
    return (int)SYS2(__NR_kill, pid, signal);
}

long sys_new_session(void)
{
    return SYS0(__NR_setsid);
}

int sys_signal_mask(uint64_t set)
{
    return (int)SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &set, NULL, sizeof set);
}

int sys_signal_fd(uint64_t set)
{
    return (int)SYS4(__NR_signalfd4, -1, &set, sizeof set, O_CLOEXEC | O_NONBLOCK);
}

int sys_reboot(unsigned command)
{
    return (int)SYS4(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, NULL);
}

int sys_set_hostname(const char *name, size_t length)
{
    return (int)SYS2(__NR_sethostname, name, length);
}

int64_t sys_uptime_ms(void)
{
    struct __kernel_timespec now = {0, 0};

    SYS2(__NR_clock_gettime, CLOCK_BOOTTIME, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

uint32_t sys_weak_random(void)
{
    uint32_t value = 0;

    SYS3(__NR_getrandom, &value, sizeof value, 4 /* GRND_INSECURE */);
    return value;
}

long sys_read_file(const char *path, char *data, size_t size)
{
    size_t length = 0;
    int fd = sys_open(path, O_RDONLY | O_CLOEXEC, 0);

    data[0] = 0;
    if (fd < 0)
        return fd;
    while (length + 1 < size) {
        long got = sys_read(fd, data + length, size - 1 - length);
        if (got == -EINTR)
            continue;
        if (got <= 0) {
            if (got < 0 && length == 0) {
                sys_close(fd);
                return got;
            }
            break;
        }
        length += (size_t)got;
    }
    data[length] = 0;
    sys_close(fd);
    return (long)length;
}

int sys_write_all(int fd, const void *data, size_t size)
{
    const char *next = data;

    while (size > 0) {
        long put = sys_write(fd, next, size);
        if (put == -EINTR)
            continue;
        if (put < 0)
            return (int)put;
        if (put == 0)
            return -EIO;
        next += put;
        size -= (size_t)put;
    }
    return 0;
}
