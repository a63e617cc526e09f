/* The system calls the init uses, without a C library: each returns the kernel's result, a
 * negative errno on failure. The types are those of the kernel's own headers (linux/…, asm/…).
 *
 * A C library would work as well; its start (relocation, locale, stdio) and its size are what an
 * emulated boot can do without. */
#ifndef INIT_SYS_H
#define INIT_SYS_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include "sys_x86_64.h"
#elif defined(__aarch64__)
#include "sys_aarch64.h"
#else
#error "no system call interface for this architecture"
#endif

#define SYS0(n) sys_call(n, 0, 0, 0, 0, 0, 0)
#define SYS1(n, a) sys_call(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) sys_call(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) sys_call(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) sys_call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS5(n, a, b, c, d, e) sys_call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS6(n, a, b, c, d, e, f) \
    sys_call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

struct pollfd;

/* Of socket(2); the kernel's headers for programs leave them to the C library. */
enum {
    FAMILY_INET = 2,
    FAMILY_NETLINK = 16,
    FAMILY_PACKET = 17,
    SOCKET_STREAM = 1,
    SOCKET_DATAGRAM = 2,
    SOCKET_RAW = 3,
};

/* files */
int sys_open(const char *path, int flags, unsigned mode);
int sys_close(int fd);
long sys_read(int fd, void *data, size_t size);
long sys_write(int fd, const void *data, size_t size);
int sys_dup2(int from, int to);
int sys_mkdir(const char *path, unsigned mode);
int sys_symlink(const char *target, const char *path);
int sys_unlink(const char *path);
int sys_chdir(const char *path);
int sys_access(const char *path, int mode);
long sys_list(int fd, void *entries, size_t size);      /* getdents64 */
int sys_mount(const char *source, const char *target, const char *type, unsigned long flags,
              const char *data);
int sys_unmount(const char *target, int flags);
void sys_sync(void);
int sys_ioctl(int fd, unsigned long request, void *argument);
int sys_control(int fd, int command, long argument);    /* fcntl */

/* Waits until one of `count` descriptors is ready or `timeout_ms` have passed (-1: for ever). */
int sys_poll(struct pollfd *fds, unsigned count, int64_t timeout_ms);

/* sockets; flags of the type as for socket(2) */
int sys_socket(int domain, int type, int protocol);
int sys_bind(int fd, const void *address, size_t size);
int sys_connect(int fd, const void *address, size_t size);
int sys_set_option(int fd, int level, int option, const void *value, size_t size);
int sys_get_option(int fd, int level, int option, void *value, int *size);
long sys_send_to(int fd, const void *data, size_t size, const void *address, size_t address_size);
long sys_receive(int fd, void *data, size_t size);

/* processes and signals; a signal set is a bit mask, bit 0 is signal 1 */
long sys_fork(void);
int sys_execute(const char *path, const char *const *arguments, const char *const *environment);
_Noreturn void sys_exit(int code);
long sys_wait(int *status);                             /* any child, without blocking: 0 if none */
int sys_kill(long pid, int signal);
long sys_new_session(void);
int sys_signal_mask(uint64_t set);                      /* blocks exactly these */
int sys_signal_fd(uint64_t set);
int sys_reboot(unsigned command);
int sys_set_hostname(const char *name, size_t length);

/* Milliseconds since the kernel started. */
int64_t sys_uptime_ms(void);
/* Not for secrets: may be predictable early in a boot; never blocks. */
uint32_t sys_weak_random(void);

/* Reads a small file into `data` and puts a 0 behind it; returns the length (at most size - 1). */
long sys_read_file(const char *path, char *data, size_t size);
/* Writes all of `data`, or returns a negative errno. */
int sys_write_all(int fd, const void *data, size_t size);

#endif
