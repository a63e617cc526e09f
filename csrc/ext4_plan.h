/* The plan of a file system: where everything goes, before the first byte is written.
 *
 * Blocks are given out upwards without gaps, in this order: journal, directories, long symlinks,
 * blocks of extended attributes, regular files. So a block below `data_end` is in use, one above
 * is not, unless it belongs to a group's prefix.
 */
#ifndef SS_EXT4_PLAN_H
#define SS_EXT4_PLAN_H

#include "ext4_dir.h"
#include "ext4_extent.h"
#include "ext4_layout.h"
#include "ext4_tree.h"

/* A file whose object has holes: its spans are spans[first … first + count). */
struct ss_sparse {
    uint32_t inode, first, count;
};

struct ss_plan {
    const struct ss_tree *tree;
    const struct ss_ext4_params *params;
    const struct ss_ext4_source *source;
    struct ss_ext4_report *report;
    struct ss_layout layout;
    struct ss_facts facts;
    uint32_t seed, hash_seed[4];
    uint64_t data_end, free_blocks, data_blocks;
    uint32_t free_inodes;
    struct ss_extents journal;
    struct ss_extents scratch, table; /* of the data at hand; of the inode at hand */
    struct ext4_desc *descs;            /* one a group, checksums included */
    struct ss_sparse *sparse;
    struct ss_span *spans;
    uint32_t sparse_count, sparse_room, span_count, span_room;
    struct ss_name *names; /* of whichever directory was asked for last */
    uint32_t names_room;
};

/* Zero `plan` and set its first four members before. On failure too it is freed by
 * ss_plan_free. Errors: see ext4.h; the report says about what. */
int ss_plan_make(struct ss_plan *plan);
void ss_plan_free(struct ss_plan *plan);

/* ext4's number of the tree's inode `index`; the index of number `ino` (UINT32_MAX: none). */
uint32_t ss_plan_ino(uint32_t index);
uint32_t ss_plan_index(const struct ss_plan *plan, uint32_t ino);
/* Where the data of a file, directory or long symlink lie. */
int ss_plan_extents(const struct ss_plan *plan, uint32_t index, struct ss_extents *out);
/* The names of a directory, laid out; free with ss_dir_free. `names` stays the plan's. */
int ss_plan_dir(struct ss_plan *plan, uint32_t index, struct ss_dir *dir);

/* Block and inode bitmap of a group, 4 KiB. */
void ss_plan_block_bitmap(const struct ss_plan *plan, uint32_t group, uint8_t *out);
void ss_plan_inode_bitmap(const struct ss_plan *plan, uint32_t group, uint8_t *out);
/* Fills plan->descs and the counts of what is free. */
int ss_plan_groups(struct ss_plan *plan);
/* Inodes of a group from its first to its last in use. */
uint32_t ss_plan_table_used(const struct ss_plan *plan, uint32_t group);

/* One inode as it stands in the table, checksum included; a number not in use gives zeros. */
int ss_plan_inode(struct ss_plan *plan, uint32_t ino, struct ext4_inode *out);
/* The super block as it stands in `group`; the journal's. */
void ss_plan_super(const struct ss_plan *plan, uint32_t group, struct ext4_super *out);
void ss_plan_journal_super(const struct ss_plan *plan, uint8_t *out);

/* Sets report->what, .inode and returns rc. */
int ss_plan_fail(struct ss_plan *plan, int rc, enum ss_ext4_what what, uint32_t inode);

#endif
