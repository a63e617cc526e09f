/* The editor's inodes: where their data lie, new data, and letting go of old. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext4_csum.h"
#include "ext4_edit_block.h"
#include "ext4_fields.h"

enum { MAX_DEPTH = 5, MAX_TREE_BLOCKS = 16384 };

void ss_edit_inode_done(struct ss_edit *edit, uint32_t ino, struct ext4_inode *inode)
{
    ss_ext4_inode_csum(inode, edit->super.checksum_seed, ino);
}

uint64_t ss_edit_size(const struct ext4_inode *inode)
{
    return inode->size_lo | (uint64_t)inode->size_hi << 32;
}

int ss_edit_new_inode(struct ss_edit *edit, uint32_t mode, uint32_t *ino,
                      struct ext4_inode **inode)
{
    int rc = ss_edit_take_inode(edit, S_ISDIR(mode), ino);
    if (rc < 0 || (rc = ss_edit_clear_inode(edit, *ino, inode)) < 0)
        return rc;
    ss_inode_owner(*inode, mode, 0, 0);
    ss_inode_times(*inode, edit->time, 0);
    return 0;
}

/* One node of an extent tree: `node` has `room` bytes. */
static int read_node(struct ss_edit *edit, const uint8_t *node, size_t room, unsigned depth,
                     uint32_t inode_seed, uint64_t *logical, struct ss_extents *out)
{
    struct ext4_extent_header header;
    int rc;

    memcpy(&header, node, sizeof header);
    if (header.magic != EXT4_EXTENT_MAGIC || header.depth != depth ||
        header.entries > header.max || sizeof header + header.max * 12u > room)
        return -EUCLEAN;
    for (uint32_t i = 0; i < header.entries; i++) {
        const uint8_t *at = node + sizeof header + i * 12u;
        if (depth == 0) {
            struct ext4_extent extent;
            memcpy(&extent, at, sizeof extent);
            uint64_t start = extent.start_lo | (uint64_t)extent.start_hi << 32;
            if (extent.len == 0 || extent.len > EXT4_EXTENT_MAX_LEN || extent.block < *logical ||
                start >= edit->blocks || extent.len > edit->blocks - start)
                return -EUCLEAN; /* also what is preallocated: nothing here makes that */
            *logical = (uint64_t)extent.block + extent.len;
            if ((rc = ss_extents_add(out, extent.block, start, extent.len)) < 0)
                return rc;
            continue;
        }
        struct ext4_extent_idx idx;
        uint8_t *child;
        memcpy(&idx, at, sizeof idx);
        uint64_t number = idx.leaf_lo | (uint64_t)idx.leaf_hi << 32;
        if (out->tree_count >= MAX_TREE_BLOCKS)
            return -EUCLEAN;
        if (out->tree_count == out->tree_room) {
            uint32_t more = out->tree_room == 0 ? 64 : out->tree_room * 2;
            uint64_t *tree = realloc(out->tree, more * sizeof *tree);
            if (tree == NULL)
                return -ENOMEM;
            out->tree = tree;
            out->tree_room = more;
        }
        out->tree[out->tree_count++] = number;
        if ((rc = ss_edit_load(edit, number, &child)) < 0)
            return rc;
        if ((edit->flags & SS_EDIT_NO_CHECKSUMS) == 0 && !ss_ext4_extent_csum_ok(child, inode_seed))
            return -EUCLEAN;
        if ((rc = read_node(edit, child, EXT4_BLOCK - 4, depth - 1, inode_seed, logical, out)) < 0)
            return rc;
    }
    return 0;
}

int ss_edit_extents(struct ss_edit *edit, uint32_t ino, const struct ext4_inode *inode,
                    struct ss_extents *extents)
{
    uint8_t root[sizeof inode->block];
    struct ext4_extent_header header;
    uint64_t logical = 0;

    ss_extents_clear(extents);
    if ((inode->flags & EXT4_EXTENTS_FL) == 0)
        return 0; /* a fast symlink, a device, a fifo */
    memcpy(root, inode->block, sizeof root);
    memcpy(&header, root, sizeof header);
    if (header.depth > MAX_DEPTH)
        return -EUCLEAN;
    extents->depth = header.depth;
    return read_node(edit, root, sizeof root, header.depth,
                     ss_ext4_inode_seed(edit->super.checksum_seed, ino, inode->generation),
                     &logical, extents);
}

int ss_edit_allocate(struct ss_edit *edit, uint32_t ino, struct ext4_inode *inode,
                     uint64_t blocks, struct ss_extents *extents)
{
    uint64_t done = 0, start, got;
    int rc;

    ss_extents_clear(extents);
    while (done < blocks) {
        if ((rc = ss_edit_take_blocks(edit, blocks - done, &start, &got)) < 0 ||
            (rc = ss_extents_add(extents, (uint32_t)done, start, got)) < 0)
            return rc;
        done += got;
    }
    if ((rc = ss_extents_tree(extents)) < 0)
        return rc;
    for (uint32_t i = 0; i < extents->tree_count; i++)
        if ((rc = ss_edit_take_blocks(edit, 1, &extents->tree[i], &got)) < 0)
            return rc;
    for (uint32_t i = 0; i < extents->tree_count; i++) {
        uint8_t *out;
        if ((rc = ss_edit_load_fresh(edit, extents->tree[i], &out)) < 0)
            return rc;
        ss_extents_block(extents, i, ss_ext4_inode_seed(edit->super.checksum_seed, ino,
                                                        inode->generation), out);
    }
    memset(inode->block, 0, sizeof inode->block);
    ss_extents_root(extents, inode);
    return 0;
}

int ss_edit_release(struct ss_edit *edit, const struct ss_extents *extents)
{
    int rc;
    for (uint32_t i = 0; i < extents->count; i++)
        if ((rc = ss_edit_free_blocks(edit, extents->list[i].start, extents->list[i].length)) < 0)
            return rc;
    for (uint32_t i = 0; i < extents->tree_count; i++)
        if ((rc = ss_edit_free_blocks(edit, extents->tree[i], 1)) < 0)
            return rc;
    return 0;
}

/* The block of extended attributes: shared ones have one user less. */
static int release_xattrs(struct ss_edit *edit, const struct ext4_inode *inode)
{
    uint64_t number = inode->file_acl_lo | (uint64_t)inode->file_acl_hi << 32;
    struct ext4_xattr_header header;
    uint8_t *block;
    int rc;

    if (number == 0)
        return 0;
    if ((rc = ss_edit_load(edit, number, &block)) < 0)
        return rc;
    memcpy(&header, block, sizeof header);
    if (header.magic != EXT4_XATTR_MAGIC || header.refcount == 0)
        return -EUCLEAN;
    if (header.refcount == 1)
        return ss_edit_free_blocks(edit, number, 1);
    if ((rc = ss_edit_load_dirty(edit, number, &block)) < 0)
        return rc;
    header.refcount--;
    memcpy(block, &header, sizeof header);
    ss_ext4_xattr_csum(block, edit->super.checksum_seed, number);
    return 0;
}

int ss_edit_unlink(struct ss_edit *edit, uint32_t ino)
{
    struct ext4_inode *inode;
    struct ss_extents extents = {0};
    int rc = ss_edit_inode_dirty(edit, ino, &inode);

    if (rc < 0)
        return rc;
    if (inode->links_count > 1) {
        inode->links_count--;
        ss_edit_inode_done(edit, ino, inode);
        return 0;
    }
    if ((rc = ss_edit_extents(edit, ino, inode, &extents)) == 0 &&
        (rc = ss_edit_release(edit, &extents)) == 0 &&
        (rc = release_xattrs(edit, inode)) == 0 &&
        (rc = ss_edit_clear_inode(edit, ino, &inode)) == 0)
        rc = ss_edit_free_inode(edit, ino);
    ss_extents_free(&extents);
    return rc;
}
