/* sources: csrc/object_pack.c csrc/object_digests.c csrc/quick_sum.c csrc/crc32c.c csrc/sha512.c csrc/blake3.c */
/* Objects on their way into a pack. Input: one byte of how many, two bytes of size for each, then
 * what they are made of. Every kernel has to say the same of them, the pack to hold them, and a part
 * at a time has to give what the whole gives. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blake3.h"
#include "object_digests.h"
#include "object_pack.h"
#include "sha512.h"

enum { MOST = 24 };

static void require(int truth)
{
    if (!truth)
        abort();
}

static void in_parts(const struct ss_sha512_message *whole, size_t part)
{
    struct ss_sha512_message message = {0};

    part = part * 128 + 128;
    for (size_t at = 0;; at += part) {
        message.data = whole->data + at;
        message.length = whole->length - at < part ? whole->length - at : part;
        message.before = at;
        message.more = whole->length - at > part;
        ss_sha512_many(&message, 1);
        if (!message.more)
            break;
    }
    require(memcmp(message.digest, whole->digest, SS_SHA512_SIZE) == 0);
}

/* A file beside another that ends too early. */
static void require_digests(int fd, uint64_t size)
{
    struct ss_digests *all = ss_digests_new();
    unsigned ended = 0;

    require(all != NULL);
    require(ss_digests_add(all, fd, size) == 0);
    require(ss_digests_add(all, fd, UINT64_MAX) == 1);
    while (ended != 3)
        ended |= ss_digests_read(all, 1);
    require(ss_digests_take(all, 0).error == 0);
    require(ss_digests_take(all, 1).error == -ENODATA);
    ss_digests_free(all);
}

/* The sum of the bytes that were read again, in two parts where there are as many. */
static void require_sum(const uint8_t *back, const struct ss_pack_object *object)
{
    size_t first = object->size / 2 / SS_QUICK_SUM_STEP * SS_QUICK_SUM_STEP;
    uint8_t found[SS_QUICK_SUM_SIZE];
    struct ss_quick_sum sum;

    ss_quick_sum_start(&sum);
    ss_quick_sum_update(&sum, back, first);
    ss_quick_sum_update(&sum, back + first, object->size - first);
    ss_quick_sum_finish(&sum, found);
    require(memcmp(found, object->sum, sizeof found) == 0);
}

static void pack(struct ss_pack_object *objects, size_t count, uint8_t wrong)
{
    int fd = memfd_create("pack", MFD_CLOEXEC);
    size_t first = wrong < count ? wrong : count;
    uint8_t other[64] = {0};
    uint64_t offset = SS_PACK_ALIGN;

    require(fd >= 0);
    if (first < count)
        objects[first].hash = other;
    int error = -1;
    require(ss_pack_check(objects, count) == (int64_t)first);
    require(ss_pack_enter(fd, offset, objects, count, &error) == (int64_t)first && error == 0);
    require(ss_pack_enter(-1, 0, objects, count, &error) == (int64_t)first && error == 0);
    for (size_t i = 0; i < first; i++) {
        uint8_t *back = malloc(objects[i].size), digest[32];
        require(pread(fd, back, objects[i].size, (off_t)offset) == (ssize_t)objects[i].size);
        require(memcmp(back, objects[i].data, objects[i].size) == 0);
        require(ss_blake3_digest_lanes(4, back, objects[i].size, digest) == 0);
        require(memcmp(digest, objects[i].blake3, sizeof digest) == 0);
        require_sum(back, &objects[i]);
        require_digests(fd, offset + objects[i].size);
        free(back);
        offset += (objects[i].size + SS_PACK_ALIGN - 1) / SS_PACK_ALIGN * SS_PACK_ALIGN;
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ss_sha512_message messages[MOST] = {0}, again[MOST] = {0};
    struct ss_pack_object objects[MOST];
    size_t count = size > 0 ? data[0] % (MOST + 1) : 0, some = 0;

    if (size < 3 + 2 * count)
        return 0;
    const uint8_t *sizes = data + 3, *content = sizes + 2 * count;
    size_t left = size - 3 - 2 * count;
    uint8_t *copies[MOST];
    for (size_t i = 0; i < count; i++) {
        size_t length = sizes[2 * i] | (size_t)(sizes[2 * i + 1] & 15) << 8;
        copies[i] = malloc(length); /* exactly as long, so that reading past it is seen */
        for (size_t k = 0; k < length; k++)
            copies[i][k] = left > 0 ? content[(i + k) % left] : (uint8_t)k;
        messages[i].data = again[i].data = copies[i];
        messages[i].length = again[i].length = length;
    }
    ss_sha512_many(messages, count);
    for (unsigned lanes = 1; lanes <= ss_sha512_lanes(); lanes *= 2) {
        if (lanes == 2)
            continue;
        require(ss_sha512_many_lanes(lanes, again, count) == 0);
        for (size_t i = 0; i < count; i++)
            require(memcmp(again[i].digest, messages[i].digest, SS_SHA512_SIZE) == 0);
    }
    for (size_t i = 0; i < count; i++) {
        in_parts(&messages[i], data[1] % 8);
        if (messages[i].length > 0)
            objects[some++] = (struct ss_pack_object){
                .hash = messages[i].digest, .data = messages[i].data, .size = messages[i].length};
    }
    pack(objects, some, data[2]);
    for (size_t i = 0; i < count; i++)
        free(copies[i]);
    return 0;
}
