/* The one pass over the file: metadata and data as their blocks come up, from the first to the
 * last. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ext4_csum.h"
#include "ext4_files.h"
#include "ext4_plan.h"
#include "ext4_sink.h"
#include "ext4_xattr.h"
#include "object_path.h"

enum { BUFFER = 1 << 20, SMALL_BUFFER = 1 << 17, SMALL_ROOT = 4 << 20 };

struct pass {
    struct ss_plan *plan;
    struct ss_sink sink;
    struct ss_files files;
    uint32_t next_group; /* the first whose prefix has not come up */
};

static int write_failed(struct pass *pass, int rc)
{
    return ss_plan_fail(pass->plan, rc, SS_EXT4_WRITE, 0);
}

static int seek(struct pass *pass, uint64_t block)
{
    int rc = ss_sink_seek(&pass->sink, block * EXT4_BLOCK);
    return rc < 0 ? write_failed(pass, rc) : 0;
}

static uint8_t *next_block(struct pass *pass, int *rc)
{
    uint8_t *block = ss_sink_block(&pass->sink, rc);
    if (block == NULL)
        write_failed(pass, *rc);
    return block;
}

static int write_supers(struct pass *pass, uint32_t group)
{
    struct ss_plan *plan = pass->plan;
    struct ext4_super super;
    uint8_t *out;
    int rc = seek(pass, ss_layout_start(group));

    if (rc < 0 || (out = next_block(pass, &rc)) == NULL)
        return rc;
    ss_plan_super(plan, group, &super);
    memcpy(out + (group == 0 ? EXT4_SUPER_OFFSET : 0), &super, sizeof super);
    for (uint32_t i = 0; i < plan->layout.descriptor_blocks; i++) {
        if ((out = next_block(pass, &rc)) == NULL)
            return rc;
        memcpy(out, plan->descs + (size_t)i * EXT4_DESCS_PER_BLOCK, EXT4_BLOCK);
    }
    return 0;
}

static int write_table(struct pass *pass, uint32_t group)
{
    struct ss_plan *plan = pass->plan;
    uint32_t used = ss_plan_table_used(plan, group);
    uint32_t first = group * plan->layout.inodes_per_group + 1;
    uint8_t *out = NULL;
    int rc = 0;

    if (used > 0 && (rc = seek(pass, ss_layout_inode_table(&plan->layout, group))) < 0)
        return rc;
    for (uint32_t i = 0; i < used; i++) {
        struct ext4_inode inode;
        if (i % EXT4_INODES_PER_BLOCK == 0 && (out = next_block(pass, &rc)) == NULL)
            return rc;
        if ((rc = ss_plan_inode(plan, first + i, &inode)) < 0)
            return rc;
        memcpy(out + i % EXT4_INODES_PER_BLOCK * EXT4_INODE_SIZE, &inode, sizeof inode);
    }
    return 0;
}

/* Bitmaps and inode tables of a flex group; what descriptors call uninitialised stays a hole. */
static int write_flex(struct pass *pass, uint32_t first)
{
    struct ss_plan *plan = pass->plan;
    uint32_t end = first + ss_layout_flex_groups(&plan->layout, first);
    uint8_t *out;
    int rc;

    for (uint32_t group = first; group < end; group++) {
        if ((plan->descs[group].flags & EXT4_BG_BLOCK_UNINIT) != 0)
            continue;
        if ((rc = seek(pass, ss_layout_block_bitmap(&plan->layout, group))) < 0 ||
            (out = next_block(pass, &rc)) == NULL)
            return rc;
        ss_plan_block_bitmap(plan, group, out);
    }
    for (uint32_t group = first; group < end; group++) {
        if ((plan->descs[group].flags & EXT4_BG_INODE_UNINIT) != 0)
            continue;
        if ((rc = seek(pass, ss_layout_inode_bitmap(&plan->layout, group))) < 0 ||
            (out = next_block(pass, &rc)) == NULL)
            return rc;
        ss_plan_inode_bitmap(plan, group, out);
    }
    for (uint32_t group = first; group < end; group++)
        if ((rc = write_table(pass, group)) < 0)
            return rc;
    return 0;
}

/* Writes the prefixes of all groups that begin at or below `block`. */
static int pass_groups(struct pass *pass, uint64_t block)
{
    const struct ss_layout *layout = &pass->plan->layout;
    int rc;
    for (; pass->next_group < layout->groups && ss_layout_start(pass->next_group) <= block;
         pass->next_group++) {
        uint32_t group = pass->next_group;
        if (ss_layout_has_super(group) && (rc = write_supers(pass, group)) < 0)
            return rc;
        if (ss_layout_is_flex_first(layout, group) && (rc = write_flex(pass, group)) < 0)
            return rc;
    }
    return 0;
}

static int go_to(struct pass *pass, uint64_t block)
{
    int rc = pass_groups(pass, block);
    return rc < 0 ? rc : seek(pass, block);
}

static int write_tree_blocks(struct pass *pass, const struct ss_extents *extents, uint32_t ino)
{
    uint32_t inode_seed = ss_ext4_inode_seed(pass->plan->seed, ino, 0);
    for (uint32_t i = 0; i < extents->tree_count; i++) {
        uint8_t *out;
        int rc = go_to(pass, extents->tree[i]);
        if (rc < 0 || (out = next_block(pass, &rc)) == NULL)
            return rc;
        ss_extents_block(extents, i, inode_seed, out);
    }
    return 0;
}

/* Only the journal's first block has content: an empty journal needs no other. */
static int write_journal(struct pass *pass)
{
    const struct ss_extents *extents = &pass->plan->journal;
    uint8_t *out;
    int rc = go_to(pass, extents->list[0].start);
    if (rc < 0 || (out = next_block(pass, &rc)) == NULL)
        return rc;
    ss_plan_journal_super(pass->plan, out);
    return write_tree_blocks(pass, extents, EXT4_JOURNAL_INO);
}

static int write_directory(struct pass *pass, uint32_t index)
{
    struct ss_plan *plan = pass->plan;
    struct ss_dir dir;
    int rc = ss_plan_dir(plan, index, &dir);

    if (rc < 0)
        return rc;
    if ((rc = ss_plan_extents(plan, index, &plan->scratch)) < 0)
        ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, index);
    for (uint32_t e = 0, number = 0; rc == 0 && e < plan->scratch.count; e++) {
        const struct ss_extent *extent = &plan->scratch.list[e];
        rc = go_to(pass, extent->start);
        for (uint32_t i = 0; rc == 0 && i < extent->length; i++, number++) {
            uint8_t *out = next_block(pass, &rc);
            if (out != NULL)
                ss_dir_block(&dir, number, out);
        }
    }
    ss_dir_free(&dir);
    return rc < 0 ? rc : write_tree_blocks(pass, &plan->scratch, ss_plan_ino(index));
}

static int write_symlink(struct pass *pass, uint32_t index)
{
    struct ss_plan *plan = pass->plan;
    const struct ss_inode *inode = &plan->tree->inodes[index];
    uint8_t *out;
    int rc = ss_plan_extents(plan, index, &plan->scratch);

    if (rc < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, index);
    if (plan->scratch.count == 0)
        return 0;
    if ((rc = go_to(pass, plan->scratch.list[0].start)) < 0 ||
        (out = next_block(pass, &rc)) == NULL)
        return rc;
    memcpy(out, plan->tree->blob + inode->data_off, inode->data_len);
    return 0;
}

static int write_xattrs(struct pass *pass, uint32_t index)
{
    struct ss_plan *plan = pass->plan;
    const struct ss_inode *inode = &plan->tree->inodes[index];
    uint8_t area[SS_XATTR_IN_INODE], *out;
    int rc = go_to(pass, plan->facts.extra[index]);

    if (rc < 0 || (out = next_block(pass, &rc)) == NULL)
        return rc;
    rc = ss_xattrs_encode(plan->tree->blob + inode->xattr_off, inode->xattr_len, area, out);
    if (rc < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_XATTRS, index);
    ss_ext4_xattr_csum(out, plan->seed, plan->facts.extra[index]);
    return 0;
}

static int write_file(struct pass *pass, uint32_t index)
{
    struct ss_plan *plan = pass->plan;
    int rc;

    if (ss_tree_size(&plan->tree->inodes[index]) == 0)
        return 0;
    if ((rc = ss_plan_extents(plan, index, &plan->scratch)) < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, index);
    if ((rc = ss_files_begin(&pass->files, plan, index)) < 0)
        return rc;
    for (uint32_t e = 0; rc == 0 && e < plan->scratch.count; e++) {
        const struct ss_extent *extent = &plan->scratch.list[e];
        rc = go_to(pass, extent->start);
        if (rc == 0)
            rc = ss_files_copy(&pass->files, plan, &pass->sink, extent->logical, extent->length);
    }
    rc = ss_files_end(&pass->files, plan, rc);
    return rc < 0 ? rc : write_tree_blocks(pass, &plan->scratch, ss_plan_ino(index));
}

static int write_all(struct pass *pass)
{
    struct ss_plan *plan = pass->plan;
    const uint32_t count = plan->tree->inode_count;
    int rc = write_journal(pass);

    for (unsigned kind = 0; kind < 4; kind++)
        for (uint32_t i = 0; rc == 0 && i < count; i++) {
            if (plan->facts.links[i] == 0)
                continue;
            uint32_t type = ss_tree_type(&plan->tree->inodes[i]);
            if (kind == 0 && type == S_IFDIR)
                rc = write_directory(pass, i);
            else if (kind == 1 && type == S_IFLNK)
                rc = write_symlink(pass, i);
            else if (kind == 2 && plan->facts.extra[i] > 0)
                rc = write_xattrs(pass, i);
            else if (kind == 3 && type == S_IFREG)
                rc = write_file(pass, i);
        }
    if (rc < 0 || (rc = pass_groups(pass, plan->layout.blocks)) < 0)
        return rc;
    rc = ss_sink_flush(&pass->sink);
    return rc < 0 ? write_failed(pass, rc) : 0;
}

/* The sink's own error: a write, or a small file that was checked there. */
static int sink_failed(struct pass *pass, int rc)
{
    const struct ss_sink *sink = &pass->sink;
    if (!sink->corrupt)
        return write_failed(pass, rc);
    pass->plan->report->wanted = pass->plan->report->have = 0;
    return ss_plan_fail(pass->plan, rc, SS_EXT4_OBJECT_CORRUPT, sink->inode);
}

static uint64_t now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int ss_ext4_write(int fd, uint64_t offset, const struct ss_tree *tree,
                  const struct ss_ext4_params *params, const struct ss_ext4_source *source,
                  struct ss_ext4_report *report)
{
    struct ss_plan plan = {.tree = tree, .params = params, .source = source, .report = report};
    struct pass pass = {.plan = &plan};
    uint64_t started = now();

    memset(report, 0, sizeof *report);
    int rc = ss_plan_make(&plan);
    report->plan_ns = now() - started;
    if (rc == 0) {
        started = now();
        bool small = plan.data_blocks * EXT4_BLOCK < SMALL_ROOT;
        rc = ss_sink_open(&pass.sink, fd, offset, small ? SMALL_BUFFER : BUFFER);
        if (rc == 0)
            rc = ss_files_open(&pass.files);
        rc = rc < 0 ? ss_plan_fail(&plan, rc, SS_EXT4_MEMORY, 0) : write_all(&pass);
        int closed = ss_sink_close(&pass.sink);
        if (closed < 0 && (rc == 0 || report->what == SS_EXT4_WRITE))
            rc = sink_failed(&pass, closed);
        report->write_ns = now() - started;
        report->written = pass.sink.written;
        report->blocks = plan.layout.blocks;
        report->free_blocks = plan.free_blocks;
        report->inodes = plan.layout.groups * plan.layout.inodes_per_group;
        report->free_inodes = plan.free_inodes;
        report->groups = plan.layout.groups;
        report->journal_blocks = plan.layout.journal_blocks;
        ss_files_free(&pass.files);
    }
    ss_plan_free(&plan);
    return rc;
}

static int open_object(const struct ss_ext4_objects *objects, const uint8_t hash[SS_HASH_SIZE])
{
    char path[SS_OBJECT_PATH];

    ss_object_path(hash, objects->levels, path);
    int fd = openat(objects->directory, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

void ss_ext4_close_stored(struct ss_ext4_objects *objects)
{
    if (objects->pack != 0)
        close(objects->pack_fd);
    objects->pack = 0;
}

static int open_pack(struct ss_ext4_objects *objects, uint64_t pack)
{
    char path[32];

    if (objects->pack == pack)
        return objects->pack_fd;
    ss_ext4_close_stored(objects);
    snprintf(path, sizeof path, ".packs/%" PRIu64, pack);
    int fd = openat(objects->directory, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    objects->pack = pack;
    objects->pack_fd = fd;
    return fd;
}

int ss_ext4_open_stored(void *context, uint32_t inode, const uint8_t hash[SS_HASH_SIZE],
                        const struct ss_ext4_object *object)
{
    struct ss_ext4_objects *objects = context, other = *objects;

    (void)inode;
    if (object != NULL && object->pack != 0)
        return open_pack(objects, object->pack);
    int fd = open_object(objects, hash);
    if (fd == -ENOENT) {
        other.levels = 3 - objects->levels;
        fd = open_object(&other, hash);
        if (fd >= 0)
            objects->levels = other.levels;
    }
    return fd;
}
