/* Digests of files that come one after the other, several of them read side by side.
 *
 * One file alone has one lane of the processor; a file that comes while others are read joins them.
 */
#ifndef SS_OBJECT_DIGESTS_H
#define SS_OBJECT_DIGESTS_H

#include <stdint.h>

#include "quick_sum.h"

#define SS_DIGESTS_FILES 8 /* read side by side */

struct ss_digests_file {
    uint8_t sha512[64];
    uint8_t blake3[32];
    uint8_t sum[SS_QUICK_SUM_SIZE];
    int error; /* 0 or a negative errno; -ENODATA where the file is shorter */
};

struct ss_digests;

/* NULL: no memory. */
struct ss_digests *ss_digests_new(void);
void ss_digests_free(struct ss_digests *all);
/* Have a file of `size` bytes, at least 1, read from its byte 0 on: its place, 0 … 7. -EBUSY: all
 * places are taken. The descriptor stays the caller's, who closes it when the file has ended. */
int ss_digests_add(struct ss_digests *all, int fd, uint64_t size);
/* Reads a part of each file; until one has ended, at most `passes` times. A bit for each place
 * whose file has ended. */
unsigned ss_digests_read(struct ss_digests *all, unsigned passes);
/* What was found of a file that has ended; its place is free from now on. */
struct ss_digests_file ss_digests_take(struct ss_digests *all, unsigned place);

#endif
