/* Writes an ext4 file system from a packed tree (tree.h) and object files, in one pass.
 *
 * The layout is planned first: every block's place and every checksum's input is known before the
 * first byte is written; then the file is written from its start to its end, in large writes.
 * Unused parts are never written, so they stay holes of a fresh file.
 *
 * The tree comes from outside: everything in it is checked. Memory: about 18 bytes an inode, plus
 * 16 bytes an entry of the largest directory, plus 64 bytes a group (128 MiB), plus 5 MiB.
 * Every function that can fail returns a negative errno; `report` then says about what.
 */
#ifndef SS_EXT4_H
#define SS_EXT4_H

#include <stdbool.h>
#include <stdint.h>

#include "tree.h"

struct ss_tree {
    const struct ss_inode *inodes;
    const struct ss_entry *entries;
    const uint8_t *blob;
    uint32_t inode_count, entry_count;
    uint64_t blob_length; /* bytes */
};

/* What an error is about: `inode` is an index into the tree where that makes sense. */
enum ss_ext4_what {
    SS_EXT4_OK,
    SS_EXT4_MEMORY,          /* -ENOMEM */
    SS_EXT4_TREE,            /* -EINVAL: the tree contradicts itself; text in `detail` */
    SS_EXT4_XATTRS,          /* -E2BIG: extended attributes of `inode` do not fit in a block */
    SS_EXT4_BLOCKS,          /* -ENOSPC: `wanted` blocks of 4 KiB, `have` are there */
    SS_EXT4_INODES,          /* -ENOSPC: `wanted` inodes, `have` is the most for this size */
    SS_EXT4_SIZE,            /* -EINVAL: a size no such file system can have */
    SS_EXT4_OBJECT_OPEN,     /* errno of opening the object of `inode` */
    SS_EXT4_OBJECT_READ,     /* errno of reading it */
    SS_EXT4_OBJECT_SHORT,    /* -EBADMSG: it ends before `wanted` bytes, after `have` */
    SS_EXT4_OBJECT_CORRUPT,  /* -EBADMSG: its BLAKE3 is another */
    SS_EXT4_WRITE            /* errno of writing the file system */
};

struct ss_ext4_report {
    enum ss_ext4_what what;
    uint32_t inode;
    uint64_t wanted, have;
    const char *detail; /* static text, or NULL */
    /* filled on success */
    uint64_t blocks, free_blocks, written; /* 4 KiB blocks, 4 KiB blocks, bytes */
    uint32_t inodes, free_inodes, groups, journal_blocks;
    uint64_t plan_ns, write_ns;
};

struct ss_ext4_params {
    uint64_t size;    /* bytes of the file system, rounded down to blocks; 8 MiB … 16 TiB - 4 KiB */
    uint8_t uuid[16]; /* also the seed of every checksum and of the directories' hash */
    char label[16];   /* padded with NUL */
    int64_t time;     /* seconds: creation, and directories and symlinks without an mtime */
    uint32_t bytes_per_inode; /* 0: 8192 */
    uint32_t reserved_percent;
};

/* What is known of an object. */
struct ss_ext4_object {
    uint8_t check[32]; /* BLAKE3, or a sum as quick_sum.h makes them */
    bool quick;
    uint64_t pack;   /* the number of the file it lies in with others, 0: one of its own */
    uint64_t offset; /* of its first byte in that */
};

/* Where the bytes of regular files come from. */
struct ss_ext4_source {
    void *context;
    /* A descriptor, or a negative errno. `object` is NULL where nothing is known. That of a pack stays
     * the context's and good until the next call, any other is read from its byte 0, then closed. */
    int (*open)(void *context, uint32_t inode, const uint8_t hash[SS_HASH_SIZE],
                const struct ss_ext4_object *object);
    /* What is known of the objects of `count` inodes; NULL: nothing is checked. */
    int (*facts)(void *context, const uint32_t *inodes, uint32_t count,
                 struct ss_ext4_object *objects);
};

/* Where objects are stored: <2 hex>/<2 hex>/<124 hex> below a directory, or flat, or .packs/<number>.
 * To begin with all but the directory is zero. */
struct ss_ext4_objects {
    int directory;   /* its descriptor */
    unsigned levels; /* 1: flat, <2 hex>/<126 hex>; 2; the other is tried too, and remembered */
    uint64_t pack;   /* whose descriptor is kept; 0: none */
    int pack_fd;
};

/* Opens stored objects; `context` is a pointer to a struct ss_ext4_objects. */
int ss_ext4_open_stored(void *context, uint32_t inode, const uint8_t hash[SS_HASH_SIZE],
                        const struct ss_ext4_object *object);
/* Closes what is kept open. */
void ss_ext4_close_stored(struct ss_ext4_objects *objects);

/* `fd` is a fresh file, at least `offset` + size bytes long (holes read as zeros). */
int ss_ext4_write(int fd, uint64_t offset, const struct ss_tree *tree,
                  const struct ss_ext4_params *params, const struct ss_ext4_source *source,
                  struct ss_ext4_report *report);

#endif
