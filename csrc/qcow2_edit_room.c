/* Room and counts of an edit; see qcow2_edit_room.h. */
#define _GNU_SOURCE
#include "qcow2_edit_room.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2_table.h"

/* Does the L2 table of cluster `i` begin with it? */
static bool new_table(const struct ss_qcow2_edit *edit, uint64_t i)
{
    uint32_t bits = edit->image->l2_bits;
    return i == 0 || edit->clusters[i].guest >> bits != edit->clusters[i - 1].guest >> bits;
}

/* Takes the next free cluster of the file; beyond its end there is always one. */
static int take(struct ss_qcow2_edit *edit, uint64_t *cluster)
{
    const struct ss_qcow2_census *census = &edit->census;
    while (edit->next_taken < census->clusters && census->refs[edit->next_taken] != 0)
        edit->next_taken++;
    if (edit->taken_count % 1024 == 0) {
        uint64_t *taken = realloc(edit->taken, (edit->taken_count + 1024) * 8);
        if (taken == NULL)
            return -ENOMEM;
        edit->taken = taken;
    }
    *cluster = edit->taken[edit->taken_count++] = edit->next_taken++;
    return 0;
}

/* `count` clusters in a row, at the end of the file. */
static int take_row(struct ss_qcow2_edit *edit, uint64_t count, uint64_t *first)
{
    if (edit->next_taken < edit->census.clusters)
        edit->next_taken = edit->census.clusters;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t cluster;
        int rc = take(edit, &cluster);
        if (rc < 0)
            return rc;
        if (i == 0)
            *first = cluster;
    }
    return 0;
}

int ss_edit_take(struct ss_qcow2_edit *edit)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t tables = 0;
    int rc = 0;

    for (uint64_t i = 0; i < edit->count; i++)
        tables += new_table(edit, i);
    edit->tables = malloc((tables + 1) * 8);
    if (edit->tables == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < edit->count && rc == 0; i++) {
        uint64_t place = 0;
        if (new_table(edit, i)) {
            rc = take(edit, &place);
            edit->tables[edit->table_count++] = place << image->cluster_bits;
        }
        if (rc == 0 && edit->clusters[i].host == SS_EDIT_UNUSED) {
            rc = take(edit, &place);
            edit->clusters[i].host = place << image->cluster_bits;
        }
    }
    uint64_t covers = image->cluster_size << image->l2_bits;
    edit->l1_size = ss_div_up(edit->new_size, covers);
    if (edit->l1_size < image->l1_size)
        edit->l1_size = image->l1_size;
    if (edit->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return ss_qcow2_fail(image, -EFBIG, "the disk would be too large", edit->new_size);
    uint64_t place = 0, row = ss_div_up(edit->l1_size * 8, image->cluster_size);
    if (rc == 0)
        rc = take_row(edit, row == 0 ? 1 : row, &place);
    edit->l1_place = place << image->cluster_bits;
    edit->content_count = edit->taken_count;
    return rc;
}

/* Room on the disk for what was taken, so that a full one is noticed now. */
static int reserve(struct ss_qcow2_edit *edit)
{
    uint64_t bits = edit->image->cluster_bits, end = edit->old_file_size;

    for (uint64_t i = 0; i < edit->taken_count;) {
        uint64_t first = edit->taken[i], last = first;
        while (++i < edit->taken_count && edit->taken[i] == last + 1)
            last++;
        uint64_t stop = (last + 1) << bits;
        if (fallocate(edit->image->fd, 0, (off_t)(first << bits),
                      (off_t)(stop - (first << bits))) < 0) {
            if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
                return -errno;
            if (stop > end && ftruncate(edit->image->fd, (off_t)stop) < 0)
                return -errno;
        }
        end = stop > end ? stop : end;
    }
    return 0;
}

/* --- counts ------------------------------------------------------------------------------- */

int ss_edit_set_count(struct ss_qcow2_edit *edit, uint64_t cluster, uint64_t value)
{
    struct ss_qcow2 *image = edit->image;
    uint32_t order = image->refcount_order;
    uint64_t in_block = image->cluster_size * 8 >> order;
    uint64_t block = edit->refcounts[cluster / in_block] & QCOW2_REFCOUNT_OFFSET;
    uint64_t index = cluster % in_block, width = (uint64_t)1 << order;
    uint8_t bytes[8] = {0};

    if (order < 3) {
        uint64_t at = block + (index * width >> 3), shift = index * width & 7;
        int64_t got = ss_read_at(image->fd, bytes, 1, at);
        if (got != 1)
            return got < 0 ? (int)got : -EIO;
        uint32_t mask = ((1u << width) - 1) << shift;
        bytes[0] = (uint8_t)((bytes[0] & ~mask) | (((uint32_t)value << shift) & mask));
        return ss_write_at(image->fd, bytes, 1, at);
    }
    for (uint64_t i = width / 8; i-- > 0; value >>= 8)
        bytes[i] = (uint8_t)value;
    return ss_write_at(image->fd, bytes, width / 8, block + index * (width / 8));
}

static int write_zeros(struct ss_qcow2_edit *edit, uint64_t cluster, uint64_t count)
{
    uint8_t *zeros = calloc(1, edit->image->cluster_size);
    int rc = zeros == NULL ? -ENOMEM : 0;
    for (uint64_t i = 0; i < count && rc == 0; i++)
        rc = ss_write_at(edit->image->fd, zeros, edit->image->cluster_size,
                         (cluster + i) << edit->image->cluster_bits);
    free(zeros);
    return rc;
}

/* Takes blocks of counts for all that was taken, and a longer table for them if it needs one. */
static int take_blocks(struct ss_qcow2_edit *edit, bool *longer)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t in_block = image->cluster_size * 8 >> image->refcount_order;
    uint64_t done = 0, entries = edit->refcount_entries;
    int rc = 0;

    *longer = false;
    while (rc == 0 && done < edit->taken_count) { /* the list grows as it is gone through */
        uint64_t index = edit->taken[done++] / in_block;
        if (index >= edit->refcount_entries) {
            uint64_t *table = realloc(edit->refcounts, (index + 1) * 8);
            if (table == NULL)
                return -ENOMEM;
            memset(table + edit->refcount_entries, 0, (index + 1 - edit->refcount_entries) * 8);
            edit->refcounts = table;
            edit->refcount_entries = index + 1;
        }
        if (edit->refcounts[index] == 0) {
            uint64_t place;
            rc = take_row(edit, 1, &place);
            if (rc == 0)
                edit->refcounts[index] = place << image->cluster_bits;
        }
    }
    *longer = edit->refcount_entries > entries;
    return rc;
}

/* A longer table of counts: its clusters are counted in it as well. */
static int take_longer_table(struct ss_qcow2_edit *edit, uint64_t *place, uint64_t *row)
{
    struct ss_qcow2 *image = edit->image;
    bool longer;

    *row = ss_div_up((edit->refcount_entries + 8) * 8, image->cluster_size) + 1;
    if (*row > QCOW2_MAX_REFCOUNT_TABLE >> image->cluster_bits)
        return ss_qcow2_fail(image, -EFBIG, "the file would be too large", *row);
    int rc = take_row(edit, *row, place);
    if (rc == 0)
        rc = take_blocks(edit, &longer);
    if (rc == 0 && edit->refcount_entries * 8 > *row << image->cluster_bits)
        rc = ss_qcow2_fail(image, -EFBIG, "the file would be too large", *row);
    return rc;
}

/* Makes the file lead to the new blocks, in its table or in a longer one. */
static int link_blocks(struct ss_qcow2_edit *edit, uint64_t place, uint64_t row)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t old = image->refcount_offset, old_row = image->refcount_clusters;
    uint64_t table = row > 0 ? place << image->cluster_bits : old;
    uint8_t word[12];
    int rc = row > 0 ? write_zeros(edit, place, row) : 0;

    for (uint64_t i = 0; i < edit->refcount_entries && rc == 0; i++)
        if (row > 0 || edit->refcounts[i] != edit->old_refcounts[i]) {
            qcow2_put64(word, edit->refcounts[i]);
            rc = ss_write_at(image->fd, word, 8, table + i * 8);
        }
    if (row == 0 || rc < 0)
        return rc;
    if (fdatasync(image->fd) < 0)
        return -errno;
    qcow2_put64(word, table);
    qcow2_put32(word + 8, (uint32_t)row);
    rc = ss_write_at(image->fd, word, 12, 48);
    image->refcount_offset = table;
    image->refcount_clusters = (uint32_t)row;
    for (uint64_t i = 0; i < old_row && rc == 0; i++)
        rc = ss_edit_set_count(edit, (old >> image->cluster_bits) + i, 0);
    return rc;
}

int ss_edit_write_counts(struct ss_qcow2_edit *edit)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t entries = (uint64_t)image->refcount_clusters << image->cluster_bits >> 3;
    uint64_t place = 0, row = 0;
    bool longer = false;

    int rc = ss_qcow2_load(image, image->refcount_offset, entries, &edit->old_refcounts);
    if (rc < 0)
        return rc;
    edit->refcounts = malloc((entries + 1) * 8);
    if (edit->refcounts == NULL)
        return -ENOMEM;
    memcpy(edit->refcounts, edit->old_refcounts, entries * 8);
    edit->refcount_entries = edit->old_refcount_entries = entries;
    rc = take_blocks(edit, &longer);
    if (rc == 0 && longer)
        rc = take_longer_table(edit, &place, &row);
    if (rc == 0)
        rc = reserve(edit);
    for (uint64_t i = 0; i < edit->refcount_entries && rc == 0; i++)
        if (edit->refcounts[i] != 0 && (i >= entries || edit->old_refcounts[i] == 0))
            rc = write_zeros(edit, edit->refcounts[i] >> image->cluster_bits, 1);
    for (uint64_t i = 0; i < edit->taken_count && rc == 0; i++)
        rc = ss_edit_set_count(edit, edit->taken[i], 1);
    /* The blocks count before the table leads to them. */
    if (rc == 0 && fdatasync(image->fd) < 0)
        rc = -errno;
    if (rc < 0)
        return rc;
    edit->linked = true;
    return link_blocks(edit, place, row);
}

void ss_edit_undo(struct ss_qcow2_edit *edit)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t in_block = image->cluster_size * 8 >> image->refcount_order;
    uint64_t end = edit->old_file_size;

    for (uint64_t i = 0; i < edit->taken_count; i++) {
        uint64_t cluster = edit->taken[i], at = cluster << image->cluster_bits;
        uint64_t block = cluster / in_block;
        if (edit->linked && i >= edit->content_count) {
            /* Blocks of counts that the file has by now stay. */
            end = end > at + image->cluster_size ? end : at + image->cluster_size;
            continue;
        }
        if (edit->linked || (block < edit->old_refcount_entries &&
                             edit->old_refcounts[block] != 0))
            ss_edit_set_count(edit, cluster, 0);
        if (cluster < edit->census.clusters)
            fallocate(image->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)at,
                      (off_t)image->cluster_size);
    }
    if (ftruncate(image->fd, (off_t)end) < 0)
        return; /* it is only longer than it needs be */
}
