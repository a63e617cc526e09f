/* Room and zeros; see disk_file.h. */
#define _GNU_SOURCE
#include "disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2_table.h"

enum { ZEROS = 65536 };

static int allocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    while (fallocate(fd, mode, (off_t)offset, (off_t)length) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static bool unsupported(int rc)
{
    return rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -ENODEV || rc == -EINVAL;
}

/* Is there nothing at all in this stretch? */
static bool is_hole(int fd, uint64_t offset, uint64_t length)
{
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + length;
}

int ss_file_reserve(int fd, const struct ss_extent *extents, uint64_t count)
{
    uint8_t *taken = calloc(count + 1, 1);
    int rc = 0;
    uint64_t i;

    if (taken == NULL)
        return -ENOMEM;
    for (i = 0; i < count && rc == 0; i++) {
        if (extents[i].zero)
            continue;
        taken[i] = is_hole(fd, extents[i].offset, extents[i].length);
        rc = allocate(fd, FALLOC_FL_KEEP_SIZE, extents[i].offset, extents[i].length);
    }
    /* What was partly there keeps what it got; whole holes are given back. */
    while (rc < 0 && i-- > 0)
        if (taken[i])
            allocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, extents[i].offset,
                     extents[i].length);
    free(taken);
    return unsupported(rc) ? 0 : rc;
}

int ss_file_zero(int fd, uint64_t offset, uint64_t length)
{
    static const uint8_t zeros[ZEROS];
    int rc = allocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length);

    if (!unsupported(rc))
        return rc;
    rc = 0;
    while (length > 0 && rc == 0) {
        uint64_t part = length < ZEROS ? length : ZEROS;
        rc = ss_write_at(fd, zeros, part, offset);
        offset += part;
        length -= part;
    }
    return rc;
}
