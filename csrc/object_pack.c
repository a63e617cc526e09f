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
    GROUP = 256 << 10,         /* bytes of them: copied while the second-level cache has them */
    PART = 128 << 10,          /* bytes of a larger one hashed and summed at a time */
    WRITE_AT_ONCE = 256 << 10, /* see ext4_sink.c */
    VECTORS = 256,
    THREAD_FROM = 1 << 20 /* bytes that are worth a second thread */
};

struct item {
    size_t size;
    size_t number;
};

static int longer_first(const void *a, const void *b)
{
    const struct item *one = a, *other = b;
    return one->size > other->size ? -1 : one->size < other->size;
}

int64_t ss_pack_check(const struct ss_pack_object *objects, size_t count)
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

static uint64_t padded(size_t size)
{
    return (size + SS_PACK_ALIGN - 1) / SS_PACK_ALIGN * SS_PACK_ALIGN;
}

/* Has the blocks allocated, so that they are written faster: see ext4_sink.c. */
static int allocate_blocks(int fd, uint64_t offset, const struct ss_pack_object *objects,
                           size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes += padded(objects[i].size);
    while (bytes > 0 && fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) < 0) {
        if (errno == EIO)
            return -errno;
        if (errno != EINTR)
            break; /* the file system cannot, or has no room, which the write will say */
    }
    return 0;
}

static void sum_of(struct ss_pack_object *object)
{
    struct ss_quick_sum sum;

    ss_quick_sum_start(&sum);
    ss_quick_sum_update(&sum, object->data, object->size);
    ss_quick_sum_finish(&sum, object->sum);
}

/* As many as are hashed together: how many, 0 where the first is too large for that. */
static size_t digest_group(struct ss_pack_object *objects, size_t count)
{
    struct ss_blake3_message small[TOGETHER];
    size_t have = 0, bytes = 0;

    for (; have < count && have < TOGETHER && bytes + objects[have].size <= GROUP; have++) {
        small[have].data = objects[have].data;
        small[have].length = objects[have].size;
        bytes += objects[have].size;
        sum_of(&objects[have]); /* first: it reads straight on, as memory is quickest */
    }
    ss_blake3_small(small, have);
    for (size_t i = 0; i < have; i++)
        memcpy(objects[i].blake3, small[i].digest, sizeof objects[i].blake3);
    return have;
}

/* One of more bytes than `GROUP`, which is written as it is hashed, unless `gather` is NULL. */
static int digest_large(struct ss_pack_object *object, struct gather *gather)
{
    struct ss_blake3 state;
    struct ss_quick_sum sum;
    int rc = 0;

    ss_blake3_start(&state);
    ss_quick_sum_start(&sum);
    for (size_t at = 0; rc == 0 && at < object->size; at += PART) {
        const uint8_t *data = object->data + at;
        size_t part = object->size - at < PART ? object->size - at : PART;
        ss_quick_sum_update(&sum, data, part); /* first, as above */
        if (object->size - at > part)
            ss_blake3_more(&state, data, part);
        else
            ss_blake3_update(&state, data, part);
        if (gather != NULL)
            rc = add(gather, data, part);
    }
    ss_blake3_finish(&state, object->blake3);
    ss_quick_sum_finish(&sum, object->sum);
    return rc;
}

static int add_padding(struct gather *gather, size_t size)
{
    static const uint8_t zeros[SS_PACK_ALIGN];

    return add(gather, zeros, -size & (SS_PACK_ALIGN - 1));
}

int ss_pack_write(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count)
{
    struct gather gather = {.fd = fd, .offset = offset};
    int rc = fd < 0 ? 0 : allocate_blocks(fd, offset, objects, count);

    for (size_t i = 0, group; rc == 0 && i < count; i += group) {
        group = digest_group(objects + i, count - i);
        if (group == 0) {
            group = 1;
            rc = digest_large(&objects[i], fd < 0 ? NULL : &gather);
            if (rc == 0 && fd >= 0)
                rc = add_padding(&gather, objects[i].size);
            continue;
        }
        for (size_t k = i; rc == 0 && fd >= 0 && k < i + group; k++) {
            rc = add(&gather, objects[k].data, objects[k].size);
            if (rc == 0)
                rc = add_padding(&gather, objects[k].size);
        }
    }
    return rc < 0 || fd < 0 ? rc : flush(&gather);
}

struct check {
    const struct ss_pack_object *objects;
    size_t count;
    int64_t right;
};

static void *check(void *context)
{
    struct check *check = context;

    check->right = ss_pack_check(check->objects, check->count);
    return NULL;
}

static bool start(pthread_t *thread, struct check *work)
{
    sigset_t all, before;

    sigfillset(&all); /* signals belong to the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(thread, NULL, check, work);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0;
}

int64_t ss_pack_enter(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count,
                      int *error)
{
    struct check work = {.objects = objects, .count = count};
    uint64_t bytes = 0;
    pthread_t thread;

    for (size_t i = 0; i < count; i++)
        bytes += objects[i].size;
    bool aside = bytes >= THREAD_FROM && start(&thread, &work);
    if (!aside)
        check(&work);
    /* What may still be found wrong is written for nothing then. */
    *error = ss_pack_write(fd, offset, objects,
                           aside || work.right < 0 ? count : (size_t)work.right);
    if (aside)
        pthread_join(thread, NULL);
    /* Perhaps there was no room for what is not kept. */
    if (*error < 0 && work.right >= 0 && (size_t)work.right < count)
        *error = ss_pack_write(fd, offset, objects, (size_t)work.right);
    return work.right;
}
