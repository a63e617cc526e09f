/* Entry of objects; see object_pack.h. */
#define _GNU_SOURCE
#include "object_pack.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blake3.h"
#include "sha512.h"

enum {
    TOGETHER = 128,            /* small messages hashed at a time by BLAKE3 */
    WRITE_AT_ONCE = 256 << 10, /* see ext4_sink.c */
    VECTORS = 256,
    THREAD_FROM = 1 << 20 /* bytes that are worth a second thread */
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

int ss_pack_write(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count)
{
    static const uint8_t zeros[SS_PACK_ALIGN];
    struct gather gather = {.fd = fd, .offset = offset};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct ss_quick_sum sum; /* here, since the copy needs the bytes in the cache too */
        ss_quick_sum_start(&sum);
        ss_quick_sum_update(&sum, objects[i].data, objects[i].size);
        ss_quick_sum_finish(&sum, objects[i].sum);
        rc = add(&gather, objects[i].data, objects[i].size);
        if (rc == 0)
            rc = add(&gather, zeros, -objects[i].size & (SS_PACK_ALIGN - 1));
    }
    return rc < 0 ? rc : flush(&gather);
}

static uint64_t padded(size_t size)
{
    return (size + SS_PACK_ALIGN - 1) / SS_PACK_ALIGN * SS_PACK_ALIGN;
}

/* The second half of what enters, on its way in. */
struct half {
    int fd;
    uint64_t offset;
    struct ss_pack_object *objects;
    size_t count;
    int64_t right;
    int error;
};

/* Has the blocks allocated, so that they are written faster: see ext4_sink.c. */
static int allocate_blocks(int fd, uint64_t offset, const struct ss_pack_object *objects,
                           size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes += padded(objects[i].size);
    while (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) < 0) {
        if (errno == EIO)
            return -errno;
        if (errno != EINTR)
            break; /* the file system cannot, or has no room, which the write will say */
    }
    return 0;
}

static void *enter_half(void *context)
{
    struct half *half = context;

    half->right = ss_pack_check(half->objects, half->count);
    if (half->right <= 0 || half->fd < 0)
        return NULL;
    half->error = allocate_blocks(half->fd, half->offset, half->objects, (size_t)half->right);
    if (half->error == 0)
        half->error = ss_pack_write(half->fd, half->offset, half->objects, (size_t)half->right);
    return NULL;
}

static bool start(pthread_t *thread, struct half *half)
{
    sigset_t all, before;

    sigfillset(&all); /* signals belong to the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(thread, NULL, enter_half, half);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0;
}

int64_t ss_pack_enter(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count,
                      int *error)
{
    uint64_t bytes = 0, before = 0, room = 0;
    size_t split = 0;
    pthread_t thread;

    for (size_t i = 0; i < count; i++)
        bytes += objects[i].size;
    if (bytes < THREAD_FROM)
        split = count;
    for (; split < count && before < bytes / 2; split++) {
        before += objects[split].size;
        room += padded(objects[split].size);
    }
    struct half first = {.fd = fd, .offset = offset, .objects = objects, .count = split};
    struct half second = {.fd = fd, .offset = offset + room, .objects = objects + split,
                          .count = count - split};
    bool aside = second.count > 0 && start(&thread, &second);
    enter_half(&first);
    if (aside)
        pthread_join(thread, NULL);
    else
        enter_half(&second);
    *error = first.error;
    if (*error == 0 && first.right == (int64_t)split)
        *error = second.error;
    if (first.right < 0 || second.right < 0)
        return -ENOMEM;
    return first.right < (int64_t)split ? first.right : (int64_t)split + second.right;
}
