/* Whole reads of stored objects. */
#ifndef SS_OBJECT_READ_H
#define SS_OBJECT_READ_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

/* Exactly `length` bytes from byte `offset` on. 0 or a negative errno: -ENODATA where the file ends
 * before. */
static inline int ss_object_read(int fd, uint8_t *to, size_t length, uint64_t offset)
{
    for (size_t done = 0; done < length;) {
        ssize_t got = pread(fd, to + done, length - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -ENODATA;
        done += (size_t)got;
    }
    return 0;
}

#endif
