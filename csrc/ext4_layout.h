/* Where ext4's own blocks lie: groups, flex groups, backups, journal size. Pure arithmetic.
 *
 * Everything that is not data stands at the start of a group (its prefix), so whoever allocates
 * upwards from a block only ever skips prefixes:
 *   group 0 and powers of 3, 5, 7   super block and descriptors
 *   first group of a flex group     block bitmaps, inode bitmaps, inode tables of its groups
 */
#ifndef SS_EXT4_LAYOUT_H
#define SS_EXT4_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "ext4.h"
#include "ext4_format.h"

struct ss_layout {
    uint64_t blocks; /* of the file system; below 2^32 */
    uint32_t groups, descriptor_blocks;
    uint32_t inodes_per_group, table_blocks; /* per group */
    uint32_t flex;                           /* groups in a flex group, a power of two */
    uint32_t journal_blocks;
};

/* For `bytes` and at least `inodes` inodes. -EINVAL: no such size; -ENOSPC: too many inodes. */
int ss_layout_make(struct ss_layout *layout, uint64_t bytes, uint64_t inodes,
                   uint32_t bytes_per_inode, struct ss_ext4_report *report);

bool ss_layout_has_super(uint32_t group);
uint64_t ss_layout_start(uint32_t group);
uint32_t ss_layout_group_blocks(const struct ss_layout *layout, uint32_t group);
bool ss_layout_is_flex_first(const struct ss_layout *layout, uint32_t group);
uint32_t ss_layout_flex_groups(const struct ss_layout *layout, uint32_t group);
/* Blocks of the super block and descriptors in a group; of the whole prefix. */
uint32_t ss_layout_super_blocks(const struct ss_layout *layout, uint32_t group);
uint32_t ss_layout_prefix(const struct ss_layout *layout, uint32_t group);
uint64_t ss_layout_block_bitmap(const struct ss_layout *layout, uint32_t group);
uint64_t ss_layout_inode_bitmap(const struct ss_layout *layout, uint32_t group);
uint64_t ss_layout_inode_table(const struct ss_layout *layout, uint32_t group);

/* Moves *cursor to the next block for data and returns how many follow it without a gap, at most
 * `want`; 0 when the file system is full. */
uint64_t ss_layout_take(const struct ss_layout *layout, uint64_t *cursor, uint64_t want);
/* All blocks at or above `block` that data can have. */
uint64_t ss_layout_room(const struct ss_layout *layout, uint64_t block);

#endif
