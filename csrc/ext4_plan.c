/* Gives every block its place; see ext4_plan.h. */
#define _GNU_SOURCE /* SEEK_DATA */
#include "ext4_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext4_csum.h"
#include "ext4_xattr.h"

enum {
    FAST_SYMLINK = 60,       /* shorter targets stand in the inode */
    /* Smaller files are not looked at for holes: those of a cache lie in packs, which have none. */
    SPARSE_FROM = (1 << 20) + EXT4_BLOCK,
    MAX_SPANS = 1 << 20      /* of all sparse files; what comes later is written as data */
};

int ss_plan_fail(struct ss_plan *plan, int rc, enum ss_ext4_what what, uint32_t inode)
{
    plan->report->what = rc == -ENOMEM ? SS_EXT4_MEMORY : what;
    plan->report->inode = inode;
    return rc;
}

uint32_t ss_plan_ino(uint32_t index)
{
    return index == 0 ? EXT4_ROOT_INO : index + EXT4_FIRST_INO - 1;
}

uint32_t ss_plan_index(const struct ss_plan *plan, uint32_t ino)
{
    if (ino == EXT4_ROOT_INO)
        return 0;
    if (ino < EXT4_FIRST_INO || ino - EXT4_FIRST_INO + 1 >= plan->tree->inode_count)
        return UINT32_MAX;
    return ino - EXT4_FIRST_INO + 1;
}

static uint64_t blocks_of(uint64_t bytes)
{
    return (bytes + EXT4_BLOCK - 1) / EXT4_BLOCK;
}

static int compare_sparse(const void *key, const void *element)
{
    uint32_t index = *(const uint32_t *)key, other = ((const struct ss_sparse *)element)->inode;
    return index < other ? -1 : index > other;
}

int ss_plan_extents(const struct ss_plan *plan, uint32_t index, struct ss_extents *out)
{
    const struct ss_inode *inode = &plan->tree->inodes[index];
    struct ss_span whole = {0, 0};
    const struct ss_span *spans = &whole;
    uint32_t count = 1;
    uint64_t cursor = plan->facts.start[index];

    switch (ss_tree_type(inode)) {
    case S_IFDIR:
        whole.blocks = plan->facts.blocks[index];
        break;
    case S_IFLNK:
        whole.blocks = inode->data_len >= FAST_SYMLINK;
        break;
    default:
        whole.blocks = (uint32_t)blocks_of(ss_tree_size(inode));
        if (whole.blocks >= SPARSE_FROM / EXT4_BLOCK && plan->sparse_count > 0) {
            const struct ss_sparse *sparse = bsearch(&index, plan->sparse, plan->sparse_count,
                                                     sizeof *sparse, compare_sparse);
            if (sparse != NULL) {
                count = sparse->count;
                if (count > 0)
                    spans = plan->spans + sparse->first;
            }
        }
    }
    return ss_extents_place(out, &plan->layout, &cursor, spans, count);
}

/* Places one inode's data at the cursor and moves it. */
static int place(struct ss_plan *plan, uint32_t index)
{
    struct ss_extents *extents = &plan->scratch;
    uint64_t cursor = plan->data_end;

    plan->facts.start[index] = (uint32_t)cursor;
    int rc = ss_plan_extents(plan, index, extents);
    if (rc < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, index);
    if (extents->tree_count > 0) {
        cursor = extents->tree[extents->tree_count - 1] + 1;
    } else if (extents->count > 0) {
        const struct ss_extent *last = &extents->list[extents->count - 1];
        cursor = last->start + last->length;
    }
    plan->data_end = cursor;
    return 0;
}

int ss_plan_dir(struct ss_plan *plan, uint32_t index, struct ss_dir *dir)
{
    const struct ss_tree *tree = plan->tree;
    const struct ss_inode *inode = &tree->inodes[index];

    memset(dir, 0, sizeof *dir);
    if (inode->entry_count > plan->names_room) {
        struct ss_name *names = realloc(plan->names, inode->entry_count * sizeof *names);
        if (names == NULL)
            return ss_plan_fail(plan, -ENOMEM, SS_EXT4_MEMORY, index);
        plan->names = names;
        plan->names_room = inode->entry_count;
    }
    for (uint32_t i = 0; i < inode->entry_count; i++) {
        const struct ss_entry *entry = &tree->entries[inode->first_entry + i];
        plan->names[i] = (struct ss_name){entry->name_off, ss_plan_ino(entry->inode), 0,
                                          (uint8_t)entry->name_len,
                                          ss_tree_entry_type(&tree->inodes[entry->inode])};
    }
    dir->names = tree->blob;
    dir->list = plan->names;
    dir->count = inode->entry_count;
    dir->ino = ss_plan_ino(index);
    dir->parent_ino = ss_plan_ino(plan->facts.parent[index]);
    dir->inode_seed = ss_ext4_inode_seed(plan->seed, dir->ino, 0);
    memcpy(dir->hash_seed, plan->hash_seed, sizeof dir->hash_seed);
    int rc = ss_dir_plan(dir);
    if (rc == -EFBIG)
        plan->report->detail = "more names in one directory than ext4 can index";
    return rc < 0 ? ss_plan_fail(plan, rc, SS_EXT4_TREE, index) : 0;
}

/* Extended attributes: which inodes need a block of their own (extra is then non-zero). */
static int count_xattrs(struct ss_plan *plan)
{
    uint8_t area[SS_XATTR_IN_INODE], block[EXT4_BLOCK];
    for (uint32_t i = 0; i < plan->tree->inode_count; i++) {
        const struct ss_inode *inode = &plan->tree->inodes[i];
        if (inode->xattr_len == 0 || plan->facts.links[i] == 0)
            continue;
        int rc = ss_xattrs_encode(plan->tree->blob + inode->xattr_off, inode->xattr_len, area,
                                  block);
        if (rc < 0) {
            plan->report->detail = "malformed extended attributes";
            return ss_plan_fail(plan, rc, rc == -E2BIG ? SS_EXT4_XATTRS : SS_EXT4_TREE, i);
        }
        plan->facts.extra[i] = (uint32_t)rc;
        plan->facts.xattr_blocks += (uint32_t)rc;
    }
    return 0;
}

static int plan_dirs(struct ss_plan *plan)
{
    for (uint32_t i = 0; i < plan->tree->inode_count; i++) {
        struct ss_dir dir;
        int rc;
        if (plan->facts.links[i] == 0 || ss_tree_type(&plan->tree->inodes[i]) != S_IFDIR)
            continue;
        if ((rc = ss_plan_dir(plan, i, &dir)) < 0)
            return rc;
        plan->facts.blocks[i] = dir.blocks;
        plan->data_blocks += dir.blocks;
        ss_dir_free(&dir);
    }
    return 0;
}

static int add_span(struct ss_plan *plan, uint32_t logical, uint32_t blocks)
{
    if (plan->span_count == plan->span_room) {
        uint32_t room = plan->span_room == 0 ? 256 : plan->span_room * 2;
        struct ss_span *spans = realloc(plan->spans, room * sizeof *spans);
        if (spans == NULL)
            return -ENOMEM;
        plan->spans = spans;
        plan->span_room = room;
    }
    plan->spans[plan->span_count++] = (struct ss_span){logical, blocks};
    return 0;
}

/* The spans of one object with holes, whole blocks, from where its data lie. */
static int find_spans(struct ss_plan *plan, uint32_t index, int fd)
{
    uint64_t size = plan->tree->inodes[index].size, end = 0;
    uint32_t first = plan->span_count;
    int rc;

    while (end < blocks_of(size)) {
        off_t data = lseek(fd, (off_t)(end * EXT4_BLOCK), SEEK_DATA);
        if (data < 0 && errno != ENXIO)
            return -errno;
        if (data < 0 || (uint64_t)data >= size)
            break;
        off_t hole = lseek(fd, data, SEEK_HOLE);
        uint64_t start = (uint64_t)data / EXT4_BLOCK;
        if (start < end)
            start = end;
        if (hole < 0 || (uint64_t)hole > size || plan->span_count >= MAX_SPANS)
            hole = (off_t)size;
        end = blocks_of((uint64_t)hole);
        if (end <= start)
            break;
        if ((rc = add_span(plan, (uint32_t)start, (uint32_t)(end - start))) < 0)
            return rc;
        plan->data_blocks += end - start;
    }
    if (plan->sparse_count == plan->sparse_room) {
        uint32_t room = plan->sparse_room == 0 ? 64 : plan->sparse_room * 2;
        struct ss_sparse *sparse = realloc(plan->sparse, room * sizeof *sparse);
        if (sparse == NULL)
            return -ENOMEM;
        plan->sparse = sparse;
        plan->sparse_room = room;
    }
    plan->sparse[plan->sparse_count++] =
        (struct ss_sparse){index, first, plan->span_count - first};
    return 0;
}

static int look_at_file(struct ss_plan *plan, uint32_t index)
{
    const struct ss_inode *inode = &plan->tree->inodes[index];
    uint64_t size = ss_tree_size(inode);
    struct stat st;

    if (size < SPARSE_FROM) {
        plan->data_blocks += blocks_of(size);
        return 0;
    }
    int fd = plan->source->open(plan->source->context, index, inode->hash, NULL);
    if (fd < 0)
        return ss_plan_fail(plan, fd, SS_EXT4_OBJECT_OPEN, index);
    int rc = 0;
    if (fstat(fd, &st) < 0) {
        rc = ss_plan_fail(plan, -errno, SS_EXT4_OBJECT_READ, index);
    } else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < size) {
        plan->report->wanted = size;
        plan->report->have = (uint64_t)st.st_size;
        rc = ss_plan_fail(plan, -EBADMSG, SS_EXT4_OBJECT_SHORT, index);
    } else if (S_ISREG(st.st_mode) && (uint64_t)st.st_blocks < size / 512) {
        if ((rc = find_spans(plan, index, fd)) < 0)
            ss_plan_fail(plan, rc, SS_EXT4_OBJECT_READ, index);
    } else {
        plan->data_blocks += blocks_of(size);
    }
    close(fd);
    return rc;
}

/* What is too large is refused before anything is placed, with how much would be needed. */
static int check_room(struct ss_plan *plan)
{
    const struct ss_layout *layout = &plan->layout;
    uint64_t needed = plan->data_blocks + plan->facts.xattr_blocks + layout->journal_blocks;
    uint64_t room = ss_layout_room(layout, 0);
    if (needed <= room)
        return 0;
    plan->report->wanted = needed + (layout->blocks - room);
    plan->report->have = layout->blocks;
    return ss_plan_fail(plan, -ENOSPC, SS_EXT4_BLOCKS, 0);
}

static int place_all(struct ss_plan *plan)
{
    const struct ss_tree *tree = plan->tree;
    struct ss_span whole = {0, plan->layout.journal_blocks};
    int rc = ss_extents_place(&plan->journal, &plan->layout, &plan->data_end, &whole, 1);
    if (rc < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_BLOCKS, 0);
    static const uint32_t ORDER[] = {S_IFDIR, S_IFLNK, 0, S_IFREG};
    for (unsigned k = 0; k < 4; k++)
        for (uint32_t i = 0; i < tree->inode_count; i++) {
            if (plan->facts.links[i] == 0)
                continue;
            if (ORDER[k] == 0) {
                if (plan->facts.extra[i] == 0)
                    continue;
                if (ss_layout_take(&plan->layout, &plan->data_end, 1) == 0)
                    return ss_plan_fail(plan, -ENOSPC, SS_EXT4_BLOCKS, i);
                plan->facts.extra[i] = (uint32_t)plan->data_end++;
            } else if (ss_tree_type(&tree->inodes[i]) == ORDER[k]) {
                if ((rc = place(plan, i)) < 0)
                    return rc;
            }
        }
    return 0;
}

int ss_plan_make(struct ss_plan *plan)
{
    int rc;

    plan->seed = ss_ext4_seed(plan->params->uuid);
    memcpy(plan->hash_seed, plan->params->uuid, sizeof plan->hash_seed);
    if ((rc = ss_tree_check(plan->tree, &plan->facts, plan->report)) < 0)
        return rc;
    uint32_t bytes_per_inode = plan->params->bytes_per_inode;
    /* Numbers are given by index, so those nothing refers to count too; 1/16 stays free. */
    uint64_t inodes = (uint64_t)plan->tree->inode_count + EXT4_FIRST_INO;
    if ((rc = ss_layout_make(&plan->layout, plan->params->size, inodes + inodes / 16 + 64,
                             bytes_per_inode == 0 ? 8192 : bytes_per_inode, plan->report)) < 0)
        return rc;
    if ((rc = count_xattrs(plan)) < 0 || (rc = plan_dirs(plan)) < 0)
        return rc;
    for (uint32_t i = 0; i < plan->tree->inode_count; i++)
        if (plan->facts.links[i] > 0 && (rc = look_at_file(plan, i)) < 0)
            return rc;
    for (uint32_t i = 0; i < plan->tree->inode_count; i++) {
        const struct ss_inode *inode = &plan->tree->inodes[i];
        if (plan->facts.links[i] > 0 && ss_tree_type(inode) == S_IFLNK)
            plan->data_blocks += inode->data_len >= FAST_SYMLINK;
    }
    if ((rc = check_room(plan)) < 0 || (rc = place_all(plan)) < 0)
        return rc;
    return ss_plan_groups(plan);
}

void ss_plan_free(struct ss_plan *plan)
{
    ss_facts_free(&plan->facts);
    ss_extents_free(&plan->journal);
    ss_extents_free(&plan->scratch);
    ss_extents_free(&plan->table);
    free(plan->descs);
    free(plan->sparse);
    free(plan->spans);
    free(plan->names);
}
