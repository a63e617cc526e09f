/* Compacting by rank: a cluster's new place is the number of clusters kept before it. */
#include "qcow2_compact.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2_check.h"
#include "qcow2_table.h"

#define GONE UINT32_MAX /* a cluster of zeros that the tables say instead */

struct compact {
    struct ss_qcow2 *image;
    struct ss_qcow2_census census;
    uint32_t *rank;
    uint32_t kept;
    int fd;
    uint8_t *cluster;
};

static uint64_t moved(const struct compact *work, uint64_t offset)
{
    uint32_t bits = work->image->cluster_bits;
    return ((uint64_t)work->rank[offset >> bits] << bits) |
           (offset & (work->image->cluster_size - 1));
}

static int read_cluster(const struct compact *work, uint64_t number, uint8_t *out)
{
    uint64_t size = work->image->cluster_size;
    int64_t got = ss_read_at(work->image->fd, out, size, number * size);
    if (got < 0)
        return (int)got;
    memset(out + got, 0, size - (uint64_t)got);
    return 0;
}

static bool can_go(const struct compact *work, uint64_t number)
{
    const struct ss_qcow2 *image = work->image;
    if ((work->census.uses[number] & (uint16_t) ~(SS_USE_DATA | SS_USE_ACTIVE)) != 0)
        return false;
    return image->version >= 3 || image->backing_length == 0;
}

static int rank_all(struct compact *work)
{
    const uint64_t size = work->image->cluster_size;
    work->rank = calloc(work->census.clusters + 1, sizeof *work->rank);
    if (work->rank == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < work->census.clusters; i++) {
        uint16_t uses = work->census.uses[i];
        if (uses == 0 || uses == SS_USE_REFCOUNTS)
            continue;
        if (can_go(work, i)) {
            int rc = read_cluster(work, i, work->cluster);
            if (rc < 0)
                return rc;
            if (work->cluster[0] == 0 &&
                memcmp(work->cluster, work->cluster + 1, size - 1) == 0) {
                work->rank[i] = GONE;
                continue;
            }
        }
        work->rank[i] = work->kept++;
    }
    return 0;
}

/* Pointers in a table of 8-byte words that leave the other bits alone. */
static void move_words(const struct compact *work, uint8_t *table, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t word = qcow2_get64(table + i * 8), offset = word & QCOW2_OFFSET;
        /* Behind the last entry of a table there can be anything. */
        if (offset != 0 && offset >> work->image->cluster_bits < work->census.clusters)
            qcow2_put64(table + i * 8, (word & ~QCOW2_OFFSET) | moved(work, offset));
    }
}

static void move_l2(const struct compact *work, uint8_t *table)
{
    const struct ss_qcow2 *image = work->image;

    for (uint64_t i = 0; i < (uint64_t)1 << image->l2_bits; i++) {
        uint8_t *at = table + i * image->entry_size;
        uint64_t word = qcow2_get64(at), offset = word & QCOW2_OFFSET;
        if ((word & QCOW2_PACKED) != 0) {
            uint64_t bits = 62 - (image->cluster_bits - 8), mask = ((uint64_t)1 << bits) - 1;
            qcow2_put64(at, (word & ~mask) | moved(work, word & mask));
            continue;
        }
        if (offset == 0)
            continue;
        if (work->rank[offset >> image->cluster_bits] != GONE) {
            qcow2_put64(at, (word & ~QCOW2_OFFSET) | moved(work, offset));
        } else if (image->extended) {
            uint64_t mask = qcow2_get64(at + 8);
            qcow2_put64(at, 0);
            qcow2_put64(at + 8, (mask & ~(uint64_t)UINT32_MAX) | (mask & UINT32_MAX) << 32);
        } else {
            qcow2_put64(at, image->version >= 3 ? QCOW2_ZERO : 0);
        }
    }
}

static int copy_clusters(struct compact *work)
{
    uint64_t size = work->image->cluster_size;
    int rc = 0;

    for (uint64_t i = 0; i < work->census.clusters && rc == 0; i++) {
        uint16_t uses = work->census.uses[i];
        if (uses == 0 || uses == SS_USE_REFCOUNTS || work->rank[i] == GONE)
            continue;
        rc = read_cluster(work, i, work->cluster);
        if ((uses & SS_USE_L2) != 0)
            move_l2(work, work->cluster);
        else if ((uses & SS_USE_L1) != 0)
            move_words(work, work->cluster, size / 8);
        if (rc == 0)
            rc = ss_write_at(work->fd, work->cluster, size, work->rank[i] * size);
    }
    return rc;
}

/* Writes a number at a place of the old file into its new place. */
static int patch(struct compact *work, uint64_t at, uint64_t value)
{
    uint8_t word[8];
    qcow2_put64(word, value);
    return ss_write_at(work->fd, word, 8, moved(work, at));
}

/* Entries of directories begin at multiples of 8 and so lie in one cluster each word. */
static int move_directories(struct compact *work)
{
    const struct ss_qcow2 *image = work->image;
    int rc = 0;

    for (uint32_t i = 0; i < image->snapshot_count && rc == 0; i++) {
        const struct ss_qcow2_snapshot *snapshot = &image->snapshots[i];
        if (snapshot->l1_size > 0)
            rc = patch(work, image->snapshots_offset + snapshot->place,
                       moved(work, snapshot->l1_offset));
    }
    for (uint32_t i = 0; i < image->bitmap_count && rc == 0; i++) {
        const struct ss_qcow2_bitmap *bitmap = &image->bitmaps[i];
        if (bitmap->table_size == 0)
            continue;
        rc = patch(work, image->bitmaps_offset + bitmap->place,
                   moved(work, bitmap->table_offset));
        uint64_t left = bitmap->table_size, at = bitmap->table_offset;
        while (left > 0 && rc == 0) {
            uint64_t part = left < image->cluster_size / 8 ? left : image->cluster_size / 8;
            rc = read_cluster(work, at >> image->cluster_bits, work->cluster);
            move_words(work, work->cluster, part);
            if (rc == 0)
                rc = ss_write_at(work->fd, work->cluster, part * 8, moved(work, at));
            left -= part;
            at += image->cluster_size;
        }
    }
    return rc;
}

static void put_count(uint8_t *block, uint64_t index, uint32_t order, uint64_t value)
{
    uint64_t width = (uint64_t)1 << order;
    if (order < 3) {
        block[index * width / 8] |= (uint8_t)(value << (index * width % 8));
        return;
    }
    for (uint64_t i = width / 8; i-- > 0; value >>= 8)
        block[index * (width / 8) + i] = (uint8_t)value;
}

static int write_counts(struct compact *work, uint64_t *table, uint64_t *row)
{
    const struct ss_qcow2 *image = work->image;
    uint64_t size = image->cluster_size, in_block = size * 8 >> image->refcount_order;
    uint64_t blocks = 1, total;

    *row = 1;
    for (;;) {
        total = work->kept + blocks + *row;
        uint64_t want = (total + in_block - 1) / in_block, want_row = (want * 8 + size - 1) / size;
        if (want <= blocks && want_row <= *row)
            break;
        blocks = want;
        *row = want_row;
    }
    if (*row > QCOW2_MAX_REFCOUNT_TABLE >> image->cluster_bits)
        return -EFBIG;
    *table = work->kept * size;
    uint64_t first = work->kept + *row, old = 0;
    uint8_t *entries = calloc(*row, size);
    int rc = entries == NULL ? -ENOMEM : 0;
    for (uint64_t i = 0; i < blocks && rc == 0; i++) {
        memset(work->cluster, 0, size);
        for (uint64_t j = 0; j < in_block && i * in_block + j < total; j++) {
            uint64_t number = i * in_block + j, refs = 1;
            if (number < work->kept) {
                while (work->census.uses[old] == 0 || work->census.uses[old] == SS_USE_REFCOUNTS ||
                       work->rank[old] == GONE)
                    old++;
                refs = work->census.refs[old++];
            }
            put_count(work->cluster, j, image->refcount_order, refs);
        }
        qcow2_put64(entries + i * 8, (first + i) * size);
        rc = ss_write_at(work->fd, work->cluster, size, (first + i) * size);
    }
    if (rc == 0)
        rc = ss_write_at(work->fd, entries, *row * size, *table);
    if (rc == 0 && ftruncate(work->fd, (off_t)(total * size)) < 0)
        rc = -errno;
    free(entries);
    return rc;
}

static int write_header(struct compact *work, uint64_t table, uint64_t row)
{
    const struct ss_qcow2 *image = work->image;
    int rc = read_cluster(work, 0, work->cluster);

    if (image->l1_size > 0)
        qcow2_put64(work->cluster + 40, moved(work, image->l1_offset));
    qcow2_put64(work->cluster + 48, table);
    qcow2_put32(work->cluster + 56, (uint32_t)row);
    if (image->snapshot_count > 0)
        qcow2_put64(work->cluster + 64, moved(work, image->snapshots_offset));
    if (image->bitmap_count > 0)
        qcow2_put64(work->cluster + image->bitmaps_extension + 16,
                    moved(work, image->bitmaps_offset));
    return rc < 0 ? rc : ss_write_at(work->fd, work->cluster, image->cluster_size, 0);
}

int ss_qcow2_compact(struct ss_qcow2 *image, int fd)
{
    struct compact work = {.image = image, .fd = fd};
    struct ss_qcow2_verdict verdict;
    uint64_t table = 0, row = 0;

    if ((image->incompatible & (QCOW2_DIRTY | QCOW2_CORRUPT)) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "it is marked as dirty or corrupt: `qemu-img check -r`",
                             image->incompatible);
    int rc = ss_qcow2_census(image, &work.census, &verdict);
    if (rc == 0 && verdict.corruptions > 0)
        rc = ss_qcow2_fail(image, -EUCLEAN, verdict.problem, verdict.problem_at);
    work.cluster = malloc(image->cluster_size);
    if (rc == 0 && work.cluster == NULL)
        rc = -ENOMEM;
    if (rc == 0)
        rc = rank_all(&work);
    if (rc == 0)
        rc = copy_clusters(&work);
    if (rc == 0)
        rc = move_directories(&work);
    if (rc == 0)
        rc = write_counts(&work, &table, &row);
    if (rc == 0)
        rc = write_header(&work, table, row);
    ss_qcow2_census_free(&work.census);
    free(work.rank);
    free(work.cluster);
    return rc;
}
