/* The editor's paths: walked inside the file system, symlinks followed as chroot would. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext4_edit.h"
#include "ext4_edit_block.h"
#include "ext4_fields.h"

enum { MAX_PATH = 4096, MAX_SYMLINKS = 40, TYPE_REG = 1, FAST_SYMLINK = 60 };

/* Where a path leads: the directory, the last name in it, and its inode (0: there is none). */
struct place {
    uint32_t dir, ino, length;
    uint8_t name[255];
    char rest[2 * MAX_PATH]; /* still to be walked */
    unsigned symlinks;
};

/* Reads a symlink's target into `out` (MAX_PATH bytes, NUL at the end). */
static int read_symlink(struct ss_edit *edit, uint32_t ino, const struct ext4_inode *inode,
                        char *out)
{
    uint64_t size = ss_edit_size(inode);
    struct ss_extents extents = {0};
    uint8_t *block;
    int rc;

    if (size == 0 || size >= MAX_PATH)
        return -EUCLEAN;
    if ((inode->flags & EXT4_EXTENTS_FL) == 0) {
        if (size >= FAST_SYMLINK)
            return -EUCLEAN;
        memcpy(out, inode->block, size);
    } else {
        rc = ss_edit_extents(edit, ino, inode, &extents);
        if (rc == 0 && extents.count == 0)
            rc = -EUCLEAN;
        if (rc == 0 && (rc = ss_edit_load(edit, extents.list[0].start, &block)) == 0)
            memcpy(out, block, size);
        ss_extents_free(&extents);
        if (rc < 0)
            return rc;
    }
    out[size] = 0;
    return 0;
}

/* Puts a symlink's target before what is still to be walked. */
static int follow(struct ss_edit *edit, struct place *place, uint32_t ino,
                  const struct ext4_inode *inode)
{
    char target[MAX_PATH + 1];
    int rc;

    if (++place->symlinks > MAX_SYMLINKS)
        return -ELOOP;
    if ((rc = read_symlink(edit, ino, inode, target)) < 0)
        return rc;
    size_t length = strlen(target), rest = strlen(place->rest);
    if (length + 1 + rest + 1 > sizeof place->rest)
        return -ENAMETOOLONG;
    memmove(place->rest + length + 1, place->rest, rest + 1);
    memcpy(place->rest, target, length);
    place->rest[length] = '/';
    if (target[0] == '/')
        place->dir = EXT4_ROOT_INO;
    return 0;
}

/* Takes the next name off `rest`; 0: there is none. */
static int next_name(struct place *place)
{
    const char *from = place->rest;
    while (*from == '/')
        from++;
    size_t length = strcspn(from, "/");
    if (length > sizeof place->name)
        return -ENAMETOOLONG;
    memcpy(place->name, from, length);
    place->length = (uint32_t)length;
    memmove(place->rest, from + length, strlen(from + length) + 1);
    return length > 0;
}

static bool is_last(const struct place *place)
{
    return place->rest[strspn(place->rest, "/")] == 0;
}

static bool is_dot(const struct place *place)
{
    return place->length == 1 && place->name[0] == '.';
}

/* Walks `path`. Directories that lack on the way are made if `make` says so, else -ENOENT. */
static int resolve(struct ss_edit *edit, const char *path, bool make, struct place *place)
{
    int rc;

    if (strlen(path) >= MAX_PATH)
        return -ENAMETOOLONG;
    memset(place, 0, sizeof *place);
    strcpy(place->rest, path);
    place->dir = EXT4_ROOT_INO;
    place->ino = EXT4_ROOT_INO;
    while ((rc = next_name(place)) > 0) {
        struct ext4_inode *inode;
        if (is_dot(place)) {
            place->ino = place->dir;
            continue;
        }
        if ((rc = ss_edit_lookup(edit, place->dir, place->name, place->length, &place->ino)) < 0)
            return rc;
        if (place->ino == 0) {
            if (is_last(place))
                return 0;
            if (!make)
                return -ENOENT;
            if ((rc = ss_edit_add_directory(edit, place->dir, place->name, place->length,
                                            &place->ino)) < 0)
                return rc;
        }
        if ((rc = ss_edit_inode(edit, place->ino, &inode)) < 0)
            return rc;
        if (S_ISLNK(inode->mode)) {
            if ((rc = follow(edit, place, place->ino, inode)) < 0)
                return rc;
            continue;
        }
        if (is_last(place) && !S_ISDIR(inode->mode))
            return 0;
        if (!S_ISDIR(inode->mode))
            return -ENOTDIR;
        if (!is_last(place))
            place->dir = place->ino;
    }
    return rc;
}

int ss_edit_mkdir(struct ss_edit *edit, const char *path)
{
    struct place place;
    struct ext4_inode *inode;
    int rc = resolve(edit, path, true, &place);

    if (rc < 0)
        return rc;
    if (place.ino == 0)
        return ss_edit_add_directory(edit, place.dir, place.name, place.length, &place.ino);
    if ((rc = ss_edit_inode(edit, place.ino, &inode)) < 0)
        return rc;
    return S_ISDIR(inode->mode) ? 0 : -ENOTDIR;
}

static int new_file(struct ss_edit *edit, const uint8_t *data, uint64_t length, uint32_t *ino)
{
    struct ext4_inode *inode;
    struct ss_extents extents = {0};
    int rc = ss_edit_new_inode(edit, S_IFREG | 0644, ino, &inode);

    if (rc < 0)
        return rc;
    inode->links_count = 1;
    rc = ss_edit_allocate(edit, *ino, inode, (length + EXT4_BLOCK - 1) / EXT4_BLOCK, &extents);
    for (uint32_t e = 0; rc == 0 && e < extents.count; e++)
        for (uint32_t i = 0; rc == 0 && i < extents.list[e].length; i++) {
            uint64_t at = ((uint64_t)extents.list[e].logical + i) * EXT4_BLOCK;
            uint8_t *out;
            if ((rc = ss_edit_load_fresh(edit, extents.list[e].start + i, &out)) == 0)
                memcpy(out, data + at, length - at < EXT4_BLOCK ? length - at : EXT4_BLOCK);
        }
    ss_inode_sizes(inode, length, ss_extents_blocks(&extents));
    ss_edit_inode_done(edit, *ino, inode);
    ss_extents_free(&extents);
    return rc;
}

int ss_edit_write(struct ss_edit *edit, const char *path, const uint8_t *data, uint64_t length)
{
    struct place place;
    struct ext4_inode *inode;
    uint32_t ino;
    int rc;

    if (length > (uint64_t)SS_EDIT_MAX_BLOCKS * EXT4_BLOCK)
        return -E2BIG;
    if ((rc = resolve(edit, path, true, &place)) < 0)
        return rc;
    if (place.length == 0)
        return -EISDIR; /* the root itself */
    if (place.ino != 0) {
        if ((rc = ss_edit_inode(edit, place.ino, &inode)) < 0)
            return rc;
        if (S_ISDIR(inode->mode))
            return -EISDIR;
    }
    if ((rc = new_file(edit, data, length, &ino)) < 0)
        return rc;
    if (place.ino == 0)
        return ss_edit_add_name(edit, place.dir, place.name, place.length, ino, TYPE_REG);
    if ((rc = ss_edit_set_name(edit, place.dir, place.name, place.length, ino, TYPE_REG)) < 0)
        return rc;
    return ss_edit_unlink(edit, place.ino);
}

int64_t ss_edit_read(struct ss_edit *edit, const char *path, uint8_t *out, uint64_t room)
{
    struct place place;
    struct ext4_inode *inode;
    struct ss_extents extents = {0};
    int rc = resolve(edit, path, false, &place);

    if (rc < 0)
        return rc;
    if (place.ino == 0)
        return -ENOENT;
    if ((rc = ss_edit_inode(edit, place.ino, &inode)) < 0)
        return rc;
    if (!S_ISREG(inode->mode))
        return -EISDIR;
    uint64_t size = ss_edit_size(inode);
    if (size > room)
        return -EFBIG;
    memset(out, 0, size);
    rc = ss_edit_extents(edit, place.ino, inode, &extents);
    for (uint32_t e = 0; rc == 0 && e < extents.count; e++)
        for (uint32_t i = 0; rc == 0 && i < extents.list[e].length; i++) {
            uint64_t at = ((uint64_t)extents.list[e].logical + i) * EXT4_BLOCK;
            uint8_t *block;
            if (at >= size)
                break;
            if ((rc = ss_edit_load(edit, extents.list[e].start + i, &block)) == 0)
                memcpy(out + at, block, size - at < EXT4_BLOCK ? size - at : EXT4_BLOCK);
        }
    ss_extents_free(&extents);
    return rc < 0 ? rc : (int64_t)size;
}
