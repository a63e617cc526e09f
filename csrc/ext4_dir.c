/* Lays names out in directory blocks; see ext4_dir.h. */
#include "ext4_dir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ext4_csum.h"

enum { DOTS = 24, LEAF_FILL = EXT4_BLOCK / 8 * 7, TYPE_DIR = 2 };

static int by_hash(const void *left, const void *right)
{
    const struct ss_name *a = left, *b = right;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset; /* any order, but always the same */
}

bool ss_dir_is_linear(const struct ss_dir *dir)
{
    uint32_t bytes = DOTS;
    for (uint32_t i = 0; i < dir->count && bytes <= EXT4_DIR_ROOM; i++)
        bytes += EXT4_DIRENT_SIZE(dir->list[i].length);
    return bytes <= EXT4_DIR_ROOM;
}

static uint32_t cut(const struct ss_dir *dir, uint32_t *cuts)
{
    uint32_t leaves = 0, bytes = LEAF_FILL + 1;
    for (uint32_t i = 0; i < dir->count; i++) {
        uint32_t size = EXT4_DIRENT_SIZE(dir->list[i].length);
        if (bytes + size > LEAF_FILL) {
            if (cuts != NULL)
                cuts[leaves] = i;
            leaves++;
            bytes = 0;
        }
        bytes += size;
    }
    if (cuts != NULL)
        cuts[leaves] = dir->count;
    return leaves;
}

int ss_dir_plan(struct ss_dir *dir)
{
    dir->cuts = NULL;
    dir->nodes = 0;
    dir->leaves = 1;
    dir->blocks = 1;
    if (ss_dir_is_linear(dir))
        return 0;
    for (uint32_t i = 0; i < dir->count; i++)
        dir->list[i].hash =
            ss_dir_hash(dir->hash_seed, dir->names + dir->list[i].offset, dir->list[i].length);
    qsort(dir->list, dir->count, sizeof *dir->list, by_hash);
    dir->leaves = cut(dir, NULL);
    if (dir->leaves > EXT4_DX_ROOT_LIMIT)
        dir->nodes = (dir->leaves + EXT4_DX_NODE_LIMIT - 1) / EXT4_DX_NODE_LIMIT;
    if (dir->nodes > EXT4_DX_ROOT_LIMIT)
        return -EFBIG;
    dir->cuts = malloc(((size_t)dir->leaves + 1) * sizeof *dir->cuts);
    if (dir->cuts == NULL)
        return -ENOMEM;
    cut(dir, dir->cuts);
    dir->blocks = 1 + dir->nodes + dir->leaves;
    return 0;
}

void ss_dir_free(struct ss_dir *dir)
{
    free(dir->cuts);
    dir->cuts = NULL;
}

static uint8_t *put(uint8_t *at, uint32_t ino, uint32_t rec_len, const void *name, uint8_t length,
                    uint8_t type)
{
    struct ext4_dirent entry = {ino, (uint16_t)rec_len, length, type};
    memcpy(at, &entry, sizeof entry);
    memcpy(at + sizeof entry, name, length);
    return at + rec_len;
}

static void put_tail(uint8_t *block, uint32_t inode_seed)
{
    struct ext4_dirent_tail tail = {0, EXT4_DIR_TAIL, 0, 0xDE, 0};
    memcpy(block + EXT4_DIR_ROOM, &tail, sizeof tail);
    ss_ext4_leaf_csum(block, inode_seed);
}

/* Entries [from, to) into a leaf; the last one's record reaches to the tail. */
static void fill_leaf(const struct ss_dir *dir, uint8_t *block, uint8_t *at, uint32_t from,
                      uint32_t to)
{
    uint8_t *end = block + EXT4_DIR_ROOM;
    for (uint32_t i = from; i < to; i++) {
        const struct ss_name *name = &dir->list[i];
        uint32_t size =
            i + 1 < to ? EXT4_DIRENT_SIZE(name->length) : (uint32_t)(end - at);
        at = put(at, name->ino, size, dir->names + name->offset, name->length, name->type);
    }
    put_tail(block, dir->inode_seed);
}

/* Index entries for leaves [from, to), or for all nodes, at byte `at` of an index block. */
static void fill_index(const struct ss_dir *dir, uint8_t *block, uint32_t at, uint32_t limit,
                       uint32_t from, uint32_t to, uint32_t step, uint32_t first_block)
{
    uint32_t slot = 0;
    for (uint32_t leaf = from; leaf < to; leaf += step, slot++) {
        struct ext4_dx_entry entry = {0, first_block + slot};
        if (slot == 0) {
            uint16_t counts[2] = {(uint16_t)limit, (uint16_t)((to - from + step - 1) / step)};
            memcpy(&entry.hash, counts, 4);
        } else {
            /* The lowest bit says: the same hash began in the block before. */
            uint32_t hash = dir->list[dir->cuts[leaf]].hash;
            entry.hash = hash | (dir->list[dir->cuts[leaf] - 1].hash == hash);
        }
        memcpy(block + at + slot * sizeof entry, &entry, sizeof entry);
    }
    ss_ext4_dx_csum(block, dir->inode_seed, at);
}

static void fill_root(const struct ss_dir *dir, uint8_t *block)
{
    struct ext4_dx_root_info info = {0, EXT4_HASH_HALF_MD4, 8, dir->nodes > 0, 0};
    uint8_t *at = put(block, dir->ino, 12, ".", 1, TYPE_DIR);
    put(at, dir->parent_ino, EXT4_BLOCK - 12, "..", 2, TYPE_DIR);
    memcpy(block + DOTS, &info, sizeof info);
    fill_index(dir, block, EXT4_DX_ROOT_AT, EXT4_DX_ROOT_LIMIT, 0, dir->leaves,
               dir->nodes > 0 ? EXT4_DX_NODE_LIMIT : 1, 1);
}

static void fill_node(const struct ss_dir *dir, uint8_t *block, uint32_t node)
{
    uint32_t from = node * EXT4_DX_NODE_LIMIT, to = from + EXT4_DX_NODE_LIMIT;
    struct ext4_dirent empty = {0, EXT4_BLOCK, 0, 0};
    memcpy(block, &empty, sizeof empty);
    fill_index(dir, block, EXT4_DX_NODE_AT, EXT4_DX_NODE_LIMIT, from,
               to < dir->leaves ? to : dir->leaves, 1, 1 + dir->nodes + from);
}

void ss_dir_block(const struct ss_dir *dir, uint32_t number, uint8_t *out)
{
    memset(out, 0, EXT4_BLOCK);
    if (dir->cuts == NULL) {
        uint8_t *at = put(out, dir->ino, 12, ".", 1, TYPE_DIR);
        uint32_t room = dir->count == 0 ? EXT4_DIR_ROOM - 12 : 12;
        at = put(at, dir->parent_ino, room, "..", 2, TYPE_DIR);
        fill_leaf(dir, out, at, 0, dir->count);
    } else if (number == 0) {
        fill_root(dir, out);
    } else if (number <= dir->nodes) {
        fill_node(dir, out, number - 1);
    } else {
        uint32_t leaf = number - 1 - dir->nodes;
        fill_leaf(dir, out, out, dir->cuts[leaf], dir->cuts[leaf + 1]);
    }
}
