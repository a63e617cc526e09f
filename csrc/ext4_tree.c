/* The checks of a tree that came from outside. */
#define _GNU_SOURCE /* qsort_r */
#include "ext4_tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext4_format.h"

enum { MAX_LINKS = 65000 };
#define MAX_FILE (((uint64_t)1 << 44) - EXT4_BLOCK) /* 2^32 - 1 blocks */

uint32_t ss_tree_type(const struct ss_inode *inode)
{
    return inode->mode & S_IFMT;
}

uint8_t ss_tree_entry_type(const struct ss_inode *inode)
{
    switch (ss_tree_type(inode)) {
    case S_IFREG: return 1;
    case S_IFDIR: return 2;
    case S_IFCHR: return 3;
    case S_IFBLK: return 4;
    case S_IFIFO: return 5;
    case S_IFSOCK: return 6;
    case S_IFLNK: return 7;
    default: return 0;
    }
}

uint64_t ss_tree_size(const struct ss_inode *inode)
{
    if (ss_tree_type(inode) != S_IFREG || (inode->flags & SS_INODE_COMPUTED) != 0)
        return 0;
    return inode->size;
}

static int bad(struct ss_ext4_report *report, uint32_t inode, const char *detail)
{
    report->what = SS_EXT4_TREE;
    report->inode = inode;
    report->detail = detail;
    return -EINVAL;
}

static bool in_blob(const struct ss_tree *tree, uint32_t offset, uint32_t length)
{
#ifdef SS_PLANTED_BUG
    return offset <= tree->blob_length + length;
#else
    return offset <= tree->blob_length && length <= tree->blob_length - offset;
#endif
}

static int check_inode(const struct ss_tree *tree, uint32_t index, struct ss_ext4_report *report)
{
    const struct ss_inode *inode = &tree->inodes[index];
    uint32_t type = ss_tree_type(inode);

    if (ss_tree_entry_type(inode) == 0 || inode->mode > 0xFFFF)
        return bad(report, index, "unknown file type");
    if (inode->mtime_nsec < 0 || inode->mtime_nsec > 999999999)
        return bad(report, index, "nanoseconds out of range");
    if (!in_blob(tree, inode->xattr_off, inode->xattr_len))
        return bad(report, index, "extended attributes lie outside the tree");
    if (type == S_IFREG && inode->size > MAX_FILE)
        return bad(report, index, "file larger than 16 TiB");
    if (type == S_IFLNK) {
        if (!in_blob(tree, inode->data_off, inode->data_len))
            return bad(report, index, "symlink target lies outside the tree");
        if (inode->data_len == 0 || inode->data_len >= EXT4_BLOCK)
            return bad(report, index, "symlink target of no or more than 4095 bytes");
        if (memchr(tree->blob + inode->data_off, 0, inode->data_len) != NULL)
            return bad(report, index, "symlink target with a NUL byte");
    }
    if (type == S_IFDIR && (inode->first_entry > tree->entry_count ||
                            inode->entry_count > tree->entry_count - inode->first_entry))
        return bad(report, index, "entries lie outside the tree");
    return 0;
}

static int compare(const uint8_t *a, uint32_t a_length, const uint8_t *b, uint32_t b_length)
{
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    if (order != 0)
        return order;
    return a_length < b_length ? -1 : a_length > b_length;
}

static int by_name(const void *left, const void *right, void *context)
{
    const struct ss_tree *tree = context;
    const struct ss_entry *a = &tree->entries[*(const uint32_t *)left];
    const struct ss_entry *b = &tree->entries[*(const uint32_t *)right];
    return compare(tree->blob + a->name_off, a->name_len, tree->blob + b->name_off, b->name_len);
}

/* Names of one directory, none twice. Sorted directories, the usual case, need no sorting. */
static int check_distinct(const struct ss_tree *tree, uint32_t index,
                          struct ss_ext4_report *report)
{
    const struct ss_inode *dir = &tree->inodes[index];
    uint32_t first = dir->first_entry, count = dir->entry_count, i = 1;

    for (; i < count; i++) {
        uint32_t pair[2] = {first + i - 1, first + i};
        if (by_name(&pair[0], &pair[1], (void *)tree) >= 0)
            break;
    }
    if (i >= count)
        return 0;
    uint32_t *order = malloc((size_t)count * sizeof *order);
    if (order == NULL) {
        report->what = SS_EXT4_MEMORY;
        return -ENOMEM;
    }
    for (i = 0; i < count; i++)
        order[i] = first + i;
    qsort_r(order, count, sizeof *order, by_name, (void *)tree);
    for (i = 1; i < count && by_name(&order[i - 1], &order[i], (void *)tree) != 0; i++)
        ;
    free(order);
    return i < count ? bad(report, index, "a name stands twice in this directory") : 0;
}

static int check_directory(const struct ss_tree *tree, uint32_t index, struct ss_facts *facts,
                           struct ss_ext4_report *report)
{
    const struct ss_inode *dir = &tree->inodes[index];

    for (uint32_t i = 0; i < dir->entry_count; i++) {
        const struct ss_entry *entry = &tree->entries[dir->first_entry + i];
        if (entry->inode >= tree->inode_count)
            return bad(report, index, "an entry names no inode");
        if (entry->name_len < 1 || entry->name_len > 255 ||
            !in_blob(tree, entry->name_off, entry->name_len))
            return bad(report, index, "an entry's name is empty, too long or outside the tree");
        const uint8_t *name = tree->blob + entry->name_off;
        if (memchr(name, '/', entry->name_len) != NULL || memchr(name, 0, entry->name_len) != NULL)
            return bad(report, index, "a name with a slash or a NUL byte");
        if (name[0] == '.' && (entry->name_len == 1 || (entry->name_len == 2 && name[1] == '.')))
            return bad(report, index, "a name that is . or ..");
        if (ss_tree_type(&tree->inodes[entry->inode]) == S_IFDIR) {
            if (entry->inode == 0 || facts->parent[entry->inode] != UINT32_MAX)
                return bad(report, entry->inode, "a directory with two names");
            facts->parent[entry->inode] = index;
            /* more than 65000 sub-directories: dir_nlink says 1 for "many" */
            if (facts->links[index] != 1 && ++facts->links[index] > MAX_LINKS)
                facts->links[index] = 1;
        } else if (++facts->links[entry->inode] > MAX_LINKS) {
            return bad(report, entry->inode, "more than 65000 hard links");
        }
    }
    return check_distinct(tree, index, report);
}

/* Downwards from the root. Every directory has at most one parent, so none is met twice; what is
 * not met belongs to a loop or hangs below one. */
static int check_reach(const struct ss_tree *tree, struct ss_facts *facts,
                       struct ss_ext4_report *report)
{
    uint32_t *queue = facts->start, head = 0, tail = 0;
    uint64_t entries = 0;
    int rc;

    queue[tail++] = 0;
    facts->links[0] = 2;
    facts->parent[0] = 0;
    while (head < tail) {
        uint32_t index = queue[head++];
        const struct ss_inode *dir = &tree->inodes[index];
        entries += dir->entry_count;
        if (entries > tree->entry_count) /* shared entries: work and output would have no bound */
            return bad(report, index, "two directories share their entries");
        if ((rc = check_directory(tree, index, facts, report)) < 0)
            return rc;
        for (uint32_t i = 0; i < dir->entry_count; i++) {
            uint32_t child = tree->entries[dir->first_entry + i].inode;
            if (ss_tree_type(&tree->inodes[child]) != S_IFDIR)
                continue;
            facts->links[child] = 2;
            queue[tail++] = child;
        }
    }
    for (uint32_t i = 0; i < tree->inode_count; i++) {
        if (facts->links[i] > 0)
            facts->used_inodes++;
        else if (ss_tree_type(&tree->inodes[i]) == S_IFDIR)
            return bad(report, i, "a directory that cannot be reached from the root");
    }
    memset(facts->start, 0, (size_t)tree->inode_count * sizeof *facts->start);
    return 0;
}

void ss_facts_free(struct ss_facts *facts)
{
    free(facts->parent);
    free(facts->links);
    free(facts->start);
    free(facts->extra);
    free(facts->blocks);
    memset(facts, 0, sizeof *facts);
}

int ss_tree_check(const struct ss_tree *tree, struct ss_facts *facts,
                  struct ss_ext4_report *report)
{
    size_t count = tree->inode_count;
    int rc;

    memset(facts, 0, sizeof *facts);
    if (count == 0 || ss_tree_type(&tree->inodes[0]) != S_IFDIR)
        return bad(report, 0, "the root is not a directory");
    if (count > UINT32_MAX - EXT4_FIRST_INO)
        return bad(report, 0, "too many inodes");
    for (uint32_t i = 0; i < count; i++)
        if ((rc = check_inode(tree, i, report)) < 0)
            return rc;
    facts->parent = malloc(count * sizeof *facts->parent);
    facts->links = calloc(count, sizeof *facts->links);
    facts->start = calloc(count, sizeof *facts->start);
    facts->extra = calloc(count, sizeof *facts->extra);
    facts->blocks = calloc(count, sizeof *facts->blocks);
    if (facts->parent == NULL || facts->links == NULL || facts->start == NULL ||
        facts->extra == NULL || facts->blocks == NULL) {
        report->what = SS_EXT4_MEMORY;
        return -ENOMEM;
    }
    memset(facts->parent, 0xFF, count * sizeof *facts->parent);
    return check_reach(tree, facts, report);
}
