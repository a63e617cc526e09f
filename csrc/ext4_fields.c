/* Fields of an inode that are split over its record; see ext4_fields.h. */
#include "ext4_fields.h"

void ss_inode_times(struct ext4_inode *inode, int64_t seconds, uint32_t nanoseconds)
{
    const int64_t least = -((int64_t)1 << 31), most = ((int64_t)1 << 34) + least - 1;
    if (seconds < least)
        seconds = least;
    if (seconds > most)
        seconds = most;
    uint32_t low = (uint32_t)seconds;
    /* two bits of epoch, thirty of nanoseconds; the low word counts as signed */
    uint32_t epoch = (uint32_t)((seconds - (int32_t)low) >> 32) & 3;
    uint32_t extra = nanoseconds << 2 | epoch;
    inode->atime = inode->ctime = inode->mtime = inode->crtime = low;
    inode->atime_extra = inode->ctime_extra = inode->mtime_extra = inode->crtime_extra = extra;
}

void ss_inode_sizes(struct ext4_inode *inode, uint64_t size, uint64_t blocks)
{
    uint64_t sectors = blocks * (EXT4_BLOCK / 512);
    inode->size_lo = (uint32_t)size;
    inode->size_hi = (uint32_t)(size >> 32);
    inode->blocks_lo = (uint32_t)sectors;
    inode->blocks_hi = (uint16_t)(sectors >> 32);
}

void ss_inode_owner(struct ext4_inode *inode, uint32_t mode, uint32_t uid, uint32_t gid)
{
    inode->mode = (uint16_t)mode;
    inode->uid_lo = (uint16_t)uid;
    inode->uid_hi = (uint16_t)(uid >> 16);
    inode->gid_lo = (uint16_t)gid;
    inode->gid_hi = (uint16_t)(gid >> 16);
    inode->extra_isize = EXT4_EXTRA_ISIZE;
}

uint64_t ss_extents_blocks(const struct ss_extents *extents)
{
    uint64_t blocks = extents->tree_count;
    for (uint32_t i = 0; i < extents->count; i++)
        blocks += extents->list[i].length;
    return blocks;
}
