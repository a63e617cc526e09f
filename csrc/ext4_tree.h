/* Checks a packed tree from outside, and finds what a file system needs to know beyond it. */
#ifndef SS_EXT4_TREE_H
#define SS_EXT4_TREE_H

#include <stdbool.h>

#include "ext4.h"

/* Arrays of one element an inode; the caller frees them with ss_facts_free. */
struct ss_facts {
    uint32_t *parent; /* of a directory: index of the directory that holds it */
    uint16_t *links;  /* ext4's link count; 0: nothing refers to this inode, it is left out */
    uint32_t *start;  /* first data block; filled by the plan */
    uint32_t *extra;  /* block of extended attributes, or 0; filled by the plan */
    uint32_t *blocks; /* data blocks of a directory; filled by the plan */
    uint64_t xattr_blocks, used_inodes;
};

/* -EINVAL with report->what SS_EXT4_TREE, the inode and a text; -ENOMEM. After it every offset,
 * index, length and name that the inodes in use need is known to be right, names in a directory
 * are distinct, every directory hangs below the root exactly once. */
int ss_tree_check(const struct ss_tree *tree, struct ss_facts *facts,
                  struct ss_ext4_report *report);
void ss_facts_free(struct ss_facts *facts);

/* S_IFMT of an inode; the type byte of a directory entry for it (0: no such type). */
uint32_t ss_tree_type(const struct ss_inode *inode);
uint8_t ss_tree_entry_type(const struct ss_inode *inode);
/* Bytes of content that a regular file has on disk: 0 for a computed one. */
uint64_t ss_tree_size(const struct ss_inode *inode);

#endif
