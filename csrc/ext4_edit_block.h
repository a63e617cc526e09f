/* Inside the editor: blocks, groups, inodes, extents, directories. Errors as in ext4_edit.h. */
#ifndef SS_EXT4_EDIT_BLOCK_H
#define SS_EXT4_EDIT_BLOCK_H

#include "ext4_edit.h"
#include "ext4_extent.h"

/* --- ext4_edit_block.c: blocks by number, and what is free --- */

/* The block's content; it stays where it is until the edit is closed. `*_dirty`: to be changed;
 * `*_fresh`: zeros, to be filled. */
int ss_edit_load(struct ss_edit *edit, uint64_t number, uint8_t **data);
int ss_edit_load_dirty(struct ss_edit *edit, uint64_t number, uint8_t **data);
int ss_edit_load_fresh(struct ss_edit *edit, uint64_t number, uint8_t **data);

/* Up to `want` free blocks in a row, taken. */
int ss_edit_take_blocks(struct ss_edit *edit, uint64_t want, uint64_t *start, uint64_t *got);
int ss_edit_free_blocks(struct ss_edit *edit, uint64_t start, uint64_t count);
int ss_edit_take_inode(struct ss_edit *edit, bool directory, uint32_t *ino);
int ss_edit_free_inode(struct ss_edit *edit, uint32_t ino);

/* An inode in use, its checksum checked; points into a held block. */
int ss_edit_inode(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode);
/* The same, to be changed; ss_edit_inode_done brings its checksum up to date. */
int ss_edit_inode_dirty(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode);
/* The record of any inode, cleared. */
int ss_edit_clear_inode(struct ss_edit *edit, uint32_t ino, struct ext4_inode **inode);

/* --- ext4_edit_inode.c: inodes and their data --- */

void ss_edit_inode_done(struct ss_edit *edit, uint32_t ino, struct ext4_inode *inode);
/* A new inode, cleared but for owner 0:0, mode and times; call ss_edit_inode_done. */
int ss_edit_new_inode(struct ss_edit *edit, uint32_t mode, uint32_t *ino,
                      struct ext4_inode **inode);
uint64_t ss_edit_size(const struct ext4_inode *inode);
/* All extents and tree blocks of an inode. `extents` is cleared first, freed by the caller. */
int ss_edit_extents(struct ss_edit *edit, uint32_t ino, const struct ext4_inode *inode,
                    struct ss_extents *extents);
/* Room for `blocks` blocks of new content; `extents` says where, the inode's root is filled. */
int ss_edit_allocate(struct ss_edit *edit, uint32_t ino, struct ext4_inode *inode,
                     uint64_t blocks, struct ss_extents *extents);
/* Frees an inode's blocks, tree and data. */
int ss_edit_release(struct ss_edit *edit, const struct ss_extents *extents);
/* One name less; the last one frees the inode and all it has. */
int ss_edit_unlink(struct ss_edit *edit, uint32_t ino);

/* --- ext4_edit_dir.c: names --- */

/* The inode of a name in a directory: 0 when there is none. */
int ss_edit_lookup(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                   uint32_t *ino);
/* Adds a name that is not there. */
int ss_edit_add_name(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                     uint32_t ino, uint8_t type);
/* Lets a name that is there mean another inode. */
int ss_edit_set_name(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                     uint32_t ino, uint8_t type);
/* Makes an empty directory under a name that is not there. */
int ss_edit_add_directory(struct ss_edit *edit, uint32_t dir, const uint8_t *name,
                          uint32_t length, uint32_t *ino);

#endif
