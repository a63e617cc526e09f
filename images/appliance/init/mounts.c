#include "mounts.h"

#include <asm/errno.h>
#include <linux/mount.h>
#include <stddef.h>

#include "console.h"
#include "sys.h"

enum { FORCE = 1, DETACH = 2 };         /* of umount2(2) */

static const struct {
    const char *source, *target, *type, *data;
    unsigned long flags;
} TABLE[] = {
    {"dev", "/dev", "devtmpfs", "mode=0755", MS_NOSUID},
    {"proc", "/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sys", "/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"run", "/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV},
    {"tmp", "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV},
    {"pts", "/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"shm", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV},
};

enum {
    TABLE_SIZE = sizeof TABLE / sizeof *TABLE,
    RUN = 3,
    TMP = 4,
    IN_FRESH_DEV = 5,       /* from here on the targets lie in the fresh /dev */
};

static void make_links(void)
{
    sys_symlink("/proc/self/fd", "/dev/fd");
    sys_symlink("/proc/self/fd/0", "/dev/stdin");
    sys_symlink("/proc/self/fd/1", "/dev/stdout");
    sys_symlink("/proc/self/fd/2", "/dev/stderr");
}

unsigned mounts_steps(void)
{
    return TABLE_SIZE + 2;
}

void mounts_make(unsigned step, bool container)
{
    const char *target = "/";
    int result = 0;

    if (container && (step == RUN || step == TMP))
        return;
    if (step < TABLE_SIZE) {
        target = TABLE[step].target;
        if (step >= IN_FRESH_DEV)
            sys_mkdir(target, 0755);
        result = sys_mount(TABLE[step].source, target, TABLE[step].type, TABLE[step].flags,
                           TABLE[step].data);
    } else if (step == TABLE_SIZE) {
        make_links();
    } else {
        /* Root comes read-only: a writable mount writes to the disk before the first program runs. */
        result = sys_mount(NULL, target, NULL, MS_REMOUNT | MS_NOATIME, NULL);
    }
    if (result < 0 && result != -EBUSY)
        console_say_name("cannot mount", target, result);
}

int mounts_end(void)
{
    char mounts[8192];
    int result;

    /* What programs mounted, the newest first: nothing of it may keep root busy. */
    if (sys_read_file("/proc/self/mounts", mounts, sizeof mounts) > 0) {
        char *targets[64];
        size_t count = 0;

        for (char *at = mounts; *at != 0 && count < 64;) {
            while (*at != 0 && *at != ' ')
                at++;
            if (*at == 0)
                break;
            targets[count++] = ++at;
            while (*at != 0 && *at != ' ')
                at++;
            if (*at == 0)
                break;
            *at++ = 0;
            while (*at != 0 && *at != '\n')
                at++;
            if (*at == '\n')
                at++;
        }
        while (count-- > 0)
            if (targets[count][0] == '/' && targets[count][1] != 0)
                sys_unmount(targets[count], DETACH);
    }
    sys_sync();
    result = sys_mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    sys_sync();
    return result;
}
