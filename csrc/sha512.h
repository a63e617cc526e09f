/* SHA-512 (FIPS 180-4) of many messages side by side, one per vector lane: 8 with AVX-512, 4 with
 * AVX2, else one after the other.
 *
 * One message alone is not hashed faster than elsewhere; many of them are. Nothing here fails.
 */
#ifndef SS_SHA512_H
#define SS_SHA512_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SS_SHA512_SIZE 64

/* A message, or a part of one: what an earlier part left in `state` goes on in the next. */
struct ss_sha512_message {
    const uint8_t *data;
    size_t length;   /* bytes; a multiple of 128 where there is more to come */
    uint64_t before; /* bytes that earlier parts had */
    bool more;       /* another part follows: there is no digest yet */
    uint64_t state[8];
    uint8_t digest[SS_SHA512_SIZE];
};

/* Hashes `count` messages or parts; the longest first is fastest. */
void ss_sha512_many(struct ss_sha512_message *messages, size_t count);

/* How many lanes this processor uses: 1, 4 or 8. */
unsigned ss_sha512_lanes(void);
/* As above with the number of lanes forced (1, 4, 8; more than the processor has is refused with
 * -EINVAL): for tests. */
int ss_sha512_many_lanes(unsigned lanes, struct ss_sha512_message *messages, size_t count);

#endif
