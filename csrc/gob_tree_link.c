/* From numbers, by which upstream names inodes, to places in the table. */
#include "gob_tree.h"

int gob_tree_fault(struct gob_tree *tree, enum ss_tree_fault fault, uint64_t number,
                   uint32_t entry)
{
    tree->problem = (struct ss_tree_problem){.fault = fault, .entry = entry};
    tree->problem_number = number;
    return GOB_E_TREE;
}

struct numbered {
    uint64_t number;
    uint32_t index;
};

static int compare_numbered(const void *left, const void *right)
{
    const struct numbered *a = left, *b = right;
    return (a->number > b->number) - (a->number < b->number);
}

/* Moves inode order[i].index to place i, in the table itself, along the cycles of the permutation;
 * a place that is done is its own index then. */
static void permute(struct ss_inode *inodes, struct numbered *order, size_t count)
{
    for (size_t start = 1; start < count; start++) {
        struct ss_inode first = inodes[start];
        size_t place = start;
        while (order[place].index != start) {
            size_t from = order[place].index;
            inodes[place] = inodes[from];
            order[place].index = (uint32_t)place;
            place = from;
        }
        inodes[place] = first;
        order[place].index = (uint32_t)place;
    }
}

/* Puts the inodes behind the root into the order of their numbers. */
static int sort_inodes(struct gob_tree *tree)
{
    struct ss_inode *inodes = (struct ss_inode *)tree->inodes.data;
    size_t count = tree->inodes.len / sizeof *inodes;
    int sorted = 1;
    for (size_t i = 2; i < count && sorted; i++)
        sorted = inodes[i - 1].number < inodes[i].number;
    if (sorted)
        return 0;
    struct numbered *order = malloc(count * sizeof *order);
    if (!order)
        return GOB_E_MEMORY;
    for (size_t i = 1; i < count; i++)
        order[i] = (struct numbered){inodes[i].number, (uint32_t)i};
    qsort(order + 1, count - 1, sizeof *order, compare_numbered);
    int result = 0;
    for (size_t i = 2; i < count && !result; i++)
        if (order[i].number == order[i - 1].number)
            result = gob_tree_fault(tree, SS_TREE_DUPLICATE_INODE, order[i].number, 0);
    if (!result)
        permute(inodes, order, count);
    free(order);
    return result;
}

/* Turns the entries' inode numbers into indexes. */
static int resolve_entries(struct gob_tree *tree)
{
    const struct ss_inode *inodes = (const struct ss_inode *)tree->inodes.data;
    uint32_t count = (uint32_t)(tree->inodes.len / sizeof *inodes);
    struct ss_entry *entries = (struct ss_entry *)tree->entries.data;
    const uint64_t *numbers = (const uint64_t *)tree->numbers.data;
    size_t names = tree->entries.len / sizeof *entries;
    for (size_t i = 0; i < names; i++) {
        uint32_t low = 1, high = count;
        uint64_t guess = count > 1 ? numbers[i] - inodes[1].number + 1 : 0; /* right without gaps */
        if (guess > 0 && guess < count && inodes[guess].number == numbers[i])
            low = high = (uint32_t)guess;
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (inodes[middle].number < numbers[i])
                low = middle + 1;
            else
                high = middle;
        }
        if (low >= count || inodes[low].number != numbers[i])
            return gob_tree_fault(tree, SS_TREE_NO_INODE, numbers[i], (uint32_t)i);
        entries[i].inode = low;
    }
    return 0;
}

int gob_tree_link(struct gob_tree *tree)
{
    int result = sort_inodes(tree);
    if (!result)
        result = resolve_entries(tree);
    gob_buffer_free(&tree->numbers);
    return result;
}
