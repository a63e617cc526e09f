/* Files of objects; see object_files.h. */
#include "object_files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blake3.h"

enum { TOGETHER = 32, TRIES = 3 };

/* Digests of `count` objects, the small ones side by side in the lanes of the processor. */
static void digest(struct ss_object_file *objects, size_t count)
{
    struct ss_blake3_message small[TOGETHER];
    struct ss_object_file *owners[TOGETHER];
    size_t have = 0;

    for (size_t i = 0; i < count; i++) {
        struct ss_object_file *object = &objects[i];
        if (object->size <= SS_BLAKE3_SMALL) {
            small[have].data = object->data;
            small[have].length = object->size;
            owners[have++] = object;
        } else {
            struct ss_blake3 state;
            ss_blake3_start(&state);
            ss_blake3_update(&state, object->data, object->size);
            ss_blake3_finish(&state, object->blake3);
        }
        if (have == TOGETHER || (have > 0 && i + 1 == count)) {
            ss_blake3_small(small, have);
            while (have-- > 0)
                memcpy(owners[have]->blake3, small[have].digest, sizeof owners[have]->blake3);
            have = 0;
        }
    }
}

static int make(int directory, unsigned levels, char path[SS_OBJECT_PATH])
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;

    for (int attempt = 1;; attempt++) {
        int fd = openat(directory, path, flags, 0444);
        if (fd >= 0)
            return fd;
        /* Another try in case somebody has removed an empty bucket meanwhile. */
        if (errno != ENOENT || attempt == TRIES)
            return -errno;
        for (unsigned level = 0; level < levels; level++) {
            size_t end = 2 + 3 * (size_t)level;
            path[end] = 0;
            int rc = mkdirat(directory, path, 0777);
            path[end] = '/';
            if (rc < 0 && errno != EEXIST)
                return -errno;
        }
    }
}

static int fill(int fd, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -errno;
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

static int write_one(int directory, unsigned levels, const struct ss_object_file *object)
{
    char path[SS_OBJECT_PATH];

    ss_object_path(object->hash, levels, path);
    int fd = make(directory, levels, path);
    if (fd < 0)
        return fd;
    int rc = fill(fd, object->data, object->size);
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc < 0)
        unlinkat(directory, path, 0);
    return rc;
}

void ss_object_files_write(int directory, unsigned levels, struct ss_object_file *objects,
                           size_t count)
{
    digest(objects, count);
    for (size_t i = 0; i < count; i++)
        objects[i].error = write_one(directory, levels, &objects[i]);
}
