/* Where a store keeps an object below its directory. */
#ifndef SS_OBJECT_PATH_H
#define SS_OBJECT_PATH_H

#include <stdint.h>

#define SS_OBJECT_HASH 64 /* bytes of a SHA-512 */
#define SS_OBJECT_PATH (2 * SS_OBJECT_HASH + 3)

/* The path, with a 0 at its end: `levels` of directories, 1 (flat: <2 hex>/<126 hex>) or 2. */
static inline void ss_object_path(const uint8_t hash[SS_OBJECT_HASH], unsigned levels,
                                  char path[SS_OBJECT_PATH])
{
    static const char HEX[] = "0123456789abcdef";

    for (unsigned i = 0; i < SS_OBJECT_HASH; i++) {
        *path++ = HEX[hash[i] >> 4];
        *path++ = HEX[hash[i] & 15];
        if (i < levels)
            *path++ = '/';
    }
    *path = 0;
}

#endif
