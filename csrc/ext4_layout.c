/* The geometry of the file system; see ext4_layout.h. */
#include "ext4_layout.h"

#include <errno.h>

enum { FLEX = 16, LAST_GROUP_SPARE = 50 };

static bool power_of(uint32_t base, uint32_t number)
{
    while (number % base == 0)
        number /= base;
    return number == 1;
}

bool ss_layout_has_super(uint32_t group)
{
    return group <= 1 || power_of(3, group) || power_of(5, group) || power_of(7, group);
}

uint64_t ss_layout_start(uint32_t group)
{
    return (uint64_t)group * EXT4_BLOCKS_PER_GROUP;
}

uint32_t ss_layout_group_blocks(const struct ss_layout *layout, uint32_t group)
{
    uint64_t left = layout->blocks - ss_layout_start(group);
    return left < EXT4_BLOCKS_PER_GROUP ? (uint32_t)left : EXT4_BLOCKS_PER_GROUP;
}

bool ss_layout_is_flex_first(const struct ss_layout *layout, uint32_t group)
{
    return (group & (layout->flex - 1)) == 0;
}

uint32_t ss_layout_flex_groups(const struct ss_layout *layout, uint32_t group)
{
    uint32_t first = group & ~(layout->flex - 1);
    uint32_t left = layout->groups - first;
    return left < layout->flex ? left : layout->flex;
}

uint32_t ss_layout_super_blocks(const struct ss_layout *layout, uint32_t group)
{
    return ss_layout_has_super(group) ? 1 + layout->descriptor_blocks : 0;
}

uint32_t ss_layout_prefix(const struct ss_layout *layout, uint32_t group)
{
    uint32_t blocks = ss_layout_super_blocks(layout, group);
    if (ss_layout_is_flex_first(layout, group))
        blocks += ss_layout_flex_groups(layout, group) * (2 + layout->table_blocks);
    return blocks;
}

static uint64_t flex_base(const struct ss_layout *layout, uint32_t group)
{
    uint32_t first = group & ~(layout->flex - 1);
    return ss_layout_start(first) + ss_layout_super_blocks(layout, first);
}

uint64_t ss_layout_block_bitmap(const struct ss_layout *layout, uint32_t group)
{
    return flex_base(layout, group) + (group & (layout->flex - 1));
}

uint64_t ss_layout_inode_bitmap(const struct ss_layout *layout, uint32_t group)
{
    return ss_layout_block_bitmap(layout, group) + ss_layout_flex_groups(layout, group);
}

uint64_t ss_layout_inode_table(const struct ss_layout *layout, uint32_t group)
{
    return flex_base(layout, group) + 2 * (uint64_t)ss_layout_flex_groups(layout, group) +
           (uint64_t)(group & (layout->flex - 1)) * layout->table_blocks;
}

uint64_t ss_layout_take(const struct ss_layout *layout, uint64_t *cursor, uint64_t want)
{
    uint64_t start = *cursor;
    for (;;) { /* out of a prefix */
        if (start >= layout->blocks)
            return 0;
        uint32_t group = (uint32_t)(start / EXT4_BLOCKS_PER_GROUP);
        uint64_t usable = ss_layout_start(group) + ss_layout_prefix(layout, group);
        if (start >= usable)
            break;
        start = usable;
    }
    *cursor = start;
    uint32_t group = (uint32_t)(start / EXT4_BLOCKS_PER_GROUP);
    uint64_t end = ss_layout_start(group) + ss_layout_group_blocks(layout, group);
    while (end - start < want && end < layout->blocks) {
        group++;
        if (ss_layout_prefix(layout, group) > 0)
            break;
        end += ss_layout_group_blocks(layout, group);
    }
    return end - start < want ? end - start : want;
}

uint64_t ss_layout_room(const struct ss_layout *layout, uint64_t block)
{
    uint64_t room = 0;
    for (uint64_t cursor = block, got;
         (got = ss_layout_take(layout, &cursor, layout->blocks)) > 0; cursor += got)
        room += got;
    return room;
}

/* In blocks, as mke2fs chooses for the size of the file system. */
static uint32_t journal_size(uint64_t blocks)
{
    const uint64_t mib = 256;
    if (blocks < 128 * mib)
        return 1024;
    if (blocks < 1024 * mib)
        return 4096;
    if (blocks < 2048 * mib)
        return 8192;
    if (blocks < 16384 * mib)
        return 16384;
    if (blocks < 32768 * mib)
        return 32768;
    if (blocks < 65536 * mib)
        return 65536;
    if (blocks < 131072 * mib)
        return 131072;
    return 262144;
}

static int bad_size(struct ss_ext4_report *report, uint64_t bytes)
{
    report->what = SS_EXT4_SIZE;
    report->wanted = bytes;
    return -EINVAL;
}

int ss_layout_make(struct ss_layout *layout, uint64_t bytes, uint64_t inodes,
                   uint32_t bytes_per_inode, struct ss_ext4_report *report)
{
    uint64_t blocks = bytes / EXT4_BLOCK;
    if (blocks < 2048 || blocks > 0xFFFFFFFFu || bytes_per_inode < 1024)
        return bad_size(report, bytes);
    if (inodes < bytes / bytes_per_inode)
        inodes = bytes / bytes_per_inode;
    layout->journal_blocks = journal_size(blocks);
    for (;;) {
        layout->blocks = blocks;
        layout->groups =
            (uint32_t)((blocks + EXT4_BLOCKS_PER_GROUP - 1) / EXT4_BLOCKS_PER_GROUP);
        layout->descriptor_blocks =
            (layout->groups + EXT4_DESCS_PER_BLOCK - 1) / EXT4_DESCS_PER_BLOCK;
        uint64_t per_group = (inodes + layout->groups - 1) / layout->groups;
        per_group = (per_group + EXT4_INODES_PER_BLOCK - 1) & ~(uint64_t)(EXT4_INODES_PER_BLOCK - 1);
        if (per_group > EXT4_BLOCKS_PER_GROUP) {
            report->what = SS_EXT4_INODES;
            report->wanted = inodes;
            report->have = (uint64_t)layout->groups * EXT4_BLOCKS_PER_GROUP;
            return -ENOSPC;
        }
        layout->inodes_per_group = (uint32_t)per_group;
        layout->table_blocks = (uint32_t)per_group / EXT4_INODES_PER_BLOCK;
        /* All tables of a flex group, and the descriptors, must fit into its first group. */
        for (layout->flex = FLEX; layout->flex > 1; layout->flex /= 2)
            if (1 + layout->descriptor_blocks + layout->flex * (2 + layout->table_blocks) +
                    LAST_GROUP_SPARE <= EXT4_BLOCKS_PER_GROUP)
                break;
        uint32_t last = layout->groups - 1;
        if (ss_layout_group_blocks(layout, last) >= ss_layout_prefix(layout, last) + LAST_GROUP_SPARE)
            return 0;
        if (last == 0)
            return bad_size(report, bytes);
        blocks = ss_layout_start(last); /* a last group too small for its own prefix is left out */
    }
}
