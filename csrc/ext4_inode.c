/* One inode of the table, from the tree and the plan. */
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "ext4_csum.h"
#include "ext4_fields.h"
#include "ext4_plan.h"
#include "ext4_xattr.h"

static void journal_inode(const struct ss_plan *plan, struct ext4_inode *out)
{
    ss_inode_owner(out, S_IFREG | 0600, 0, 0);
    ss_inode_times(out, plan->params->time, 0);
    ss_inode_sizes(out, (uint64_t)plan->layout.journal_blocks * EXT4_BLOCK,
                   ss_extents_blocks(&plan->journal));
    ss_extents_root(&plan->journal, out);
    out->links_count = 1;
}

/* Devices: the 8 + 8 bit form in word 0 where it is enough, else the 12 + 20 bit form in word 1. */
static void device(struct ext4_inode *out, uint64_t rdev)
{
    uint32_t high = major((dev_t)rdev), low = minor((dev_t)rdev);
    if (high < 256 && low < 256)
        out->block[0] = high << 8 | low;
    else
        out->block[1] = (low & 0xFF) | (high & 0xFFF) << 8 | (low & 0xFFF00) << 12;
}

static int tree_inode(struct ss_plan *plan, uint32_t index, struct ext4_inode *out)
{
    const struct ss_inode *inode = &plan->tree->inodes[index];
    uint32_t type = ss_tree_type(inode);
    uint64_t blocks = 0, size = 0;
    int rc;

    ss_inode_owner(out, inode->mode, inode->uid, inode->gid);
    if ((type == S_IFDIR || type == S_IFLNK) && (inode->flags & SS_INODE_HAS_MTIME) == 0)
        ss_inode_times(out, plan->params->time, 0);
    else
        ss_inode_times(out, inode->mtime_sec, (uint32_t)inode->mtime_nsec);
    out->links_count = plan->facts.links[index];
    if (type == S_IFDIR || type == S_IFREG || type == S_IFLNK) {
        if ((rc = ss_plan_extents(plan, index, &plan->table)) < 0)
            return ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, index);
        blocks = ss_extents_blocks(&plan->table);
        if (type == S_IFLNK)
            size = inode->data_len;
        else if (type == S_IFREG)
            size = ss_tree_size(inode);
        else
            size = (uint64_t)plan->facts.blocks[index] * EXT4_BLOCK;
        if (type == S_IFLNK && blocks == 0)
            memcpy(out->block, plan->tree->blob + inode->data_off, inode->data_len);
        else
            ss_extents_root(&plan->table, out);
        if (type == S_IFDIR && plan->facts.blocks[index] > 1)
            out->flags |= EXT4_INDEX_FL;
    } else if (type == S_IFCHR || type == S_IFBLK) {
        device(out, inode->rdev);
    }
    if (inode->xattr_len > 0) {
        uint8_t block[EXT4_BLOCK];
        rc = ss_xattrs_encode(plan->tree->blob + inode->xattr_off, inode->xattr_len, out->xattrs,
                              block);
        if (rc < 0)
            return ss_plan_fail(plan, rc, SS_EXT4_XATTRS, index);
        if (rc > 0) {
            out->file_acl_lo = plan->facts.extra[index];
            blocks++;
        }
    }
    ss_inode_sizes(out, size, blocks);
    return 0;
}

int ss_plan_inode(struct ss_plan *plan, uint32_t ino, struct ext4_inode *out)
{
    uint32_t index = ss_plan_index(plan, ino);
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (ino == EXT4_JOURNAL_INO)
        journal_inode(plan, out);
    else if (index == UINT32_MAX || plan->facts.links[index] == 0)
        return 0;
    else
        rc = tree_inode(plan, index, out);
    ss_ext4_inode_csum(out, plan->seed, ino);
    return rc;
}
