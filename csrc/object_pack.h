/* Objects checked as they enter a cache: many at a time, in the lanes of the processor.
 *
 * Small ones come whole in memory and go side by side into one file, a pack, each at a multiple of
 * SS_PACK_ALIGN bytes: what lies between them is zeros, so that a file system can give back an
 * object's blocks, or share them. For large ones see object_digests.h.
 */
#ifndef SS_OBJECT_PACK_H
#define SS_OBJECT_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "quick_sum.h"

#define SS_PACK_ALIGN 4096

struct ss_pack_object {
    const uint8_t *hash; /* 64 bytes: the SHA-512 that it has to have */
    const uint8_t *data;
    size_t size;         /* bytes, at least 1 */
    uint8_t blake3[32];  /* out, with the sum: by what writes it */
    uint8_t sum[SS_QUICK_SUM_SIZE];
};

/* The number of the first object that has another SHA-512, or `count`: all of them are right then.
 * -ENOMEM. */
int64_t ss_pack_check(const struct ss_pack_object *objects, size_t count);

/* Writes objects into a pack, the first at byte `offset` (a multiple of SS_PACK_ALIGN), each of the
 * others at the next such multiple behind the one before, and zeros up to the end of the last block.
 * Each gets its BLAKE3 and its sum; -1 for `fd`: nothing else is done. 0 or a negative errno; what
 * was written then is worth nothing. */
int ss_pack_write(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count);

/* Both at once where there is enough of it: one thread checks all of them, which fills the lanes
 * better than two with half of them each, and this one writes. Behind the objects that are right the
 * pack may have bytes that are worth nothing; with a negative errno in *error, of the writing, so are
 * all of them. */
int64_t ss_pack_enter(int fd, uint64_t offset, struct ss_pack_object *objects, size_t count,
                      int *error);

#endif
