/* The census of a qcow2 image's clusters; see qcow2_check.h. */
#include "qcow2_check.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2_table.h"

#define MAX_CLUSTERS ((uint64_t)1 << 31)

struct work {
    struct ss_qcow2 *image;
    struct ss_qcow2_census *census;
    struct ss_qcow2_verdict *verdict;
    uint8_t *table; /* room for one cluster */
};

static void corrupt(struct work *work, const char *problem, uint64_t at)
{
    if (work->verdict->corruptions++ == 0) {
        work->verdict->problem = problem;
        work->verdict->problem_at = at;
    }
}

/* Notes a use of the clusters that [offset, offset + length) touches, `weight` times. */
static void use(struct work *work, uint64_t offset, uint64_t length, uint16_t what,
                uint32_t weight)
{
    if (length == 0)
        return;
    uint64_t first = offset >> work->image->cluster_bits;
    uint64_t last = (offset + length - 1) >> work->image->cluster_bits;
    if (offset > UINT64_MAX - length || last >= work->census->clusters) {
        corrupt(work, "it refers to a place beyond the end of the file", offset);
        return;
    }
    for (uint64_t i = first; i <= last; i++) {
        uint32_t *refs = &work->census->refs[i];
        *refs = *refs > UINT32_MAX - weight ? UINT32_MAX : *refs + weight;
        work->census->uses[i] |= what;
    }
}

static uint32_t count_in(const uint8_t *block, uint64_t index, uint32_t order)
{
    uint64_t value;
    if (order < 3)
        return block[index >> (3 - order)] >> ((index & ((8u >> order) - 1)) << order) &
               ((1u << (1u << order)) - 1);
    switch (order) {
    case 3: return block[index];
    case 4: return qcow2_get16(block + index * 2);
    case 5: return qcow2_get32(block + index * 4);
    default:
        value = qcow2_get64(block + index * 8);
        return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    }
}

static int refcounts(struct work *work)
{
    struct ss_qcow2 *image = work->image;
    uint64_t *table = NULL;
    uint64_t entries = (uint64_t)image->refcount_clusters << image->cluster_bits >> 3;
    uint64_t in_block = image->cluster_size * 8 >> image->refcount_order;

    if (entries == 0)
        return 0;
    if (!ss_qcow2_table_fits(image, image->refcount_offset, entries * 8)) {
        corrupt(work, "the table of reference counts is not inside the file",
                image->refcount_offset);
        return 0;
    }
    use(work, image->refcount_offset, entries * 8, SS_USE_REFCOUNTS, 1);
    int rc = ss_qcow2_load(image, image->refcount_offset, entries, &table);
    for (uint64_t i = 0; i < entries && rc == 0; i++) {
        uint64_t offset = table[i] & QCOW2_REFCOUNT_OFFSET;
        if (offset == 0)
            continue;
        if ((table[i] & ~QCOW2_REFCOUNT_OFFSET) != 0 ||
            !ss_qcow2_table_fits(image, offset, image->cluster_size)) {
            corrupt(work, "a block of reference counts is out of place", table[i]);
            continue;
        }
        use(work, offset, image->cluster_size, SS_USE_REFCOUNTS, 1);
        if (i > work->census->clusters / in_block)
            continue;
        rc = ss_qcow2_read_table(image, offset, work->table);
        for (uint64_t j = 0; rc == 0 && j < in_block; j++) {
            uint64_t cluster = i * in_block + j;
            if (cluster >= work->census->clusters)
                break;
            work->census->counts[cluster] = count_in(work->table, j, image->refcount_order);
        }
    }
    free(table);
    return rc;
}

static bool copied_is_right(const struct work *work, uint64_t entry, uint64_t offset)
{
    uint64_t cluster = offset >> work->image->cluster_bits;
    if (cluster >= work->census->clusters)
        return true; /* already told */
    return ((entry & QCOW2_COPIED) != 0) == (work->census->counts[cluster] == 1);
}

static void l1_table(struct work *work, const uint64_t *l1, uint32_t size, bool active)
{
    for (uint32_t i = 0; i < size; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET;
        if ((l1[i] & QCOW2_L1_RESERVED) != 0)
            corrupt(work, "an L1 entry has reserved bits set", l1[i]);
        if (offset == 0)
            continue;
        if (!ss_qcow2_table_fits(work->image, offset, work->image->cluster_size)) {
            corrupt(work, "an L2 table is out of place", offset);
            continue;
        }
        uint64_t cluster = offset >> work->image->cluster_bits;
        uint32_t *tables = &work->census->tables[cluster];
        *tables += *tables < UINT32_MAX;
        use(work, offset, work->image->cluster_size, SS_USE_L2, 1);
        if (active) {
            work->census->uses[cluster] |= SS_USE_ACTIVE;
            if (!copied_is_right(work, l1[i], offset))
                corrupt(work, "an L1 entry's flag contradicts the reference count", l1[i]);
        }
    }
}

static void l2_entry(struct work *work, uint64_t entry, uint64_t bits, uint32_t weight, bool active)
{
    struct ss_qcow2 *image = work->image;

    if ((entry & QCOW2_PACKED) != 0) {
        uint64_t host, length;
        ss_qcow2_packed_place(image, entry, &host, &length);
        if ((entry & QCOW2_COPIED) != 0)
            corrupt(work, "a compressed cluster is flagged as used once", entry);
        if (bits != 0)
            corrupt(work, "a compressed cluster has subclusters", entry);
        use(work, host, length, SS_USE_DATA | SS_USE_PACKED, weight);
        if (active) {
            work->verdict->packed++;
            work->verdict->allocated++;
        }
        return;
    }
    uint64_t offset = entry & QCOW2_OFFSET;
    if ((entry & (QCOW2_L2_RESERVED | (image->extended || image->version < 3 ? 1u : 0u))) != 0)
        corrupt(work, "an L2 entry has reserved bits set", entry);
    if (((uint32_t)bits & (uint32_t)(bits >> 32)) != 0 || ((uint32_t)bits != 0 && offset == 0))
        corrupt(work, "an L2 entry's subclusters contradict themselves", entry);
    if (offset == 0)
        return;
    if (offset % image->cluster_size != 0) {
        corrupt(work, "a cluster is not aligned", entry);
        return;
    }
    use(work, offset, image->cluster_size, active ? SS_USE_DATA | SS_USE_ACTIVE : SS_USE_DATA,
        weight);
    if (active) {
        work->verdict->allocated++;
        if (!copied_is_right(work, entry, offset))
            corrupt(work, "an L2 entry's flag contradicts the reference count", entry);
    }
}

static int l2_tables(struct work *work)
{
    struct ss_qcow2 *image = work->image;
    uint64_t entries = (uint64_t)1 << image->l2_bits;

    for (uint64_t cluster = 0; cluster < work->census->clusters; cluster++) {
        if ((work->census->uses[cluster] & SS_USE_L2) == 0)
            continue;
        uint32_t weight = work->census->tables[cluster];
        if (weight == 0)
            continue;
        bool active = (work->census->uses[cluster] & SS_USE_ACTIVE) != 0;
        int rc = ss_qcow2_read_table(image, cluster << image->cluster_bits, work->table);
        if (rc < 0)
            return rc;
        for (uint64_t i = 0; i < entries; i++) {
            const uint8_t *at = work->table + i * image->entry_size;
            uint64_t entry = qcow2_get64(at), bits = image->extended ? qcow2_get64(at + 8) : 0;
            if (entry != 0 || bits != 0)
                l2_entry(work, entry, bits, weight, active);
        }
    }
    return 0;
}

static int snapshots(struct work *work)
{
    struct ss_qcow2 *image = work->image;

    use(work, image->snapshots_offset, image->snapshots_length, SS_USE_SNAPSHOTS, 1);
    for (uint32_t i = 0; i < image->snapshot_count; i++) {
        const struct ss_qcow2_snapshot *snapshot = &image->snapshots[i];
        uint64_t *l1 = NULL;
        if (snapshot->l1_size == 0)
            continue;
        use(work, snapshot->l1_offset, (uint64_t)snapshot->l1_size * 8, SS_USE_L1, 1);
        int rc = ss_qcow2_load(image, snapshot->l1_offset, snapshot->l1_size, &l1);
        if (rc < 0)
            return rc;
        l1_table(work, l1, snapshot->l1_size, false);
        free(l1);
    }
    return 0;
}

static int bitmaps(struct work *work)
{
    struct ss_qcow2 *image = work->image;

    use(work, image->bitmaps_offset, image->bitmaps_length, SS_USE_BITMAPS, 1);
    for (uint32_t i = 0; i < image->bitmap_count; i++) {
        const struct ss_qcow2_bitmap *bitmap = &image->bitmaps[i];
        uint64_t *table = NULL;
        if (bitmap->table_size == 0)
            continue;
        use(work, bitmap->table_offset, (uint64_t)bitmap->table_size * 8, SS_USE_BITMAPS, 1);
        int rc = ss_qcow2_load(image, bitmap->table_offset, bitmap->table_size, &table);
        if (rc < 0)
            return rc;
        for (uint32_t j = 0; j < bitmap->table_size; j++) {
            uint64_t offset = table[j] & QCOW2_OFFSET;
            if (offset % image->cluster_size != 0 || (table[j] & ~(QCOW2_OFFSET | 1)) != 0)
                corrupt(work, "an entry of a bitmap's table is wrong", table[j]);
            else if (offset != 0)
                use(work, offset, image->cluster_size, SS_USE_BITMAPS, 1);
        }
        free(table);
    }
    return 0;
}

static void compare(struct work *work)
{
    const struct ss_qcow2_census *census = work->census;

    for (uint64_t i = 0; i < census->clusters; i++) {
        uint32_t refs = census->refs[i], count = census->counts[i];
        uint16_t uses = census->uses[i] & (uint16_t) ~(SS_USE_ACTIVE | SS_USE_PACKED);
        uint64_t at = i << work->image->cluster_bits;
        if (count > 0 || refs > 0)
            work->verdict->image_end = at + work->image->cluster_size;
        if (count > refs)
            work->verdict->leaks++;
        else if (count < refs)
            corrupt(work, "a reference count is too low", at);
        if ((uses & (uses - 1)) != 0)
            corrupt(work, "a cluster is used for two things", at);
        else if (refs > 1 && (uses & (SS_USE_L2 | SS_USE_DATA)) == 0)
            corrupt(work, "a table is used twice", at);
    }
}

int ss_qcow2_census(struct ss_qcow2 *image, struct ss_qcow2_census *census,
                    struct ss_qcow2_verdict *verdict)
{
    struct work work = {image, census, verdict, NULL};

    memset(census, 0, sizeof *census);
    memset(verdict, 0, sizeof *verdict);
    census->clusters = (image->file_size + image->cluster_size - 1) >> image->cluster_bits;
    if (census->clusters > MAX_CLUSTERS)
        return ss_qcow2_fail(image, -EFBIG, "its file has too many clusters to count",
                             census->clusters);
    verdict->total = (image->size + image->cluster_size - 1) >> image->cluster_bits;
    census->refs = calloc(census->clusters + 1, sizeof *census->refs);
    census->counts = calloc(census->clusters + 1, sizeof *census->counts);
    census->tables = calloc(census->clusters + 1, sizeof *census->tables);
    census->uses = calloc(census->clusters + 1, sizeof *census->uses);
    work.table = malloc(image->cluster_size);
    int rc = -ENOMEM;
    if (census->refs != NULL && census->counts != NULL && census->tables != NULL &&
        census->uses != NULL && work.table != NULL)
        rc = refcounts(&work);
    if (rc == 0) {
        use(&work, 0, image->cluster_size, SS_USE_HEADER, 1);
        use(&work, image->l1_offset, (uint64_t)image->l1_size * 8, SS_USE_L1, 1);
        l1_table(&work, image->l1, image->l1_size, true);
        rc = snapshots(&work);
    }
    if (rc == 0)
        rc = bitmaps(&work);
    if (rc == 0)
        rc = l2_tables(&work);
    if (rc == 0)
        compare(&work);
    free(work.table);
    if (rc < 0)
        ss_qcow2_census_free(census);
    return rc;
}

void ss_qcow2_census_free(struct ss_qcow2_census *census)
{
    free(census->refs);
    free(census->counts);
    free(census->tables);
    free(census->uses);
    memset(census, 0, sizeof *census);
}

int ss_qcow2_check(struct ss_qcow2 *image, struct ss_qcow2_verdict *verdict)
{
    struct ss_qcow2_census census;
    int rc = ss_qcow2_census(image, &census, verdict);
    if (rc == 0)
        ss_qcow2_census_free(&census);
    return rc;
}
