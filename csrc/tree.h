/* A file-system tree in packed tables: what an image decodes to, what the ext4 writer reads.
 *
 * Three byte arrays, little-endian, no pointers:
 *   inodes   array of struct ss_inode; record 0 is the root directory (number 0)
 *   entries  array of struct ss_entry; one directory's entries are contiguous, in wire order
 *   blob     names, symlink targets, sources of computed files, xattrs; offsets are bytes
 * Sizes: an inode costs 144 bytes, an entry 12 bytes plus its name. Every offset and index comes
 * from outside and is checked against the arrays' lengths by whoever reads them.
 */
#ifndef SS_TREE_H
#define SS_TREE_H

#include <stdint.h>

#define SS_HASH_SIZE 64 /* SHA-512 */

enum ss_inode_flags {
    SS_INODE_HAS_MTIME = 1,      /* a directory or symlink whose mtime is known */
    SS_INODE_COMPUTED = 2        /* a computed regular file: data_* is its source */
};

struct ss_inode {
    uint64_t number;      /* key in the image's inode table; 0 for the root directory */
    uint64_t size;        /* regular: bytes of content; else 0 */
    int64_t mtime_sec;    /* seconds since the epoch */
    int32_t mtime_nsec;   /* 0 … 999999999 */
    uint32_t mode;        /* st_mode, with its type bits */
    uint32_t uid;
    uint32_t gid;
    uint64_t rdev;        /* device number as in st_rdev (gnu_dev_makedev encoding) */
    uint32_t data_off;    /* symlink target or computed source, in blob */
    uint32_t data_len;
    uint32_t first_entry; /* directory: index into entries */
    uint32_t entry_count;
    uint32_t xattr_off;   /* in blob: repeated u16 name_len, u32 value_len, name, value; by name */
    uint32_t xattr_len;   /* bytes; 0 = none */
    uint32_t flags;       /* enum ss_inode_flags */
    uint32_t reserved;
    uint8_t hash[SS_HASH_SIZE]; /* regular with size > 0: SHA-512 of its content */
};

struct ss_entry {
    uint32_t inode;    /* index into inodes */
    uint32_t name_off; /* in blob */
    uint32_t name_len; /* 1 … 255 bytes, no '/' and no NUL, not "." or ".." */
};

_Static_assert(sizeof(struct ss_inode) == 144, "packed record");
_Static_assert(sizeof(struct ss_entry) == 12, "packed record");

#endif
