/* Checks and sums over the packed tree of tree.h.
 *
 * Whoever fills the tables calls ss_tree_finish once; from then on every offset and index in them
 * may be trusted. Nothing here keeps state; scratch memory is freed before a function returns.
 */
#ifndef SS_TREE_CHECK_H
#define SS_TREE_CHECK_H

#include "tree.h"

enum ss_tree_fault {
    SS_TREE_OK = 0,
    SS_TREE_BAD_MODE,         /* no file type, or names in something that is no directory */
    SS_TREE_BAD_RANGE,        /* an offset beyond the tables */
    SS_TREE_BAD_NAME,         /* empty, too long, with '/' or NUL, "." or ".." */
    SS_TREE_DUPLICATE_NAME,   /* a name twice in a directory */
    SS_TREE_NO_INODE,         /* an entry for an inode that is not there */
    SS_TREE_LINKED_DIRECTORY, /* a directory with two names, or a loop */
    SS_TREE_BAD_TARGET,       /* a symlink to nothing, or longer than 4095 bytes */
    SS_TREE_BAD_TIME,         /* nanoseconds outside 0 … 999999999 */
    SS_TREE_DUPLICATE_INODE   /* a number twice in the inode table */
};

struct ss_tree_problem {
    enum ss_tree_fault fault;
    uint32_t inode; /* index of the inode, or of the directory the entry is in */
    uint32_t entry; /* index into entries, for faults of names and entries */
};

/* Checks a tree and drops, in place, the inodes that no name leads to; the counts are updated.
 * Entries come out in the order of their directories. 0, -ENOMEM, or -EINVAL with *problem set
 * (the tables are then unchanged). */
int ss_tree_finish(struct ss_inode *inodes, uint32_t *inode_count, struct ss_entry *entries,
                   uint32_t *entry_count, const uint8_t *blob, uint64_t blob_len,
                   struct ss_tree_problem *problem);

/* Estimated bytes on disk: directories 4096, files rounded up to 4096, symlinks 64, root 0. */
uint64_t ss_tree_usage(const struct ss_inode *inodes, uint32_t inode_count);

/* Regular files, their bytes, and directories with the root; computed files count for none. */
void ss_tree_totals(const struct ss_inode *inodes, uint32_t inode_count, uint64_t *regular,
                    uint64_t *bytes, uint64_t *directories);

#endif
