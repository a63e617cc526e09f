/* Entry of objects; see object_pack.h. */
#include "object_pack.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blake3.h"
#include "sha512.h"

enum {
    TOGETHER = 32,          /* small messages hashed at a time by BLAKE3 */
    WRITE_AT_ONCE = 128 << 10, /* see ext4_sink.c */
    VECTORS = 256,
    PART = 64 << 10,        /* of a file read at a time */
    FILES = 8               /* read side by side */
};

static void digest_blake3(struct ss_pack_object *objects, size_t count)
{
    struct ss_blake3_message small[TOGETHER];
    struct ss_pack_object *owners[TOGETHER];
    size_t have = 0;

    for (size_t i = 0; i < count; i++) {
        struct ss_pack_object *object = &objects[i];
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

struct item {
    size_t size;
    size_t number;
};

static int longer_first(const void *a, const void *b)
{
    const struct item *one = a, *other = b;
    return one->size > other->size ? -1 : one->size < other->size;
}

int64_t ss_pack_check(struct ss_pack_object *objects, size_t count)
{
    struct ss_sha512_message *messages = calloc(count + 1, sizeof *messages);
    struct item *order = calloc(count + 1, sizeof *order);
    size_t wrong = count;

    if (messages == NULL || order == NULL) {
        free(messages);
        free(order);
        return -ENOMEM;
    }
    for (size_t i = 0; i < count; i++)
        order[i] = (struct item){objects[i].size, i};
    qsort(order, count, sizeof *order, longer_first);
    for (size_t i = 0; i < count; i++) {
        messages[i].data = objects[order[i].number].data;
        messages[i].length = objects[order[i].number].size;
    }
    ss_sha512_many(messages, count);
    for (size_t i = 0; i < count; i++)
        if (order[i].number < wrong &&
            memcmp(messages[i].digest, objects[order[i].number].hash, SS_SHA512_SIZE) != 0)
            wrong = order[i].number;
    free(messages);
    free(order);
    digest_blake3(objects, wrong);
    return (int64_t)wrong;
}

/* All of the vectors, a bounded number of bytes at a call. */
static int write_vectors(int fd, struct iovec *vectors, int count, uint64_t offset)
{
    while (count > 0) {
        ssize_t done = pwritev(fd, vectors, count, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        offset += (uint64_t)done;
        while (count > 0 && (size_t)done >= vectors->iov_len) {
            done -= (ssize_t)vectors->iov_len;
            vectors++;
            count--;
        }
        if (count > 0) {
            vectors->iov_base = (uint8_t *)vectors->iov_base + done;
            vectors->iov_len -= (size_t)done;
        }
    }
    return 0;
}

struct gather {
    int fd, count;
    size_t bytes;
    uint64_t offset;
    struct iovec vectors[VECTORS];
};

static int flush(struct gather *gather)
{
    int rc = write_vectors(gather->fd, gather->vectors, gather->count, gather->offset);
    gather->offset += gather->bytes;
    gather->bytes = 0;
    gather->count = 0;
    return rc;
}

static int add(struct gather *gather, const uint8_t *data, size_t length)
{
    while (length > 0) {
        size_t room = WRITE_AT_ONCE - gather->bytes, part = length < room ? length : room;
        gather->vectors[gather->count++] = (struct iovec){(void *)data, part};
        gather->bytes += part;
        data += part;
        length -= part;
        if (gather->count == VECTORS || gather->bytes == WRITE_AT_ONCE) {
            int rc = flush(gather);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

int ss_pack_write(int fd, uint64_t offset, const struct ss_pack_object *objects, size_t count)
{
    static const uint8_t zeros[SS_PACK_ALIGN];
    struct gather gather = {.fd = fd, .offset = offset};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = add(&gather, objects[i].data, objects[i].size);
        if (rc == 0)
            rc = add(&gather, zeros, -objects[i].size & (SS_PACK_ALIGN - 1));
    }
    return rc < 0 ? rc : flush(&gather);
}

/* A file that is being read. */
struct reading {
    struct ss_pack_file *file; /* NULL: none */
    uint64_t done;             /* bytes */
    uint64_t state[8];
    struct ss_blake3 blake3;
    uint8_t *part;
};

static int read_part(const struct reading *reading, size_t length)
{
    for (size_t have = 0; have < length;) {
        ssize_t got = pread(reading->file->fd, reading->part + have, length - have,
                            (off_t)(reading->done + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -ENODATA;
        have += (size_t)got;
    }
    return 0;
}

/* One part of every file that is being read; how many there were. */
static size_t pass(struct reading readings[FILES])
{
    struct ss_sha512_message messages[FILES];
    struct reading *owners[FILES];
    size_t count = 0;

    for (unsigned i = 0; i < FILES; i++) {
        struct reading *reading = &readings[i];
        if (reading->file == NULL)
            continue;
        uint64_t left = reading->file->size - reading->done;
        size_t length = left < PART ? left : PART;
        reading->file->error = read_part(reading, length);
        if (reading->file->error < 0) {
            reading->file = NULL;
            continue;
        }
        ss_blake3_update(&reading->blake3, reading->part, length);
        struct ss_sha512_message *message = &messages[count];
        message->data = reading->part;
        message->length = length;
        message->before = reading->done;
        message->more = left > length;
        memcpy(message->state, reading->state, sizeof message->state);
        owners[count++] = reading;
    }
    ss_sha512_many(messages, count);
    for (size_t i = 0; i < count; i++) {
        struct reading *reading = owners[i];
        memcpy(reading->state, messages[i].state, sizeof reading->state);
        reading->done += messages[i].length;
        if (!messages[i].more) {
            memcpy(reading->file->sha512, messages[i].digest, sizeof reading->file->sha512);
            ss_blake3_finish(&reading->blake3, reading->file->blake3);
            reading->file = NULL;
        }
    }
    return count;
}

int ss_pack_check_files(struct ss_pack_file *files, size_t count)
{
    struct reading *readings = calloc(FILES, sizeof *readings);
    uint8_t *parts = malloc((size_t)FILES * PART);
    size_t next = 0;
    bool going = readings != NULL && parts != NULL;
    int rc = going ? 0 : -ENOMEM;

    while (going) {
        for (unsigned i = 0; i < FILES; i++)
            if (readings[i].file == NULL && next < count) {
                readings[i].file = &files[next++];
                readings[i].file->error = 0;
                readings[i].done = 0;
                readings[i].part = parts + (size_t)i * PART;
                ss_blake3_start(&readings[i].blake3);
            }
        going = pass(readings) > 0 || next < count;
    }
    free(readings);
    free(parts);
    return rc;
}
