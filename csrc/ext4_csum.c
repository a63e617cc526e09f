/* Metadata checksums: which bytes each covers is in the kernel's ext4 documentation, "Checksums". */
#include "ext4_csum.h"

#include <string.h>

#include "crc32c.h"

static const uint8_t ZERO[4];

uint32_t ss_ext4_seed(const uint8_t uuid[16])
{
    return ss_crc32c(~0U, uuid, 16);
}

uint32_t ss_ext4_inode_seed(uint32_t seed, uint32_t ino, uint32_t generation)
{
    return ss_crc32c(ss_crc32c(seed, &ino, 4), &generation, 4);
}

static uint32_t super_csum(const struct ext4_super *super)
{
    return ss_crc32c(~0U, super, __builtin_offsetof(struct ext4_super, checksum));
}

void ss_ext4_super_csum(struct ext4_super *super)
{
    super->checksum = super_csum(super);
}

bool ss_ext4_super_csum_ok(const struct ext4_super *super)
{
    return super->checksum == super_csum(super);
}

static uint16_t desc_csum(const struct ext4_desc *desc, uint32_t seed, uint32_t group)
{
    const size_t at = __builtin_offsetof(struct ext4_desc, checksum);
    uint32_t crc = ss_crc32c(seed, &group, 4);
    crc = ss_crc32c(crc, desc, at);
    crc = ss_crc32c(crc, ZERO, 2);
    return (uint16_t)ss_crc32c(crc, (const uint8_t *)desc + at + 2, EXT4_DESC_SIZE - at - 2);
}

void ss_ext4_desc_csum(struct ext4_desc *desc, uint32_t seed, uint32_t group)
{
    desc->checksum = desc_csum(desc, seed, group);
}

bool ss_ext4_desc_csum_ok(const struct ext4_desc *desc, uint32_t seed, uint32_t group)
{
    return desc->checksum == desc_csum(desc, seed, group);
}

void ss_ext4_block_bitmap_csum(struct ext4_desc *desc, uint32_t seed, const void *bitmap)
{
    uint32_t crc = ss_crc32c(seed, bitmap, EXT4_BLOCKS_PER_GROUP / 8);
    desc->block_bitmap_csum_lo = (uint16_t)crc;
    desc->block_bitmap_csum_hi = (uint16_t)(crc >> 16);
}

void ss_ext4_inode_bitmap_csum(struct ext4_desc *desc, uint32_t seed, const void *bitmap,
                               uint32_t bytes)
{
    uint32_t crc = ss_crc32c(seed, bitmap, bytes);
    desc->inode_bitmap_csum_lo = (uint16_t)crc;
    desc->inode_bitmap_csum_hi = (uint16_t)(crc >> 16);
}

static uint32_t inode_csum(const struct ext4_inode *inode, uint32_t seed, uint32_t ino)
{
    const size_t low = __builtin_offsetof(struct ext4_inode, checksum_lo);
    const size_t high = __builtin_offsetof(struct ext4_inode, checksum_hi);
    const uint8_t *bytes = (const uint8_t *)inode;
    uint32_t crc = ss_ext4_inode_seed(seed, ino, inode->generation);
    crc = ss_crc32c(crc, bytes, low);
    crc = ss_crc32c(crc, ZERO, 2);
    crc = ss_crc32c(crc, bytes + low + 2, high - low - 2);
    crc = ss_crc32c(crc, ZERO, 2);
    return ss_crc32c(crc, bytes + high + 2, EXT4_INODE_SIZE - high - 2);
}

void ss_ext4_inode_csum(struct ext4_inode *inode, uint32_t seed, uint32_t ino)
{
    uint32_t crc = inode_csum(inode, seed, ino);
    inode->checksum_lo = (uint16_t)crc;
    inode->checksum_hi = (uint16_t)(crc >> 16);
}

bool ss_ext4_inode_csum_ok(const struct ext4_inode *inode, uint32_t seed, uint32_t ino)
{
    uint32_t crc = inode_csum(inode, seed, ino);
    return inode->checksum_lo == (uint16_t)crc && inode->checksum_hi == (uint16_t)(crc >> 16);
}

void ss_ext4_leaf_csum(void *block, uint32_t inode_seed)
{
    uint32_t crc = ss_crc32c(inode_seed, block, EXT4_DIR_ROOM);
    memcpy((uint8_t *)block + EXT4_BLOCK - 4, &crc, 4);
}

bool ss_ext4_leaf_csum_ok(const void *block, uint32_t inode_seed)
{
    uint32_t crc = ss_crc32c(inode_seed, block, EXT4_DIR_ROOM);
    return memcmp((const uint8_t *)block + EXT4_BLOCK - 4, &crc, 4) == 0;
}

void ss_ext4_dx_csum(void *block, uint32_t inode_seed, uint32_t at)
{
    uint8_t *bytes = block;
    uint16_t count;
    memcpy(&count, bytes + at + 2, 2);
    uint32_t crc = ss_crc32c(inode_seed, bytes, at + count * sizeof(struct ext4_dx_entry));
    crc = ss_crc32c(crc, bytes + EXT4_BLOCK - 8, 4);
    crc = ss_crc32c(crc, ZERO, 4);
    memcpy(bytes + EXT4_BLOCK - 4, &crc, 4);
}

void ss_ext4_extent_csum(void *block, uint32_t inode_seed)
{
    uint32_t crc = ss_crc32c(inode_seed, block, EXT4_BLOCK - 4);
    memcpy((uint8_t *)block + EXT4_BLOCK - 4, &crc, 4);
}

bool ss_ext4_extent_csum_ok(const void *block, uint32_t inode_seed)
{
    uint32_t crc = ss_crc32c(inode_seed, block, EXT4_BLOCK - 4);
    return memcmp((const uint8_t *)block + EXT4_BLOCK - 4, &crc, 4) == 0;
}

void ss_ext4_xattr_csum(void *block, uint32_t seed, uint64_t number)
{
    struct ext4_xattr_header *header = block;
    uint32_t crc = ss_crc32c(seed, &number, 8);
    header->checksum = 0;
    header->checksum = ss_crc32c(crc, block, EXT4_BLOCK);
}
