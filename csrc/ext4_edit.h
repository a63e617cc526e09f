/* Changes to a finished ext4 file system, made in memory: what a VM's layer holds over its brick.
 *
 * The brick itself is only read. Every block that a change touches is kept here, and in the end
 * handed out in ascending order. Only what ss_ext4_write makes can be edited (the same features,
 * clean); the bytes are checked all the same, for they come from a file.
 *
 * Errors: -EUCLEAN the file system is damaged, -EOPNOTSUPP it is of another shape, -ENOSPC no
 * free block or inode (see ss_edit_full), -E2BIG more than the edit may hold, and those of a path:
 * -ENOTDIR, -EISDIR, -ELOOP, -ENAMETOOLONG, -EINVAL. After an error the edit is to be thrown away.
 */
#ifndef SS_EXT4_EDIT_H
#define SS_EXT4_EDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ext4_format.h"

enum { SS_EDIT_NO_CHECKSUMS = 1 }; /* read damaged records too; for fuzzing */
#define SS_EDIT_MAX_BLOCKS 65536u  /* 256 MiB held at a time */

struct ss_edit_block {
    uint64_t number;
    uint8_t *data; /* 4 KiB, or NULL: an empty slot */
    bool dirty;
};

struct ss_edit {
    int fd;
    uint64_t offset; /* of the file system in the file, bytes */
    uint32_t flags;
    int64_t time; /* seconds: of everything made */
    struct ext4_super super;
    uint64_t blocks;
    uint32_t groups;
    struct ss_edit_block *table; /* open addressing, a power of two of slots */
    uint32_t slots, held;
    uint32_t inode_hint, block_hint; /* groups that had room last */
    bool no_inodes;                  /* after -ENOSPC: it was inodes that lacked */
};

/* `length`: bytes from `offset` to the end of the file. `edit` needs no preparation. */
int ss_edit_open(struct ss_edit *edit, int fd, uint64_t offset, uint64_t length, int64_t time,
                 uint32_t flags);
void ss_edit_close(struct ss_edit *edit);

/* A new label (padded with NUL) and UUID, in all copies of the super block. */
int ss_edit_identity(struct ss_edit *edit, const char label[16], const uint8_t uuid[16]);
/* Makes a directory (0755 root:root) and those above it; one that is there stays as it is.
 * Symlinks on the way are followed as if the file system were the root. */
int ss_edit_mkdir(struct ss_edit *edit, const char *path);
/* A regular file (0644 root:root) in place of what was there; directories above it are made. */
int ss_edit_write(struct ss_edit *edit, const char *path, const uint8_t *data, uint64_t length);
/* Content of a regular file, at most `room` bytes: its size, or -ENOENT, -EISDIR, -EFBIG. */
int64_t ss_edit_read(struct ss_edit *edit, const char *path, uint8_t *out, uint64_t room);

/* Brings the super block up to date; then `*list` is the changed blocks, ascending, to be freed by
 * the caller (the data stay the edit's). */
int ss_edit_changes(struct ss_edit *edit, struct ss_edit_block **list, uint32_t *count);

#endif
