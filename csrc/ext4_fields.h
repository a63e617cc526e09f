/* Fields of an inode that are split over its record. */
#ifndef SS_EXT4_FIELDS_H
#define SS_EXT4_FIELDS_H

#include "ext4_extent.h"
#include "ext4_format.h"

/* All four times; seconds since the epoch, limited to what the record can hold (1901 … 2446). */
void ss_inode_times(struct ext4_inode *inode, int64_t seconds, uint32_t nanoseconds);
/* Bytes, and blocks of 4 KiB including those of the extent tree and extended attributes. */
void ss_inode_sizes(struct ext4_inode *inode, uint64_t size, uint64_t blocks);
void ss_inode_owner(struct ext4_inode *inode, uint32_t mode, uint32_t uid, uint32_t gid);
/* Blocks of data and of the tree. */
uint64_t ss_extents_blocks(const struct ss_extents *extents);

#endif
