/* Whole objects from memory into files of a store: <2 hex>/<2 hex>/<124 hex> below a directory, or
 * flat: <2 hex>/<126 hex>.
 *
 * A file is made under its own name: a kill in the middle leaves a part of it there, so this is for
 * stores that believe a file only once an index names it.
 */
#ifndef SS_OBJECT_FILES_H
#define SS_OBJECT_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "object_path.h"

struct ss_object_file {
    const uint8_t *hash; /* SS_OBJECT_HASH bytes: its name; not compared with the data */
    const uint8_t *data;
    size_t size;        /* bytes */
    uint8_t blake3[32]; /* out: of the data, also where writing failed */
    int error;          /* out: 0 or a negative errno; nothing of it is left then, but what had the
                           name before: -EEXIST */
};

/* Writes `count` objects; each has its own `error`. Buckets that lack are made. `levels` of them are
 * above an object: 1 (flat) or 2. */
void ss_object_files_write(int directory, unsigned levels, struct ss_object_file *objects,
                           size_t count);

#endif
