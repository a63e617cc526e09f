/* What a container VM is to run, from the file that `imagetool add --platform` puts into its image
 * (src/smallstack/images/container.py): strings "KEY=VALUE", each with a 0 behind it, the first of
 * them "smallstack-container=1". Bytes in, pointers into them out: no I/O, no allocation. */
#ifndef INIT_CONTAINER_H
#define INIT_CONTAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONTAINER_FILE "/.smallstack/container"

enum {
    CONTAINER_SIZE_MAX = 65535,     /* bytes of the file; imagetool has the same bounds */
    CONTAINER_ARGUMENTS_MAX = 256,
    CONTAINER_ENVIRONMENT_MAX = 512,
    CONTAINER_GROUPS_MAX = 64,
};

enum container_end { CONTAINER_STOP, CONTAINER_RESTART, CONTAINER_STAY };

struct container {
    enum container_end at_end;      /* what follows the end of its program */
    int stop_signal;
    uint32_t user, group;
    uint32_t groups[CONTAINER_GROUPS_MAX];
    unsigned groups_count;
    const char *directory;
    const char *arguments[CONTAINER_ARGUMENTS_MAX + 1];     /* NULL behind the last */
    const char *environment[CONTAINER_ENVIRONMENT_MAX + 1];
};

/* Reads `size` bytes of `data`, which must stay. Returns 0, or -EBADMSG for what is no such file. */
int container_parse(const char *data, size_t size, struct container *container);

/* Where the program is, looked for as a shell would: `index` counts the directories of its PATH.
 * Writes a path into `buffer`; false when there is no further one. A name with a '/' is itself. */
bool container_program(const struct container *container, unsigned index, char *buffer,
                       size_t size);

#endif
