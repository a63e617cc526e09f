/* The blocks of a directory: one linear block where everything fits, else an htree (dir_index).
 *
 * The hash is half MD4 over unsigned characters (s_flags says so). Leaves are filled to 7/8, so
 * that a name can be added without a split.
 */
#ifndef SS_EXT4_DIR_H
#define SS_EXT4_DIR_H

#include <stdbool.h>
#include <stdint.h>

#include "ext4_format.h"

struct ss_name {
    uint32_t offset; /* of the name, from ss_dir.names */
    uint32_t ino;
    uint32_t hash; /* filled by ss_dir_plan */
    uint8_t length, type;
};

struct ss_dir {
    /* given by the caller, who owns the arrays; `list` is sorted in place */
    const uint8_t *names;
    struct ss_name *list;
    uint32_t count, ino, parent_ino, inode_seed;
    uint32_t hash_seed[4];
    /* found by ss_dir_plan */
    uint32_t blocks, leaves, nodes; /* nodes: index blocks below the root, 0 if one level is enough */
    uint32_t *cuts;                 /* first entry of each leaf, and the count; NULL if linear */
};

/* The directory hash of a name, lowest bit clear. */
uint32_t ss_dir_hash(const uint32_t seed[4], const uint8_t *name, uint32_t length);
/* Blocks that a directory takes if its names fit into one block, else 0. */
bool ss_dir_is_linear(const struct ss_dir *dir);
/* -ENOMEM; -EFBIG: more than two levels of index (about 30 million names). */
int ss_dir_plan(struct ss_dir *dir);
/* Writes block `number` (below dir->blocks) to `out`, 4 KiB, with its checksum. */
void ss_dir_block(const struct ss_dir *dir, uint32_t number, uint8_t *out);
void ss_dir_free(struct ss_dir *dir);

#endif
