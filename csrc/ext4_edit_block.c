/* The editor's blocks: held by number in a table; bitmaps and descriptors kept in step. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext4_csum.h"
#include "ext4_edit_block.h"
#include "ext4_layout.h"

static struct ss_edit_block *slot_of(const struct ss_edit *edit, uint64_t number)
{
    uint32_t mask = edit->slots - 1;
    uint32_t at = (uint32_t)(number * 0x9E3779B97F4A7C15u >> 32) & mask;
    while (edit->table[at].data != NULL && edit->table[at].number != number)
        at = (at + 1) & mask;
    return &edit->table[at];
}

static int grow(struct ss_edit *edit)
{
    struct ss_edit_block *old = edit->table;
    uint32_t slots = edit->slots;
    struct ss_edit_block *table = calloc((size_t)slots * 2, sizeof *table);
    if (table == NULL)
        return -ENOMEM;
    edit->table = table;
    edit->slots = slots * 2;
    for (uint32_t i = 0; i < slots; i++)
        if (old[i].data != NULL)
            *slot_of(edit, old[i].number) = old[i];
    free(old);
    return 0;
}

static int read_block(const struct ss_edit *edit, uint64_t number, uint8_t *data)
{
    size_t done = 0;
    while (done < EXT4_BLOCK) {
        ssize_t got = pread(edit->fd, data + done, EXT4_BLOCK - done,
                            (off_t)(edit->offset + number * EXT4_BLOCK + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EUCLEAN;
        done += (size_t)got;
    }
    return 0;
}

static int hold(struct ss_edit *edit, uint64_t number, bool read, struct ss_edit_block **out)
{
    int rc;
    if (number >= edit->blocks)
        return -EUCLEAN;
    struct ss_edit_block *slot = slot_of(edit, number);
    if (slot->data == NULL) {
        if (edit->held >= SS_EDIT_MAX_BLOCKS)
            return -E2BIG;
        if (edit->held * 2 >= edit->slots) {
            if ((rc = grow(edit)) < 0)
                return rc;
            slot = slot_of(edit, number);
        }
        uint8_t *data = malloc(EXT4_BLOCK);
        if (data == NULL)
            return -ENOMEM;
        if (read && (rc = read_block(edit, number, data)) < 0) {
            free(data);
            return rc;
        }
        *slot = (struct ss_edit_block){number, data, false};
        edit->held++;
    }
    *out = slot;
    return 0;
}

int ss_edit_load(struct ss_edit *edit, uint64_t number, uint8_t **data)
{
    struct ss_edit_block *block;
    int rc = hold(edit, number, true, &block);
    if (rc == 0)
        *data = block->data;
    return rc;
}

int ss_edit_load_dirty(struct ss_edit *edit, uint64_t number, uint8_t **data)
{
    struct ss_edit_block *block;
    int rc = hold(edit, number, true, &block);
    if (rc == 0) {
        block->dirty = true;
        *data = block->data;
    }
    return rc;
}

int ss_edit_load_fresh(struct ss_edit *edit, uint64_t number, uint8_t **data)
{
    struct ss_edit_block *block;
    int rc = hold(edit, number, false, &block);
    if (rc == 0) {
        block->dirty = true;
        memset(block->data, 0, EXT4_BLOCK);
        *data = block->data;
    }
    return rc;
}

/* --- groups --- */

static int load_desc(struct ss_edit *edit, uint32_t group, struct ext4_desc **desc)
{
    uint8_t *block;
    int rc = ss_edit_load(edit, 1 + group / EXT4_DESCS_PER_BLOCK, &block);
    if (rc < 0)
        return rc;
    *desc = (struct ext4_desc *)(void *)block + group % EXT4_DESCS_PER_BLOCK;
    if ((edit->flags & SS_EDIT_NO_CHECKSUMS) == 0 &&
        !ss_ext4_desc_csum_ok(*desc, edit->super.checksum_seed, group))
        return -EUCLEAN;
    return 0;
}

static void desc_done(struct ss_edit *edit, uint32_t group, struct ext4_desc *desc)
{
    uint8_t *unused;
    ss_ext4_desc_csum(desc, edit->super.checksum_seed, group);
    (void)ss_edit_load_dirty(edit, 1 + group / EXT4_DESCS_PER_BLOCK, &unused); /* is held */
}

static uint32_t group_blocks(const struct ss_edit *edit, uint32_t group)
{
    uint64_t left = edit->blocks - ss_layout_start(group);
    return left < EXT4_BLOCKS_PER_GROUP ? (uint32_t)left : EXT4_BLOCKS_PER_GROUP;
}

static bool test_bit(const uint8_t *bitmap, uint32_t bit)
{
    return (bitmap[bit >> 3] >> (bit & 7) & 1) != 0;
}

static void set_range(uint8_t *bitmap, uint64_t from, uint64_t to)
{
    for (; from < to; from++)
        bitmap[from >> 3] |= (uint8_t)(1u << (from & 7));
}

/* What an uninitialised bitmap stands for: the group's super block, and its own metadata if they
 * happen to lie in it. */
static void build_block_bitmap(struct ss_edit *edit, uint32_t group, const struct ext4_desc *desc,
                               uint8_t *bitmap)
{
    uint32_t size = group_blocks(edit, group);
    uint32_t descriptors = (edit->groups + EXT4_DESCS_PER_BLOCK - 1) / EXT4_DESCS_PER_BLOCK;
    uint64_t own[3][2] = {{desc->block_bitmap_lo, 1},
                          {desc->inode_bitmap_lo, 1},
                          {desc->inode_table_lo,
                           edit->super.inodes_per_group / EXT4_INODES_PER_BLOCK}};
    memset(bitmap, 0, EXT4_BLOCK);
    if (ss_layout_has_super(group))
        set_range(bitmap, 0, 1 + descriptors < size ? 1 + descriptors : size);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t start = ss_layout_start(group), from = own[i][0], to = from + own[i][1];
        from = from < start ? start : from;
        to = to > start + size ? start + size : to;
        if (from < to)
            set_range(bitmap, from - start, to - start);
    }
    set_range(bitmap, size, EXT4_BLOCKS_PER_GROUP);
}

static int load_block_bitmap(struct ss_edit *edit, uint32_t group, struct ext4_desc *desc,
                             uint8_t **bitmap)
{
    int rc;
    if (desc->block_bitmap_hi != 0)
        return -EUCLEAN;
    if ((desc->flags & EXT4_BG_BLOCK_UNINIT) == 0)
        return ss_edit_load_dirty(edit, desc->block_bitmap_lo, bitmap);
    if ((rc = ss_edit_load_fresh(edit, desc->block_bitmap_lo, bitmap)) < 0)
        return rc;
    build_block_bitmap(edit, group, desc, *bitmap);
    desc->flags = (uint16_t)(desc->flags & ~EXT4_BG_BLOCK_UNINIT);
    return 0;
}

static uint32_t free_blocks_of(const struct ext4_desc *desc)
{
    return desc->free_blocks_lo | (uint32_t)desc->free_blocks_hi << 16;
}

/* Brings a group's and the file system's counts of free blocks up to date. */
static void count_blocks(struct ss_edit *edit, uint32_t group, struct ext4_desc *desc,
                         const uint8_t *bitmap, int64_t change)
{
    uint64_t all = edit->super.free_blocks_count_lo |
                   (uint64_t)edit->super.free_blocks_count_hi << 32;
    uint32_t here = free_blocks_of(desc) + (uint32_t)change;
    all += (uint64_t)change;
    edit->super.free_blocks_count_lo = (uint32_t)all;
    edit->super.free_blocks_count_hi = (uint32_t)(all >> 32);
    desc->free_blocks_lo = (uint16_t)here;
    desc->free_blocks_hi = (uint16_t)(here >> 16);
    ss_ext4_block_bitmap_csum(desc, edit->super.checksum_seed, bitmap);
    desc_done(edit, group, desc);
}

int ss_edit_take_blocks(struct ss_edit *edit, uint64_t want, uint64_t *start, uint64_t *got)
{
    for (; edit->block_hint < edit->groups; edit->block_hint++) {
        uint32_t group = edit->block_hint, size = group_blocks(edit, group);
        struct ext4_desc *desc;
        uint8_t *bitmap;
        int rc = load_desc(edit, group, &desc);
        if (rc < 0)
            return rc;
        if (free_blocks_of(desc) == 0)
            continue;
        if ((rc = load_block_bitmap(edit, group, desc, &bitmap)) < 0)
            return rc;
        uint32_t first = 0, end;
        while (first < size && test_bit(bitmap, first))
            first++;
        for (end = first; end < size && end - first < want && !test_bit(bitmap, end);)
            end++;
        if (first == end || end - first > free_blocks_of(desc))
            return -EUCLEAN; /* the count says there are some */
        set_range(bitmap, first, end);
        count_blocks(edit, group, desc, bitmap, -(int64_t)(end - first));
        *start = ss_layout_start(group) + first;
        *got = end - first;
        return 0;
    }
    edit->no_inodes = false;
    return -ENOSPC;
}

int ss_edit_free_blocks(struct ss_edit *edit, uint64_t start, uint64_t count)
{
    while (count > 0) {
        if (start >= edit->blocks)
            return -EUCLEAN;
        uint32_t group = (uint32_t)(start / EXT4_BLOCKS_PER_GROUP);
        uint32_t first = (uint32_t)(start % EXT4_BLOCKS_PER_GROUP);
        uint32_t end = group_blocks(edit, group), freed = 0;
        struct ext4_desc *desc;
        uint8_t *bitmap;
        int rc = load_desc(edit, group, &desc);
        if (rc < 0 || (rc = load_block_bitmap(edit, group, desc, &bitmap)) < 0)
            return rc;
        if (end - first > count)
            end = first + (uint32_t)count;
        for (uint32_t bit = first; bit < end; bit++, freed++) {
            if (!test_bit(bitmap, bit))
                return -EUCLEAN;
            bitmap[bit >> 3] &= (uint8_t)~(1u << (bit & 7));
        }
        if (freed == 0)
            return -EUCLEAN;
        count_blocks(edit, group, desc, bitmap, freed);
        start += freed;
        count -= freed;
    }
    return 0;
}

/* --- inodes --- */

static int load_inode_bitmap(struct ss_edit *edit, struct ext4_desc *desc, uint8_t **bitmap)
{
    int rc;
    if (desc->inode_bitmap_hi != 0)
        return -EUCLEAN;
    if ((desc->flags & EXT4_BG_INODE_UNINIT) == 0)
        return ss_edit_load_dirty(edit, desc->inode_bitmap_lo, bitmap);
    if ((rc = ss_edit_load_fresh(edit, desc->inode_bitmap_lo, bitmap)) < 0)
        return rc;
    set_range(*bitmap, edit->super.inodes_per_group, EXT4_BLOCKS_PER_GROUP);
    desc->flags = (uint16_t)(desc->flags & ~EXT4_BG_INODE_UNINIT);
    return 0;
}

static uint32_t free_inodes_of(const struct ext4_desc *desc)
{
    return desc->free_inodes_lo | (uint32_t)desc->free_inodes_hi << 16;
}

static void count_inodes(struct ss_edit *edit, uint32_t group, struct ext4_desc *desc,
                         const uint8_t *bitmap, int32_t change)
{
    uint32_t here = free_inodes_of(desc) + (uint32_t)change;
    edit->super.free_inodes_count += (uint32_t)change;
    desc->free_inodes_lo = (uint16_t)here;
    desc->free_inodes_hi = (uint16_t)(here >> 16);
    ss_ext4_inode_bitmap_csum(desc, edit->super.checksum_seed, bitmap,
                              edit->super.inodes_per_group / 8);
    desc_done(edit, group, desc);
}

int ss_edit_take_inode(struct ss_edit *edit, bool directory, uint32_t *ino)
{
    const uint32_t per_group = edit->super.inodes_per_group;
    for (; edit->inode_hint < edit->groups; edit->inode_hint++) {
        uint32_t group = edit->inode_hint;
        uint32_t bit = group == 0 ? EXT4_FIRST_INO - 1 : 0;
        struct ext4_desc *desc;
        uint8_t *bitmap;
        int rc = load_desc(edit, group, &desc);
        if (rc < 0)
            return rc;
        if (free_inodes_of(desc) == 0)
            continue;
        if ((rc = load_inode_bitmap(edit, desc, &bitmap)) < 0)
            return rc;
        while (bit < per_group && test_bit(bitmap, bit))
            bit++;
        if (bit == per_group)
            return -EUCLEAN;
        set_range(bitmap, bit, bit + 1);
        uint32_t unused = desc->itable_unused_lo | (uint32_t)desc->itable_unused_hi << 16;
        if (unused > per_group - bit - 1)
            unused = per_group - bit - 1;
        desc->itable_unused_lo = (uint16_t)unused;
        desc->itable_unused_hi = (uint16_t)(unused >> 16);
        uint32_t dirs = (desc->used_dirs_lo | (uint32_t)desc->used_dirs_hi << 16) + directory;
        desc->used_dirs_lo = (uint16_t)dirs;
        desc->used_dirs_hi = (uint16_t)(dirs >> 16);
        count_inodes(edit, group, desc, bitmap, -1);
        *ino = group * per_group + bit + 1;
        return 0;
    }
    edit->no_inodes = true;
    return -ENOSPC;
}

int ss_edit_free_inode(struct ss_edit *edit, uint32_t ino)
{
    uint32_t group = (ino - 1) / edit->super.inodes_per_group;
    uint32_t bit = (ino - 1) % edit->super.inodes_per_group;
    struct ext4_desc *desc;
    uint8_t *bitmap;
    int rc;

    if (ino < EXT4_FIRST_INO || group >= edit->groups)
        return -EUCLEAN;
    if ((rc = load_desc(edit, group, &desc)) < 0 ||
        (rc = load_inode_bitmap(edit, desc, &bitmap)) < 0)
        return rc;
    if (!test_bit(bitmap, bit))
        return -EUCLEAN;
    bitmap[bit >> 3] &= (uint8_t)~(1u << (bit & 7));
    count_inodes(edit, group, desc, bitmap, 1);
    return 0;
}

/* Where an inode's record is. */
static int locate(struct ss_edit *edit, uint32_t ino, uint64_t *block, size_t *at)
{
    uint32_t per_group = edit->super.inodes_per_group;
    uint32_t group = (ino - 1) / per_group, index = (ino - 1) % per_group;
    struct ext4_desc *desc;
    int rc;

    if (ino == 0 || group >= edit->groups)
        return -EUCLEAN;
    if ((rc = load_desc(edit, group, &desc)) < 0)
        return rc;
    if (desc->inode_table_hi != 0)
        return -EUCLEAN;
    *block = (uint64_t)desc->inode_table_lo + index / EXT4_INODES_PER_BLOCK;
    *at = (size_t)(index % EXT4_INODES_PER_BLOCK) * EXT4_INODE_SIZE;
    return 0;
}

int ss_edit_inode(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode)
{
    uint64_t number;
    size_t at;
    uint8_t *block;
    int rc = locate(edit, ino, &number, &at);

    if (rc < 0 || (rc = ss_edit_load(edit, number, &block)) < 0)
        return rc;
    *inode = (struct ext4_inode *)(void *)(block + at);
    if ((*inode)->links_count == 0)
        return -EUCLEAN;
    if ((edit->flags & SS_EDIT_NO_CHECKSUMS) == 0 &&
        !ss_ext4_inode_csum_ok(*inode, edit->super.checksum_seed, ino))
        return -EUCLEAN;
    return 0;
}

static int mark_inode(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode)
{
    uint64_t number;
    size_t at;
    uint8_t *block;
    int rc = locate(edit, ino, &number, &at);

    if (rc < 0 || (rc = ss_edit_load_dirty(edit, number, &block)) < 0)
        return rc;
    *inode = (struct ext4_inode *)(void *)(block + at);
    return 0;
}

int ss_edit_inode_dirty(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode)
{
    int rc = ss_edit_inode(edit, ino, inode);
    return rc < 0 ? rc : mark_inode(edit, ino, inode);
}

int ss_edit_clear_inode(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode)
{
    int rc = mark_inode(edit, ino, inode);
    if (rc == 0)
        memset(*inode, 0, sizeof **inode);
    return rc;
}
