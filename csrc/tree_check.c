#define _GNU_SOURCE /* qsort_r */
#include "tree_check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int fail(struct ss_tree_problem *problem, enum ss_tree_fault fault, uint32_t inode,
                uint32_t entry)
{
    problem->fault = fault;
    problem->inode = inode;
    problem->entry = entry;
    return -EINVAL;
}

static int in_range(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

static int compare_names(const void *left, const void *right, void *blob)
{
    const struct ss_entry *a = left, *b = right;
    uint32_t length = a->name_len < b->name_len ? a->name_len : b->name_len;
    int order = memcmp((const uint8_t *)blob + a->name_off, (const uint8_t *)blob + b->name_off,
                       length);
    if (order)
        return order;
    return (a->name_len > b->name_len) - (a->name_len < b->name_len);
}

static int check_inode(const struct ss_inode *inode, uint32_t entry_count, uint64_t blob_len)
{
    switch (inode->mode & S_IFMT) {
    case S_IFDIR:
        break;
    case S_IFLNK:
        if (inode->data_len == 0 || inode->data_len > 4095)
            return SS_TREE_BAD_TARGET;
        break;
    case S_IFREG:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        break;
    default:
        return SS_TREE_BAD_MODE;
    }
    if ((inode->mode & S_IFMT) != S_IFDIR && inode->entry_count)
        return SS_TREE_BAD_MODE;
    if (!in_range(inode->data_off, inode->data_len, blob_len) ||
        !in_range(inode->xattr_off, inode->xattr_len, blob_len) ||
        !in_range(inode->first_entry, inode->entry_count, entry_count))
        return SS_TREE_BAD_RANGE;
    if (inode->mtime_nsec < 0 || inode->mtime_nsec > 999999999)
        return SS_TREE_BAD_TIME;
    return SS_TREE_OK;
}

static int check_name(const struct ss_entry *entry, const uint8_t *blob, uint64_t blob_len)
{
    if (!in_range(entry->name_off, entry->name_len, blob_len))
        return SS_TREE_BAD_RANGE;
    const uint8_t *name = blob + entry->name_off;
    uint32_t length = entry->name_len;
    if (length == 0 || length > 255 || memchr(name, '/', length) || memchr(name, 0, length) ||
        (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.'))))
        return SS_TREE_BAD_NAME;
    return SS_TREE_OK;
}

/* The names of one directory: each legal, none twice. 0, a fault, or -ENOMEM. */
static int check_names(const struct ss_entry *entries, uint32_t count, const uint8_t *blob,
                       uint64_t blob_len, uint32_t *where)
{
    int sorted = 1;
    for (uint32_t i = 0; i < count; i++) {
        int fault = check_name(&entries[i], blob, blob_len);
        if (fault) {
            *where = i;
            return fault;
        }
        if (i && sorted && compare_names(&entries[i - 1], &entries[i], (void *)blob) >= 0)
            sorted = 0;
    }
    if (sorted)
        return 0;
    struct ss_entry *copy = malloc(count * sizeof *copy);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, entries, count * sizeof *copy);
    qsort_r(copy, count, sizeof *copy, compare_names, (void *)blob);
    int fault = 0;
    for (uint32_t i = 1; i < count && !fault; i++) {
        if (compare_names(&copy[i - 1], &copy[i], (void *)blob) == 0) {
            fault = SS_TREE_DUPLICATE_NAME;
            for (*where = 0; compare_names(&entries[*where], &copy[i], (void *)blob) != 0;)
                ++*where;
        }
    }
    free(copy);
    return fault;
}

/* Marks what the root leads to in seen[]; stack[] has room for every inode. */
static int mark(const struct ss_inode *inodes, uint32_t inode_count, const struct ss_entry *entries,
                uint32_t entry_count, const uint8_t *blob, uint64_t blob_len, uint32_t *seen,
                uint32_t *stack, struct ss_tree_problem *problem)
{
    uint32_t depth = 0;
    seen[0] = 1;
    stack[depth++] = 0;
    while (depth) {
        uint32_t index = stack[--depth];
        const struct ss_inode *directory = &inodes[index];
        if (directory->entry_count == 0)
            continue;
        const struct ss_entry *first = entries + directory->first_entry;
        uint32_t where = 0;
        int fault = check_names(first, directory->entry_count, blob, blob_len, &where);
        if (fault < 0)
            return fault;
        if (fault)
            return fail(problem, (enum ss_tree_fault)fault, index, directory->first_entry + where);
        for (uint32_t i = 0; i < directory->entry_count; i++) {
            uint32_t child = first[i].inode;
            if (child >= inode_count)
                return fail(problem, SS_TREE_NO_INODE, index, directory->first_entry + i);
            if ((inodes[child].mode & S_IFMT) != S_IFDIR) {
                if (!seen[child]) {
                    int bad = check_inode(&inodes[child], entry_count, blob_len);
                    if (bad)
                        return fail(problem, (enum ss_tree_fault)bad, child, 0);
                }
                seen[child] = 1;
                continue;
            }
            if (seen[child])
                return fail(problem, SS_TREE_LINKED_DIRECTORY, index, directory->first_entry + i);
            int bad = check_inode(&inodes[child], entry_count, blob_len);
            if (bad)
                return fail(problem, (enum ss_tree_fault)bad, child, 0);
            seen[child] = 1;
            stack[depth++] = child;
        }
    }
    return 0;
}

/* Moves what is marked to the front and renumbers the entries. */
static void compact(struct ss_inode *inodes, uint32_t *inode_count, struct ss_entry *entries,
                    uint32_t *entry_count, uint32_t *seen, struct ss_entry *moved)
{
    uint32_t kept = 0, names = 0;
    for (uint32_t i = 0; i < *inode_count; i++) {
        if (!seen[i])
            continue;
        struct ss_inode *inode = &inodes[kept];
        if (kept != i)
            *inode = inodes[i];
        seen[i] = kept++;
        if (inode->entry_count) {
            memcpy(moved + names, entries + inode->first_entry,
                   inode->entry_count * sizeof *moved);
            inode->first_entry = names;
            names += inode->entry_count;
        } else {
            inode->first_entry = 0;
        }
    }
    for (uint32_t i = 0; i < names; i++) {
        entries[i] = moved[i];
        entries[i].inode = seen[moved[i].inode];
    }
    *inode_count = kept;
    *entry_count = names;
}

int ss_tree_finish(struct ss_inode *inodes, uint32_t *inode_count, struct ss_entry *entries,
                   uint32_t *entry_count, const uint8_t *blob, uint64_t blob_len,
                   struct ss_tree_problem *problem)
{
    *problem = (struct ss_tree_problem){0};
    if (*inode_count == 0 || (inodes[0].mode & S_IFMT) != S_IFDIR)
        return fail(problem, SS_TREE_BAD_MODE, 0, 0);
    int bad = check_inode(&inodes[0], *entry_count, blob_len);
    if (bad)
        return fail(problem, (enum ss_tree_fault)bad, 0, 0);
    uint64_t named = 0;
    for (uint32_t i = 0; i < *inode_count; i++) {
        named += inodes[i].entry_count;
        if (named > *entry_count)
            return fail(problem, SS_TREE_BAD_RANGE, i, 0);
    }
    uint32_t *seen = calloc(*inode_count, sizeof *seen);
    uint32_t *stack = malloc(*inode_count * sizeof *stack);
    struct ss_entry *moved = malloc((*entry_count + (size_t)1) * sizeof *moved);
    int result = -ENOMEM;
    if (seen && stack && moved) {
        result = mark(inodes, *inode_count, entries, *entry_count, blob, blob_len, seen, stack,
                      problem);
        if (result == 0)
            compact(inodes, inode_count, entries, entry_count, seen, moved);
    }
    free(seen);
    free(stack);
    free(moved);
    return result;
}

uint64_t ss_tree_usage(const struct ss_inode *inodes, uint32_t inode_count)
{
    uint64_t total = 0;
    for (uint32_t i = 1; i < inode_count; i++) {
        switch (inodes[i].mode & S_IFMT) {
        case S_IFDIR:
            total += 4096;
            break;
        case S_IFREG:
            total += (inodes[i].size + 4095) / 4096 * 4096;
            break;
        case S_IFLNK:
            total += 64;
            break;
        default:
            break;
        }
    }
    return total;
}

void ss_tree_totals(const struct ss_inode *inodes, uint32_t inode_count, uint64_t *regular,
                    uint64_t *bytes, uint64_t *directories)
{
    *regular = *bytes = *directories = 0;
    for (uint32_t i = 0; i < inode_count; i++) {
        uint32_t kind = inodes[i].mode & S_IFMT;
        if (kind == S_IFDIR) {
            ++*directories;
        } else if (kind == S_IFREG && !(inodes[i].flags & SS_INODE_COMPUTED)) {
            ++*regular;
            *bytes += inodes[i].size;
        }
    }
}
