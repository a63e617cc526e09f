/* What the plan says about groups: bitmaps, descriptors, super blocks, the journal's first block. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext4_csum.h"
#include "ext4_plan.h"

enum { RESERVED_INODES = EXT4_FIRST_INO - 1 };

/* Sets bits [from, to) of a bitmap. */
static void set_bits(uint8_t *bitmap, uint32_t from, uint32_t to)
{
    for (; from < to && (from & 7) != 0; from++)
        bitmap[from >> 3] |= (uint8_t)(1u << (from & 7));
    if (from < to) {
        memset(bitmap + (from >> 3), 0xFF, (to - from) >> 3);
        from += (to - from) & ~7u;
    }
    for (; from < to; from++)
        bitmap[from >> 3] |= (uint8_t)(1u << (from & 7));
}

/* Blocks in use at the start of a group: nothing above them is. */
static uint32_t used_blocks(const struct ss_plan *plan, uint32_t group)
{
    uint32_t prefix = ss_layout_prefix(&plan->layout, group);
    uint32_t blocks = ss_layout_group_blocks(&plan->layout, group);
    uint64_t start = ss_layout_start(group);
    if (plan->data_end <= start + prefix)
        return prefix;
    return plan->data_end - start < blocks ? (uint32_t)(plan->data_end - start) : blocks;
}

void ss_plan_block_bitmap(const struct ss_plan *plan, uint32_t group, uint8_t *out)
{
    memset(out, 0, EXT4_BLOCK);
    set_bits(out, 0, used_blocks(plan, group));
    set_bits(out, ss_layout_group_blocks(&plan->layout, group), EXT4_BLOCKS_PER_GROUP);
}

/* Tree indexes [from, to) whose inodes stand in a group; the reserved ones are not among them. */
static void group_range(const struct ss_plan *plan, uint32_t group, uint32_t *from, uint32_t *to)
{
    uint64_t first = (uint64_t)group * plan->layout.inodes_per_group + 1;
    uint64_t end = first + plan->layout.inodes_per_group;
    uint64_t count = plan->tree->inode_count;
    uint64_t low = first < EXT4_FIRST_INO ? EXT4_FIRST_INO : first;
    uint64_t high = end < low ? low : end;
    low -= EXT4_FIRST_INO - 1;
    high -= EXT4_FIRST_INO - 1;
    *from = (uint32_t)(low < count ? low : count);
    *to = (uint32_t)(high < count ? high : count);
}

void ss_plan_inode_bitmap(const struct ss_plan *plan, uint32_t group, uint8_t *out)
{
    uint32_t from, to, first = group * plan->layout.inodes_per_group + 1;
    memset(out, 0, EXT4_BLOCK);
    if (group == 0)
        set_bits(out, 0, RESERVED_INODES);
    group_range(plan, group, &from, &to);
    for (uint32_t i = from; i < to; i++)
        if (plan->facts.links[i] > 0) {
            uint32_t bit = ss_plan_ino(i) - first;
            out[bit >> 3] |= (uint8_t)(1u << (bit & 7));
        }
    set_bits(out, plan->layout.inodes_per_group, EXT4_BLOCKS_PER_GROUP);
}

uint32_t ss_plan_table_used(const struct ss_plan *plan, uint32_t group)
{
    uint32_t from, to, first = group * plan->layout.inodes_per_group + 1;
    group_range(plan, group, &from, &to);
    for (; to > from; to--)
        if (plan->facts.links[to - 1] > 0)
            return ss_plan_ino(to - 1) - first + 1;
    return group == 0 ? RESERVED_INODES : 0;
}

static void make_desc(struct ss_plan *plan, uint32_t group)
{
    const struct ss_layout *layout = &plan->layout;
    struct ext4_desc *desc = &plan->descs[group];
    uint64_t block_bitmap = ss_layout_block_bitmap(layout, group);
    uint64_t inode_bitmap = ss_layout_inode_bitmap(layout, group);
    uint64_t table = ss_layout_inode_table(layout, group);
    uint32_t from, to, used = 0, dirs = 0, last = ss_plan_table_used(plan, group);
    uint8_t bitmap[EXT4_BLOCK];

    group_range(plan, group, &from, &to);
    for (uint32_t i = from; i < to; i++) {
        used += plan->facts.links[i] > 0;
        dirs += plan->facts.links[i] > 0 && ss_tree_type(&plan->tree->inodes[i]) == S_IFDIR;
    }
    if (group == 0) {
        used += RESERVED_INODES;
        dirs++; /* the root */
    }
    uint32_t in_use = used_blocks(plan, group);
    uint32_t free_blocks = ss_layout_group_blocks(layout, group) - in_use;
    desc->block_bitmap_lo = (uint32_t)block_bitmap;
    desc->block_bitmap_hi = (uint32_t)(block_bitmap >> 32);
    desc->inode_bitmap_lo = (uint32_t)inode_bitmap;
    desc->inode_bitmap_hi = (uint32_t)(inode_bitmap >> 32);
    desc->inode_table_lo = (uint32_t)table;
    desc->inode_table_hi = (uint32_t)(table >> 32);
    desc->free_blocks_lo = (uint16_t)free_blocks;
    desc->free_blocks_hi = (uint16_t)(free_blocks >> 16);
    desc->free_inodes_lo = (uint16_t)(layout->inodes_per_group - used);
    desc->free_inodes_hi = (uint16_t)((layout->inodes_per_group - used) >> 16);
    desc->used_dirs_lo = (uint16_t)dirs;
    desc->used_dirs_hi = (uint16_t)(dirs >> 16);
    desc->itable_unused_lo = (uint16_t)(layout->inodes_per_group - last);
    desc->itable_unused_hi = (uint16_t)((layout->inodes_per_group - last) >> 16);
    desc->flags = EXT4_BG_INODE_ZEROED;
    if (used == 0) {
        desc->flags |= EXT4_BG_INODE_UNINIT;
    } else {
        ss_plan_inode_bitmap(plan, group, bitmap);
        ss_ext4_inode_bitmap_csum(desc, plan->seed, bitmap, layout->inodes_per_group / 8);
    }
    /* An unused group whose prefix is but a super block can be told from its descriptor alone. */
    if (in_use == ss_layout_super_blocks(layout, group) && group + 1 < layout->groups) {
        desc->flags |= EXT4_BG_BLOCK_UNINIT;
    } else {
        ss_plan_block_bitmap(plan, group, bitmap);
        ss_ext4_block_bitmap_csum(desc, plan->seed, bitmap);
    }
    ss_ext4_desc_csum(desc, plan->seed, group);
    plan->free_blocks += free_blocks;
    plan->free_inodes += layout->inodes_per_group - used;
}

int ss_plan_groups(struct ss_plan *plan)
{
    size_t room = (size_t)plan->layout.descriptor_blocks * EXT4_DESCS_PER_BLOCK;
    plan->descs = calloc(room, sizeof *plan->descs);
    if (plan->descs == NULL)
        return ss_plan_fail(plan, -ENOMEM, SS_EXT4_MEMORY, 0);
    for (uint32_t group = 0; group < plan->layout.groups; group++)
        make_desc(plan, group);
    return 0;
}

void ss_plan_super(const struct ss_plan *plan, uint32_t group, struct ext4_super *out)
{
    const struct ss_layout *layout = &plan->layout;
    const struct ss_ext4_params *params = plan->params;
    uint64_t reserved = layout->blocks * params->reserved_percent / 100;
    struct ext4_inode journal = {0};
    uint32_t log_flex = 0;

    while (1u << log_flex < layout->flex)
        log_flex++;
    memset(out, 0, sizeof *out);
    out->inodes_count = layout->groups * layout->inodes_per_group;
    out->blocks_count_lo = (uint32_t)layout->blocks;
    out->r_blocks_count_lo = (uint32_t)reserved;
    out->free_blocks_count_lo = (uint32_t)plan->free_blocks;
    out->free_inodes_count = plan->free_inodes;
    out->log_block_size = 2; /* 1024 << 2 */
    out->log_cluster_size = 2;
    out->blocks_per_group = EXT4_BLOCKS_PER_GROUP;
    out->clusters_per_group = EXT4_BLOCKS_PER_GROUP;
    out->inodes_per_group = layout->inodes_per_group;
    out->wtime = (uint32_t)params->time;
    out->max_mnt_count = 0xFFFF;
    out->magic = EXT4_MAGIC;
    out->state = 1;  /* clean */
    out->errors = 1; /* continue */
    out->lastcheck = (uint32_t)params->time;
    out->rev_level = 1;
    out->first_ino = EXT4_FIRST_INO;
    out->inode_size = EXT4_INODE_SIZE;
    out->block_group_nr = (uint16_t)group;
    out->feature_compat = EXT4_OUR_COMPAT;
    out->feature_incompat = EXT4_OUR_INCOMPAT;
    out->feature_ro_compat = EXT4_OUR_RO;
    memcpy(out->uuid, params->uuid, sizeof out->uuid);
    memcpy(out->volume_name, params->label, sizeof out->volume_name);
    out->journal_inum = EXT4_JOURNAL_INO;
    memcpy(out->hash_seed, plan->hash_seed, sizeof out->hash_seed);
    out->def_hash_version = EXT4_HASH_HALF_MD4;
    out->desc_size = EXT4_DESC_SIZE;
    out->default_mount_opts = 0x0C; /* user_xattr, acl */
    out->mkfs_time = (uint32_t)params->time;
    ss_extents_root(&plan->journal, &journal);
    out->jnl_backup_type = 1;
    memcpy(out->jnl_blocks, journal.block, sizeof journal.block);
    out->jnl_blocks[16] = layout->journal_blocks * EXT4_BLOCK; /* at most 1 GiB */
    out->min_extra_isize = EXT4_EXTRA_ISIZE;
    out->want_extra_isize = EXT4_EXTRA_ISIZE;
    out->flags = EXT4_FLAGS_UNSIGNED_HASH;
    out->log_groups_per_flex = (uint8_t)log_flex;
    out->checksum_type = 1; /* CRC-32C */
    out->checksum_seed = plan->seed;
    ss_ext4_super_csum(out);
}

void ss_plan_journal_super(const struct ss_plan *plan, uint8_t *out)
{
    struct jbd2_super super = {0};
    super.magic = htonl(JBD2_MAGIC);
    super.blocktype = htonl(4);
    super.blocksize = htonl(EXT4_BLOCK);
    super.maxlen = htonl(plan->layout.journal_blocks);
    super.first = htonl(1);
    super.sequence = htonl(1);
    super.nr_users = htonl(1);
    memcpy(super.uuid, plan->params->uuid, sizeof super.uuid);
    memset(out, 0, EXT4_BLOCK);
    memcpy(out, &super, sizeof super);
}
