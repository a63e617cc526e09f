/* BLAKE3, unkeyed, 32-byte output (https://github.com/BLAKE3-team/BLAKE3-specs).
 *
 * Many chunks are compressed side by side, one per vector lane: 16 with AVX-512, 8 with AVX2,
 * else 4. The lanes may belong to one large message or to many small ones.
 * Nothing here fails or allocates; the caller owns every buffer.
 */
#ifndef SS_BLAKE3_H
#define SS_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

#define SS_BLAKE3_SIZE 32
#define SS_BLAKE3_CHUNK 1024
#define SS_BLAKE3_MAX_DEPTH 54 /* of the tree over 2^64 bytes of 1 KiB chunks */

struct ss_blake3 {
    uint64_t chunks;                                   /* whole chunks in the stack */
    uint32_t tail_length;                              /* bytes in tail, 0 … 1024 */
    uint32_t depth;                                    /* chaining values in the stack */
    uint8_t tail[SS_BLAKE3_CHUNK];
    uint8_t stack[SS_BLAKE3_MAX_DEPTH + 1][SS_BLAKE3_SIZE];
};

struct ss_blake3_message {
    const uint8_t *data;
    size_t length; /* bytes */
    uint8_t digest[SS_BLAKE3_SIZE];
};

void ss_blake3_start(struct ss_blake3 *state);
void ss_blake3_update(struct ss_blake3 *state, const void *data, size_t length);
/* The same for data behind which at least one more byte comes; quick where every such length is a
 * multiple of a large power of two. */
void ss_blake3_more(struct ss_blake3 *state, const void *data, size_t length);
void ss_blake3_finish(const struct ss_blake3 *state, uint8_t digest[SS_BLAKE3_SIZE]);

/* The digests of `count` messages of at most 1 MiB each, their chunks mixed in the lanes. */
#define SS_BLAKE3_SMALL (1 << 20)
void ss_blake3_small(struct ss_blake3_message *messages, size_t count);

/* How many lanes this processor uses: 4, 8 or 16. */
unsigned ss_blake3_lanes(void);
/* As above with the number of lanes forced (4, 8, 16; more than the processor has is refused with
 * -EINVAL): for tests. */
int ss_blake3_digest_lanes(unsigned lanes, const void *data, size_t length,
                           uint8_t digest[SS_BLAKE3_SIZE]);

#endif
