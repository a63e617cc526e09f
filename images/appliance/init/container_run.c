#include "container_run.h"

#include <asm/errno.h>
#include <linux/mman.h>
#include <linux/mount.h>

#include "console.h"
#include "sys.h"

enum { PATH_SIZE = 4096 };

struct loaded {
    struct container container;
    char data[CONTAINER_SIZE_MAX + 2];      /* one more than may be there, and a 0 */
};

/* Mapped rather than part of the program: no other guest has any use for this memory. */
static struct loaded *map_memory(void)
{
    long address = SYS6(__NR_mmap, 0, sizeof(struct loaded), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return address < 0 && address > -4096 ? NULL : (struct loaded *)address;
}

const struct container *container_load(void)
{
    struct loaded *loaded = map_memory();
    long size;

    if (loaded == NULL)
        return NULL;
    size = sys_read_file(CONTAINER_FILE, loaded->data, sizeof loaded->data);
    if (size >= 0)
        size = container_parse(loaded->data, (size_t)size, &loaded->container);
    if (size < 0) {
        console_say_name("cannot use", CONTAINER_FILE, size);
        return NULL;
    }
    return &loaded->container;
}

void container_use_names(void)
{
    if (sys_access("/etc/resolv.conf", 0) == 0)
        sys_mount("/run/resolv.conf", "/etc/resolv.conf", NULL, MS_BIND, NULL);
}

static int become_user(const struct container *container)
{
    long result;

    /* A program may open its /dev/stdout again, which is the console. */
    SYS3(__NR_fchown, 1, container->user, -1);
    result = SYS2(__NR_setgroups, container->groups_count, container->groups);
    if (result == 0)
        result = SYS1(__NR_setgid, container->group);
    if (result == 0)
        result = SYS1(__NR_setuid, container->user);
    return (int)result;
}

int container_execute(const struct container *container)
{
    static char path[PATH_SIZE];
    int result = sys_chdir(container->directory), last = -ENOENT;

    if (result < 0) {
        console_say_name("cannot enter", container->directory, result);
        return result;
    }
    result = become_user(container);
    if (result < 0) {
        console_say("cannot become the container's user", result);
        return result;
    }
    for (unsigned i = 0; container_program(container, i, path, sizeof path); i++) {
        result = sys_execute(path, container->arguments, container->environment);
        if (result != -ENOENT && result != -ENOTDIR)
            last = result;
        if (result != -ENOENT && result != -ENOTDIR && result != -EACCES)
            break;
    }
    console_say_name("cannot execute", container->arguments[0], last);
    return last;
}
