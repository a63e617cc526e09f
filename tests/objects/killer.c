/* Preloaded: counts the C library's calls that change a disk once `arm` was called, and kills the
 * process at the one that is due; a write happens half before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long due, count;

void arm(long number)
{
    due = number;
    count = 0;
}

long counted(void)
{
    return count;
}

static int now(void)
{
    return due != 0 && __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) == due;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define COUNTED(type, name, parameters, arguments)     \
    type name parameters                               \
    {                                                  \
        if (now())                                     \
            kill(getpid(), SIGKILL);                   \
        return NEXT(name) arguments;                   \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    if (now()) {
        NEXT(write)(fd, data, size / 2);
        kill(getpid(), SIGKILL);
    }
    return NEXT(write)(fd, data, size);
}

ssize_t pwritev(int fd, const struct iovec *vectors, int count_, off_t offset)
{
    if (now()) {
        NEXT(pwritev)(fd, vectors, (count_ + 1) / 2, offset);
        kill(getpid(), SIGKILL);
    }
    return NEXT(pwritev)(fd, vectors, count_, offset);
}

COUNTED(int, fallocate, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size))
COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, unlink, (const char *path), (path))
COUNTED(int, unlinkat, (int at, const char *path, int flags), (at, path, flags))
COUNTED(int, mkdir, (const char *path, mode_t mode), (path, mode))
COUNTED(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode))
COUNTED(int, fsync, (int fd), (fd))
COUNTED(int, ftruncate64, (int fd, off64_t size), (fd, size))
COUNTED(int, posix_fallocate64, (int fd, off64_t offset, off64_t size), (fd, offset, size))

static mode_t mode_of(va_list more, int flags)
{
    return flags & O_CREAT ? va_arg(more, mode_t) : 0;
}

#define OPENING(name, before, arguments)                            \
    int name before                                                 \
    {                                                               \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = mode_of(more, flags);                         \
        va_end(more);                                               \
        if ((flags & O_CREAT) && now())                             \
            kill(getpid(), SIGKILL);                                \
        return NEXT(name) arguments;                                \
    }

OPENING(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
