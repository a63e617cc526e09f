/* Images' file-system trees between gob and the packed tables of tree.h, without an object per
 * inode: upstream's FileSystem, its InodeTable of interface values, and its inodes of five kinds.
 *
 * Fields of ours that others skip: Xattrs (string to bytes) on every inode; MtimeSeconds and
 * MtimeNanoSeconds on directories and symlinks.
 */
#ifndef SS_GOB_TREE_H
#define SS_GOB_TREE_H

#include "gob.h"
#include "tree.h"
#include "tree_check.h"

#include <sys/stat.h>

enum gob_tree_kind {
    GOB_TREE_DIRECTORY,
    GOB_TREE_REGULAR,
    GOB_TREE_COMPUTED,
    GOB_TREE_SYMLINK,
    GOB_TREE_SPECIAL,
    GOB_TREE_KINDS
};

/* The names under which the kinds travel, such as "*filesystem.RegularInode". */
static const char *const gob_tree_names[GOB_TREE_KINDS] = {
    "*filesystem.DirectoryInode", "*filesystem.RegularInode", "*filesystem.ComputedRegularInode",
    "*filesystem.SymlinkInode",   "*filesystem.SpecialInode",
};

struct gob_tree {
    struct gob_buffer inodes;  /* struct ss_inode, root first, then by number */
    struct gob_buffer entries; /* struct ss_entry */
    struct gob_buffer blob;
    struct gob_buffer numbers; /* while reading: uint64_t, an entry's inode number */
    uint64_t num_regular_inodes, total_data_bytes, directory_count;
    struct ss_tree_problem problem; /* set with GOB_E_TREE */
    uint64_t problem_number;        /* the inode number the problem is about */
};

/* Reads one FileSystem value (no definitions inside), sorts its inodes and resolves its entries;
 * the tables are then ready for ss_tree_finish. With `drop` what was read is dropped (gob_drop) as
 * it goes: the input must be the caller's own, and is no use afterwards. The caller frees the tree,
 * also after an error. */
int gob_tree_read(const struct gob_types *types, uint32_t type, struct gob_cursor *in,
                  uint64_t max_inodes, int drop, struct gob_tree *tree);
void gob_tree_free(struct gob_tree *tree);

/* Its second half: the inodes as read, root first, are sorted by number, and the entries' numbers
 * become indexes. 0, GOB_E_MEMORY or GOB_E_TREE. */
int gob_tree_link(struct gob_tree *tree);
/* Notes what is wrong with a tree; GOB_E_TREE. */
int gob_tree_fault(struct gob_tree *tree, enum ss_tree_fault fault, uint64_t number,
                   uint32_t entry);

/* How one kind of inode is announced. */
struct gob_tree_announcement {
    int64_t id;           /* its type id */
    const uint8_t *first; /* the definition that interrupts the message, or NULL: sent already */
    size_t first_len;
    const uint8_t *rest;  /* further definitions, each a whole message */
    size_t rest_len;
};

/* The kind of an inode. */
static inline enum gob_tree_kind gob_tree_kind_of(const struct ss_inode *inode)
{
    switch (inode->mode & S_IFMT) {
    case S_IFDIR:
        return GOB_TREE_DIRECTORY;
    case S_IFLNK:
        return GOB_TREE_SYMLINK;
    case S_IFREG:
        return inode->flags & SS_INODE_COMPUTED ? GOB_TREE_COMPUTED : GOB_TREE_REGULAR;
    default:
        return GOB_TREE_SPECIAL;
    }
}

/* Writes the fields of a FileSystem, from inodes in order of their numbers, to the end of message;
 * where a definition interrupts it, the message so far goes to done and starts anew. */
int gob_tree_write(const struct ss_inode *inodes, uint32_t inode_count,
                   const struct ss_entry *entries, const uint8_t *blob,
                   uint64_t num_regular_inodes, uint64_t total_data_bytes,
                   uint64_t directory_count, struct gob_tree_announcement kinds[GOB_TREE_KINDS],
                   struct gob_buffer *message, struct gob_buffer *done);

#endif
