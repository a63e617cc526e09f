/* Extents: where the blocks of a file go, and the tree that says so. */
#ifndef SS_EXT4_EXTENT_H
#define SS_EXT4_EXTENT_H

#include "ext4_format.h"
#include "ext4_layout.h"

/* A run of blocks that hold data; what lies between two spans is a hole. */
struct ss_span {
    uint32_t logical, blocks;
};
struct ss_extent {
    uint32_t logical, length; /* at most 32768 blocks */
    uint64_t start;
};

/* The extents of one file and the blocks of its tree. Zero it first; it can be filled again and
 * again (the arrays are kept), and is freed by ss_extents_free. */
struct ss_extents {
    struct ss_extent *list;
    uint64_t *tree; /* numbers of the tree's own blocks: leaves first, then level by level */
    uint32_t count, room, tree_count, tree_room;
    uint16_t depth;
};

void ss_extents_clear(struct ss_extents *extents);
/* Adds one run; split to what an extent can hold. -ENOMEM. */
int ss_extents_add(struct ss_extents *extents, uint32_t logical, uint64_t start, uint64_t blocks);
/* How many tree blocks the list needs beyond the inode; room for their numbers. -ENOMEM, -EFBIG. */
int ss_extents_tree(struct ss_extents *extents);

/* Places the spans upwards from *cursor, then the tree's blocks behind them. -ENOSPC when the file
 * system ends before (cursor then is where it stopped), -ENOMEM. */
int ss_extents_place(struct ss_extents *extents, const struct ss_layout *layout, uint64_t *cursor,
                     const struct ss_span *spans, uint32_t count);

/* The root in the inode; the content of tree block `index`, with its checksum. */
void ss_extents_root(const struct ss_extents *extents, struct ext4_inode *inode);
void ss_extents_block(const struct ss_extents *extents, uint32_t index, uint32_t inode_seed,
                      uint8_t *out);
void ss_extents_free(struct ss_extents *extents);

#endif
