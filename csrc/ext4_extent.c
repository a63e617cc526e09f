/* Extent lists and trees; see ext4_extent.h. */
#include "ext4_extent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ext4_csum.h"

enum { MAX_DEPTH = 5 };

void ss_extents_clear(struct ss_extents *extents)
{
    extents->count = 0;
    extents->tree_count = 0;
    extents->depth = 0;
}

void ss_extents_free(struct ss_extents *extents)
{
    free(extents->list);
    free(extents->tree);
    memset(extents, 0, sizeof *extents);
}

static int add_one(struct ss_extents *extents, uint32_t logical, uint64_t start, uint32_t blocks)
{
    if (extents->count > 0) { /* what goes on where the last one ends makes it longer */
        struct ss_extent *last = &extents->list[extents->count - 1];
        if (last->logical + last->length == logical && last->start + last->length == start &&
            last->length + blocks <= EXT4_EXTENT_MAX_LEN) {
            last->length += blocks;
            return 0;
        }
    }
    if (extents->count == extents->room) {
        uint32_t room = extents->room == 0 ? 64 : extents->room * 2;
        struct ss_extent *list = realloc(extents->list, room * sizeof *list);
        if (list == NULL)
            return -ENOMEM;
        extents->list = list;
        extents->room = room;
    }
    extents->list[extents->count++] = (struct ss_extent){logical, blocks, start};
    return 0;
}

int ss_extents_add(struct ss_extents *extents, uint32_t logical, uint64_t start, uint64_t blocks)
{
    while (blocks > 0) {
        uint32_t part = blocks < EXT4_EXTENT_MAX_LEN ? (uint32_t)blocks : EXT4_EXTENT_MAX_LEN;
        int rc = add_one(extents, logical, start, part);
        if (rc < 0)
            return rc;
        logical += part;
        start += part;
        blocks -= part;
    }
    return 0;
}

/* Blocks of tree level `level` (0: the leaves) for `count` extents; 0 where the inode is enough. */
static uint32_t level_blocks(uint32_t count, unsigned level)
{
    for (unsigned i = 0; i <= level; i++) {
        if (count <= EXT4_EXTENTS_IN_INODE)
            return 0;
        count = (count + EXT4_EXTENTS_IN_BLOCK - 1) / EXT4_EXTENTS_IN_BLOCK;
    }
    return count;
}

int ss_extents_tree(struct ss_extents *extents)
{
    uint32_t total = 0, blocks;
    unsigned depth = 0;
    while ((blocks = level_blocks(extents->count, depth)) > 0) {
        total += blocks;
        depth++;
    }
    if (depth > MAX_DEPTH)
        return -EFBIG;
    if (total > extents->tree_room) {
        uint64_t *tree = realloc(extents->tree, total * sizeof *tree);
        if (tree == NULL)
            return -ENOMEM;
        extents->tree = tree;
        extents->tree_room = total;
    }
    extents->tree_count = total;
    extents->depth = (uint16_t)depth;
    return 0;
}

int ss_extents_place(struct ss_extents *extents, const struct ss_layout *layout, uint64_t *cursor,
                     const struct ss_span *spans, uint32_t count)
{
    int rc;
    ss_extents_clear(extents);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t logical = spans[i].logical;
        for (uint64_t left = spans[i].blocks; left > 0;) {
            uint64_t got = ss_layout_take(layout, cursor, left);
            if (got == 0)
                return -ENOSPC;
            if ((rc = ss_extents_add(extents, logical, *cursor, got)) < 0)
                return rc;
            logical += (uint32_t)got;
            *cursor += got;
            left -= got;
        }
    }
    if ((rc = ss_extents_tree(extents)) < 0)
        return rc;
    for (uint32_t i = 0; i < extents->tree_count; i++) {
        if (ss_layout_take(layout, cursor, 1) == 0)
            return -ENOSPC;
        extents->tree[i] = (*cursor)++;
    }
    return 0;
}

static void put_leaf(uint8_t *at, const struct ss_extent *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct ext4_extent extent = {list[i].logical, (uint16_t)list[i].length,
                                     (uint16_t)(list[i].start >> 32), (uint32_t)list[i].start};
        memcpy(at + i * sizeof extent, &extent, sizeof extent);
    }
}

/* `count` index entries for the tree blocks from `first` on, each of which covers `span` extents. */
static void put_index(const struct ss_extents *extents, uint8_t *at, uint32_t first,
                      uint32_t from, uint32_t count, uint64_t span)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t block = extents->tree[first + from + i];
        struct ext4_extent_idx idx = {extents->list[(from + i) * span].logical, (uint32_t)block,
                                      (uint16_t)(block >> 32), 0};
        memcpy(at + i * sizeof idx, &idx, sizeof idx);
    }
}

static void put_header(uint8_t *at, uint32_t entries, uint32_t max, unsigned depth)
{
    struct ext4_extent_header header = {EXT4_EXTENT_MAGIC, (uint16_t)entries, (uint16_t)max,
                                        (uint16_t)depth, 0};
    memcpy(at, &header, sizeof header);
}

void ss_extents_root(const struct ss_extents *extents, struct ext4_inode *inode)
{
    uint8_t *at = (uint8_t *)inode->block;
    uint32_t entries = extents->count, first = 0;
    uint64_t span = 1;

    for (unsigned level = 0; level < extents->depth; level++) {
        entries = level_blocks(extents->count, level);
        first = extents->tree_count - entries;
        span *= EXT4_EXTENTS_IN_BLOCK;
    }
    put_header(at, entries, EXT4_EXTENTS_IN_INODE, extents->depth);
    at += sizeof(struct ext4_extent_header);
    if (extents->depth == 0)
        put_leaf(at, extents->list, entries);
    else
        put_index(extents, at, first, 0, entries, span);
    inode->flags |= EXT4_EXTENTS_FL;
}

void ss_extents_block(const struct ss_extents *extents, uint32_t index, uint32_t inode_seed,
                      uint8_t *out)
{
    uint32_t below = extents->count, here = level_blocks(extents->count, 0), first = 0, previous = 0;
    uint64_t span = 1;
    unsigned level = 0;

    while (index - first >= here) { /* which level is this block on? */
        previous = first;
        first += here;
        below = here;
        here = level_blocks(extents->count, ++level);
        span *= level > 1 ? EXT4_EXTENTS_IN_BLOCK : 1;
    }
    if (level > 0)
        span *= EXT4_EXTENTS_IN_BLOCK;
    uint32_t from = (index - first) * EXT4_EXTENTS_IN_BLOCK;
    uint32_t entries = below - from < EXT4_EXTENTS_IN_BLOCK ? below - from : EXT4_EXTENTS_IN_BLOCK;

    memset(out, 0, EXT4_BLOCK);
    put_header(out, entries, EXT4_EXTENTS_IN_BLOCK, level);
    out += sizeof(struct ext4_extent_header);
    if (level == 0)
        put_leaf(out, extents->list + from, entries);
    else
        put_index(extents, out, previous, from, entries, span);
    ss_ext4_extent_csum(out - sizeof(struct ext4_extent_header), inode_seed);
}
