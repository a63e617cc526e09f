/* The checksums of metadata_csum, each over the record it protects.
 *
 * `seed` is the file system's (s_checksum_seed); an inode's own seed covers its number and
 * generation. Every function fills the record's checksum in, or says whether it is right.
 */
#ifndef SS_EXT4_CSUM_H
#define SS_EXT4_CSUM_H

#include <stdbool.h>

#include "ext4_format.h"

uint32_t ss_ext4_seed(const uint8_t uuid[16]);
uint32_t ss_ext4_inode_seed(uint32_t seed, uint32_t ino, uint32_t generation);

void ss_ext4_super_csum(struct ext4_super *super);
bool ss_ext4_super_csum_ok(const struct ext4_super *super);
void ss_ext4_desc_csum(struct ext4_desc *desc, uint32_t seed, uint32_t group);
bool ss_ext4_desc_csum_ok(const struct ext4_desc *desc, uint32_t seed, uint32_t group);
/* `bytes` of the bitmap count: blocks or inodes per group / 8. */
void ss_ext4_block_bitmap_csum(struct ext4_desc *desc, uint32_t seed, const void *bitmap);
void ss_ext4_inode_bitmap_csum(struct ext4_desc *desc, uint32_t seed, const void *bitmap,
                               uint32_t bytes);
void ss_ext4_inode_csum(struct ext4_inode *inode, uint32_t seed, uint32_t ino);
bool ss_ext4_inode_csum_ok(const struct ext4_inode *inode, uint32_t seed, uint32_t ino);
/* A directory's leaf, an htree root (at = 32) or node (at = 8), an extent block: all 4 KiB. */
void ss_ext4_leaf_csum(void *block, uint32_t inode_seed);
bool ss_ext4_leaf_csum_ok(const void *block, uint32_t inode_seed);
void ss_ext4_dx_csum(void *block, uint32_t inode_seed, uint32_t at);
void ss_ext4_extent_csum(void *block, uint32_t inode_seed);
bool ss_ext4_extent_csum_ok(const void *block, uint32_t inode_seed);
void ss_ext4_xattr_csum(void *block, uint32_t seed, uint64_t number);

#endif
