/* Digests of files; see object_digests.h. */
#include "object_digests.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "blake3.h"
#include "object_read.h"
#include "sha512.h"

enum { PART = 64 << 10 }; /* bytes of a file read at a time: all of them fit the second-level cache */

struct reading {
    bool taken, ended;
    int fd;
    uint64_t size, done; /* bytes */
    uint64_t state[8];
    struct ss_blake3 blake3;
    struct ss_quick_sum sum;
    struct ss_digests_file found;
    uint8_t *part;
};

struct ss_digests {
    struct reading files[SS_DIGESTS_FILES];
    uint8_t *parts;
};

struct ss_digests *ss_digests_new(void)
{
    struct ss_digests *all = calloc(1, sizeof *all);

    if (all == NULL)
        return NULL;
    all->parts = malloc((size_t)SS_DIGESTS_FILES * PART);
    if (all->parts == NULL) {
        free(all);
        return NULL;
    }
    for (unsigned i = 0; i < SS_DIGESTS_FILES; i++)
        all->files[i].part = all->parts + (size_t)i * PART;
    return all;
}

void ss_digests_free(struct ss_digests *all)
{
    if (all != NULL)
        free(all->parts);
    free(all);
}

int ss_digests_add(struct ss_digests *all, int fd, uint64_t size)
{
    for (unsigned i = 0; i < SS_DIGESTS_FILES; i++) {
        struct reading *file = &all->files[i];
        if (file->taken)
            continue;
        file->taken = true;
        file->ended = false;
        file->fd = fd;
        file->size = size;
        file->done = 0;
        file->found.error = 0;
        ss_blake3_start(&file->blake3);
        ss_quick_sum_start(&file->sum);
        return (int)i;
    }
    return -EBUSY;
}

/* One part of every file. */
static void pass(struct ss_digests *all)
{
    struct ss_sha512_message messages[SS_DIGESTS_FILES];
    struct reading *owners[SS_DIGESTS_FILES];
    size_t count = 0;

    for (unsigned i = 0; i < SS_DIGESTS_FILES; i++) {
        struct reading *file = &all->files[i];
        if (!file->taken || file->ended)
            continue;
        uint64_t left = file->size - file->done;
        size_t length = left < PART ? left : PART;
        file->found.error = ss_object_read(file->fd, file->part, length, file->done);
        if (file->found.error < 0) {
            file->ended = true;
            continue;
        }
        struct ss_sha512_message *message = &messages[count];
        message->data = file->part;
        message->length = length;
        message->before = file->done;
        message->more = left > length;
        memcpy(message->state, file->state, sizeof message->state);
        ss_quick_sum_update(&file->sum, file->part, length);
        if (message->more)
            ss_blake3_more(&file->blake3, file->part, length);
        else
            ss_blake3_update(&file->blake3, file->part, length);
        owners[count++] = file;
    }
    ss_sha512_many(messages, count);
    for (size_t i = 0; i < count; i++) {
        struct reading *file = owners[i];
        memcpy(file->state, messages[i].state, sizeof file->state);
        file->done += messages[i].length;
        if (!messages[i].more) {
            memcpy(file->found.sha512, messages[i].digest, sizeof file->found.sha512);
            ss_blake3_finish(&file->blake3, file->found.blake3);
            ss_quick_sum_finish(&file->sum, file->found.sum);
            file->ended = true;
        }
    }
}

unsigned ss_digests_read(struct ss_digests *all, unsigned passes)
{
    unsigned ended = 0;

    for (unsigned n = 0; ended == 0 && n < passes; n++) {
        pass(all);
        for (unsigned i = 0; i < SS_DIGESTS_FILES; i++)
            if (all->files[i].taken && all->files[i].ended)
                ended |= 1U << i;
    }
    return ended;
}

struct ss_digests_file ss_digests_take(struct ss_digests *all, unsigned place)
{
    all->files[place].taken = false;
    return all->files[place].found;
}
