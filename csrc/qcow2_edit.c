/* An edit of a qcow2 image in one step; see qcow2_edit.h. */
#define _GNU_SOURCE
#include "qcow2_edit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2_edit_room.h"
#include "qcow2_table.h"

/* --- what changes ------------------------------------------------------------------------- */

static struct ss_edit_cluster *add(struct ss_qcow2_edit *edit, uint64_t guest)
{
    if (edit->count > 0 && edit->clusters[edit->count - 1].guest == guest)
        return &edit->clusters[edit->count - 1];
    if (edit->count == edit->room) {
        uint64_t room = edit->room == 0 ? 1024 : edit->room * 2;
        struct ss_edit_cluster *clusters = realloc(edit->clusters, room * sizeof *clusters);
        if (clusters == NULL)
            return NULL;
        edit->clusters = clusters;
        edit->room = room;
    }
    edit->clusters[edit->count] = (struct ss_edit_cluster){guest, 0};
    return &edit->clusters[edit->count++];
}

/* A disk that grows would show what is behind its end, in its last cluster and in the file below:
 * the extents with zeros in their gaps there. Free `*all`. */
static int with_growth(const struct ss_qcow2_edit *edit, const struct ss_extent *extents,
                       uint64_t *count, struct ss_extent **all)
{
    const struct ss_view *view = edit->view;
    uint64_t size = edit->image->cluster_size, from = edit->image->size, end = from, next = 0;

    if (edit->new_size > from) {
        end = ss_div_up(from, size) * size;
        if (view->count > 1 && view->layers[1].size > end)
            end = view->layers[1].size;
        if (end > edit->new_size)
            end = edit->new_size;
    }
    struct ss_extent *out = malloc((2 * *count + 2) * sizeof *out);
    if (out == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i <= *count; i++) {
        uint64_t stop = i < *count && extents[i].offset < end ? extents[i].offset : end;
        if (from < stop) {
            out[next++] = (struct ss_extent){from, stop - from, 1};
            from = stop;
        }
        if (i == *count)
            break;
        out[next++] = extents[i];
        if (from < extents[i].offset + extents[i].length)
            from = extents[i].offset + extents[i].length;
    }
    *count = next;
    *all = out;
    return 0;
}

/* Lists the clusters; `host` SS_EDIT_UNUSED where one needs a place. A cluster becomes zeros only if the
 * extents cover all of it so, and the format can say it. */
static int list_clusters(struct ss_qcow2_edit *edit, const struct ss_extent *extents,
                         uint64_t count)
{
    uint64_t size = edit->image->cluster_size, end = 0;
    bool can_zero = edit->image->version >= 3 || edit->view->count == 1;

    for (uint64_t i = 0; i < count; i++) {
        const struct ss_extent *extent = &extents[i];
        if (extent->length == 0 || extent->offset < end || extent->offset > edit->new_size ||
            extent->length > edit->new_size - extent->offset)
            return ss_qcow2_fail(edit->image, -EINVAL, "extents out of order", extent->offset);
        end = extent->offset + extent->length;
        for (uint64_t at = extent->offset - extent->offset % size; at < end; at += size) {
            uint64_t stop = at + size < edit->new_size ? at + size : edit->new_size;
            struct ss_edit_cluster *cluster = add(edit, at / size);
            if (cluster == NULL)
                return -ENOMEM;
            if (!extent->zero || extent->offset > at || end < stop || !can_zero)
                cluster->host = SS_EDIT_UNUSED;
        }
    }
    return 0;
}

/* --- content ------------------------------------------------------------------------------ */

static const struct ss_edit_cluster *find(const struct ss_qcow2_edit *edit, uint64_t guest)
{
    uint64_t low = 0, high = edit->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (edit->clusters[middle].guest < guest)
            low = middle + 1;
        else
            high = middle;
    }
    return low < edit->count && edit->clusters[low].guest == guest ? &edit->clusters[low] : NULL;
}

/* Clusters that the extents do not cover whole with data get what the disk has there. */
static int fill(struct ss_qcow2_edit *edit, const struct ss_extent *extents, uint64_t count)
{
    uint64_t size = edit->image->cluster_size, next = 0;
    uint8_t *data = malloc(size);
    int rc = data == NULL ? -ENOMEM : 0;

    for (uint64_t i = 0; i < edit->count && rc == 0; i++) {
        if (edit->clusters[i].host == 0)
            continue;
        uint64_t at = edit->clusters[i].guest * size;
        uint64_t stop = at + size < edit->new_size ? at + size : edit->new_size;
        while (next < count && extents[next].offset + extents[next].length <= at)
            next++;
        if (next < count && !extents[next].zero && extents[next].offset <= at &&
            extents[next].offset + extents[next].length >= stop && stop == at + size)
            continue;
        rc = ss_view_read(edit->view, at, data, size);
        if (stop < at + size)
            memset(data + (stop - at), 0, size - (stop - at));
        for (uint64_t j = next; j < count && extents[j].offset < stop; j++) {
            uint64_t from = extents[j].offset < at ? at : extents[j].offset;
            uint64_t to = extents[j].offset + extents[j].length;
            if (extents[j].zero)
                memset(data + (from - at), 0, (to < stop ? to : stop) - from);
        }
        if (rc == 0)
            rc = ss_write_at(edit->image->fd, data, size, edit->clusters[i].host);
    }
    free(data);
    return rc;
}

int ss_qcow2_edit_open(struct ss_qcow2_edit *edit, struct ss_qcow2 *image, struct ss_view *view,
                       const struct ss_extent *extents, uint64_t count, uint64_t new_size)
{
    struct ss_qcow2_verdict verdict;

    memset(edit, 0, sizeof *edit);
    edit->image = image;
    edit->view = view;
    edit->new_size = new_size;
    edit->old_file_size = image->file_size;
    edit->finished = true;
    if ((image->incompatible & (QCOW2_DIRTY | QCOW2_CORRUPT)) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "it is marked as dirty or corrupt: `qemu-img check -r",
                             image->incompatible);
    if (image->bitmap_count > 0 || (image->autoclear & ~QCOW2_BITMAPS) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "it has bitmaps, which would no longer be right",
                             image->bitmap_count);
    if (new_size % 512 != 0)
        return ss_qcow2_fail(image, -EINVAL, "a size that is not of whole sectors", new_size);
    if (new_size < image->size)
        return ss_qcow2_fail(image, -ENOTSUP, "it would become smaller", new_size);
    if (new_size > image->size && image->version < 3 && image->snapshot_count > 0)
        return ss_qcow2_fail(image, -ENOTSUP, "its snapshots would become larger with it",
                             new_size);
    int rc = ss_qcow2_census(image, &edit->census, &verdict);
    if (rc == 0 && verdict.corruptions > 0)
        rc = ss_qcow2_fail(image, -EUCLEAN, verdict.problem, verdict.problem_at);
    struct ss_extent *all = NULL;
    if (rc == 0)
        rc = with_growth(edit, extents, &count, &all);
    if (rc == 0)
        rc = list_clusters(edit, all, count);
    if (rc == 0)
        rc = ss_edit_take(edit);
    edit->finished = rc < 0; /* nothing to give back yet */
    if (rc == 0)
        rc = ss_edit_write_counts(edit);
    if (rc == 0)
        rc = fill(edit, all, count);
    free(all);
    return rc;
}

int ss_qcow2_edit_write(struct ss_qcow2_edit *edit, uint64_t offset, const void *data,
                        uint64_t length)
{
    uint64_t size = edit->image->cluster_size;
    const uint8_t *at = data;

    while (length > 0) {
        uint64_t within = offset % size, part = size - within < length ? size - within : length;
        const struct ss_edit_cluster *cluster = find(edit, offset / size);
        if (cluster == NULL || cluster->host == 0)
            return ss_qcow2_fail(edit->image, -EINVAL, "data outside the extents", offset);
        int rc = ss_write_at(edit->image->fd, at, part, cluster->host + within);
        if (rc < 0)
            return rc;
        at += part;
        offset += part;
        length -= part;
    }
    return 0;
}

/* --- the switch --------------------------------------------------------------------------- */

static void give_room_back(struct ss_qcow2_edit *edit, uint64_t cluster)
{
    /* Where there are no holes it stays taken, which is no failure. */
    fallocate(edit->image->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
              (off_t)(cluster << edit->image->cluster_bits), (off_t)edit->image->cluster_size);
}

/* Lets one reference go; the cluster is given back with the last one. */
static int drop(struct ss_qcow2_edit *edit, uint64_t cluster)
{
    uint32_t *refs = &edit->census.refs[cluster];
    if (cluster >= edit->census.clusters || *refs == 0)
        return 0;
    --*refs;
    int rc = ss_edit_set_count(edit, cluster, *refs);
    if (rc == 0 && *refs == 0)
        give_room_back(edit, cluster);
    return rc;
}

static int drop_entry(struct ss_qcow2_edit *edit, uint64_t entry)
{
    uint64_t host = entry & QCOW2_OFFSET, length = edit->image->cluster_size;
    int rc = 0;

    if ((entry & QCOW2_PACKED) != 0)
        ss_qcow2_packed_place(edit->image, entry, &host, &length);
    else if (host == 0)
        return 0;
    uint64_t last = (host + length - 1) >> edit->image->cluster_bits;
    for (uint64_t i = host >> edit->image->cluster_bits; i <= last && rc == 0; i++)
        rc = drop(edit, i);
    return rc;
}

/* Copies the table at `old` (0: empty) with this edit's clusters [from, to) in it. */
static int link_table(struct ss_qcow2_edit *edit, uint64_t old, uint64_t place, uint64_t from,
                      uint64_t to, uint8_t *table)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t entries = (uint64_t)1 << image->l2_bits;
    int rc = 0;

    memset(table, 0, image->cluster_size);
    if (old != 0)
        rc = ss_qcow2_read_table(image, old, table);
    for (uint64_t i = from; i < to; i++) {
        uint8_t *entry = table + edit->clusters[i].guest % entries * image->entry_size;
        uint64_t host = edit->clusters[i].host, zero = 0;
        if (host == 0 && edit->view->count > 1 && !image->extended)
            zero = QCOW2_ZERO;
        qcow2_put64(entry, host != 0 ? host | QCOW2_COPIED : zero);
        if (image->extended)
            qcow2_put64(entry + 8, host != 0 ? UINT32_MAX : (uint64_t)UINT32_MAX << 32);
    }
    return rc < 0 ? rc : ss_write_at(image->fd, table, image->cluster_size, place);
}

static int switch_header(struct ss_qcow2_edit *edit)
{
    uint8_t sector[512];
    int64_t got = ss_read_at(edit->image->fd, sector, sizeof sector, 0);

    if (got != sizeof sector)
        return got < 0 ? (int)got : -EIO;
    qcow2_put64(sector + 24, edit->new_size);
    qcow2_put32(sector + 36, (uint32_t)edit->l1_size);
    qcow2_put64(sector + 40, edit->l1_place);
    int rc = fdatasync(edit->image->fd) < 0 ? -errno : 0;
    if (rc == 0)
        rc = ss_write_at(edit->image->fd, sector, sizeof sector, 0);
    if (rc == 0 && fdatasync(edit->image->fd) < 0)
        rc = -errno;
    return rc;
}

/* Clusters that are counted more often than they are used, as an edit that was cut off leaves them,
 * are counted right. One that the present alone uses stays: its entry lacks the flag for it. */
static int reclaim(struct ss_qcow2_edit *edit)
{
    uint64_t next = 0;
    int rc = 0;

    for (uint64_t i = 0; i < edit->census.clusters && rc == 0; i++) {
        while (next < edit->taken_count && edit->taken[next] < i)
            next++;
        bool taken = next < edit->taken_count && edit->taken[next] == i;
        uint32_t refs = edit->census.refs[i];
        if (taken || edit->census.counts[i] <= refs ||
            (refs == 1 && (edit->census.uses[i] & SS_USE_ACTIVE) != 0))
            continue;
        rc = ss_edit_set_count(edit, i, refs);
        if (refs == 0)
            give_room_back(edit, i);
    }
    return rc;
}

/* Gives back what the old L1 table led to and the new one does not. */
static int give_back(struct ss_qcow2_edit *edit, const uint64_t *l1, uint8_t *table)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t entries = (uint64_t)1 << image->l2_bits, next = 0;
    uint64_t row = ss_div_up((uint64_t)image->l1_size * 8, image->cluster_size);
    int rc = reclaim(edit);

    for (uint64_t i = 0; i < image->l1_size && rc == 0; i++) {
        uint64_t old = image->l1[i] & QCOW2_OFFSET;
        bool kept = (l1[i] & QCOW2_OFFSET) == old;
        if (old == 0 || kept)
            continue;
        rc = ss_qcow2_read_table(image, old, table);
        for (uint64_t j = 0; j < entries && rc == 0; j++) {
            uint64_t guest = i * entries + j;
            while (next < edit->count && edit->clusters[next].guest < guest)
                next++;
            bool changed = next < edit->count && edit->clusters[next].guest == guest;
            if (changed)
                rc = drop_entry(edit, qcow2_get64(table + j * image->entry_size));
        }
        if (rc == 0)
            rc = drop(edit, old >> image->cluster_bits);
    }
    for (uint64_t i = 0; i < row && rc == 0; i++)
        rc = drop(edit, (image->l1_offset >> image->cluster_bits) + i);
    return rc;
}

int ss_qcow2_edit_finish(struct ss_qcow2_edit *edit)
{
    struct ss_qcow2 *image = edit->image;
    uint64_t entries = (uint64_t)1 << image->l2_bits, done = 0;
    uint64_t *l1 = calloc(edit->l1_size + 1, 8), *raw = calloc(edit->l1_size + 1, 8);
    uint8_t *table = malloc(image->cluster_size);
    int rc = l1 == NULL || raw == NULL || table == NULL ? -ENOMEM : 0;

    for (uint64_t i = 0; rc == 0 && i < edit->l1_size && i < image->l1_size; i++)
        l1[i] = image->l1[i];
    for (uint64_t i = 0; i < edit->count && rc == 0;) {
        uint64_t index = edit->clusters[i].guest / entries, to = i + 1;
        while (to < edit->count && edit->clusters[to].guest / entries == index)
            to++;
        rc = link_table(edit, l1[index] & QCOW2_OFFSET, edit->tables[done], i, to, table);
        l1[index] = edit->tables[done++] | QCOW2_COPIED;
        i = to;
    }
    for (uint64_t i = 0; rc == 0 && i < edit->l1_size; i++)
        raw[i] = htobe64(l1[i]);
    if (rc == 0)
        rc = ss_write_at(image->fd, raw, edit->l1_size * 8, edit->l1_place);
    if (rc == 0)
        rc = switch_header(edit);
    if (rc == 0) {
        edit->finished = true;
        rc = give_back(edit, l1, table);
    }
    if (rc == 0 && fdatasync(image->fd) < 0)
        rc = -errno;
    free(l1);
    free(raw);
    free(table);
    return rc;
}

void ss_qcow2_edit_close(struct ss_qcow2_edit *edit)
{
    if (!edit->finished)
        ss_edit_undo(edit);
    ss_qcow2_census_free(&edit->census);
    free(edit->clusters);
    free(edit->tables);
    free(edit->taken);
    free(edit->refcounts);
    free(edit->old_refcounts);
    memset(edit, 0, sizeof *edit);
    edit->finished = true;
}
