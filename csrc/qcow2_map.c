/* From a disk's offset to a place in a file; see qcow2.h. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2_table.h"

/* L2 tables are read in slices: a lone look-up costs 4 KiB, a walk one read in 512 entries. */
enum { SLICES = 64, SLICE = 4096 };

int ss_qcow2_read_table(struct ss_qcow2 *image, uint64_t offset, uint8_t *out)
{
    if (!ss_qcow2_table_fits(image, offset, image->cluster_size))
        return ss_qcow2_fail(image, -EUCLEAN, "an L2 table is not inside the file", offset);
    int64_t got = ss_read_at(image->fd, out, image->cluster_size, offset);
    if (got < 0)
        return (int)got;
    return got == (int64_t)image->cluster_size ? 0 : -EIO;
}

int ss_qcow2_l2_offset(struct ss_qcow2 *image, uint64_t l1_entry, uint64_t *offset)
{
    *offset = l1_entry & QCOW2_OFFSET;
    if (*offset != 0 && !ss_qcow2_table_fits(image, *offset, image->cluster_size))
        return ss_qcow2_fail(image, -EUCLEAN, "an L2 table is not inside the file", *offset);
    return 0;
}

/* The slice of `room` bytes at `offset`, which is inside the file. */
static int slice_at(struct ss_qcow2 *image, uint64_t offset, uint64_t room, const uint8_t **slice)
{
    if (image->slices == NULL) {
        image->slices = malloc(SLICES * SLICE);
        image->slice_keys = calloc(SLICES, sizeof *image->slice_keys);
        if (image->slices == NULL || image->slice_keys == NULL) {
            free(image->slices);
            free(image->slice_keys);
            image->slices = NULL;
            image->slice_keys = NULL;
            return -ENOMEM;
        }
    }
    uint64_t number = offset / room;
    uint64_t place = (number ^ number >> 6 ^ number >> 12) % SLICES;
    uint8_t *bytes = image->slices + place * SLICE;
    if (image->slice_keys[place] != offset) {
        image->slice_keys[place] = 0;
        int64_t got = ss_read_at(image->fd, bytes, room, offset);
        if (got != (int64_t)room)
            return got < 0 ? (int)got : -EIO;
        image->slice_keys[place] = offset;
    }
    *slice = bytes;
    return 0;
}

static int subclusters_at(struct ss_qcow2 *image, uint64_t bitmap, uint64_t host,
                          uint64_t within, struct ss_run *run)
{
    uint64_t size = image->cluster_size / 32;
    uint32_t here = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);
    uint64_t first = within / size, last = first;

    if ((here & zero) != 0 || (here != 0 && host == 0))
        return ss_qcow2_fail(image, -EUCLEAN, "an L2 entry's subclusters contradict themselves",
                             run->offset);
    bool is_here = here >> first & 1, is_zero = zero >> first & 1;
    while (last + 1 < 32 && (here >> (last + 1) & 1) == is_here &&
           (zero >> (last + 1) & 1) == is_zero)
        last++;
    run->kind = is_here ? SS_RUN_DATA : is_zero ? SS_RUN_ZERO : SS_RUN_HOLE;
    run->length = (last + 1) * size - within;
    return 0;
}

int ss_qcow2_entry(struct ss_qcow2 *image, uint64_t entry, uint64_t subclusters, uint64_t within,
                   struct ss_run *run)
{
    uint64_t host = entry & QCOW2_OFFSET;

    run->length = image->cluster_size - within;
    run->host = 0;
    if ((entry & QCOW2_PACKED) != 0) {
        run->kind = SS_RUN_PACKED;
        run->host = entry & (QCOW2_PACKED - 1);
        return 0;
    }
    if (image->extended) {
        int rc = subclusters_at(image, subclusters, host, within, run);
        if (rc < 0)
            return rc;
    } else if ((entry & QCOW2_ZERO) != 0) {
        if (image->version < 3)
            return ss_qcow2_fail(image, -EUCLEAN, "a cluster of zeros in a version 2 image",
                                 run->offset);
        run->kind = SS_RUN_ZERO;
    } else {
        run->kind = host == 0 ? SS_RUN_HOLE : SS_RUN_DATA;
    }
    if (run->kind == SS_RUN_DATA) {
        if (host % image->cluster_size != 0)
            return ss_qcow2_fail(image, -EUCLEAN, "a cluster is not aligned", host);
        run->host = host + within;
    }
    return 0;
}

static bool follows(const struct ss_run *run, const struct ss_run *next)
{
    if (run->kind != next->kind || run->kind == SS_RUN_PACKED || run->layer != next->layer)
        return false;
    return run->kind != SS_RUN_DATA || run->host + run->length == next->host;
}

/* Runs on through one slice. */
static int map_in_slice(struct ss_qcow2 *image, const uint8_t *slice, uint64_t index,
                        uint64_t count, uint64_t limit, struct ss_run *run)
{
    uint64_t within = run->offset & (image->cluster_size - 1), length = 0;

    for (; index < count && length < limit; index++) {
        const uint8_t *entry = slice + index * image->entry_size;
        uint64_t word = qcow2_get64(entry);
        uint64_t subclusters = image->extended ? qcow2_get64(entry + 8) : 0;
        while (length < limit) {
            struct ss_run next = {.offset = run->offset + length, .layer = run->layer};
            int rc = ss_qcow2_entry(image, word, subclusters, within, &next);
            if (rc < 0)
                return length == 0 ? rc : 0;
            if (length == 0)
                *run = next;
            else if (!follows(run, &next))
                return 0;
            length += next.length;
            run->length = length;
            within = (within + next.length) & (image->cluster_size - 1);
            if (within == 0)
                break;
        }
    }
    return 0;
}

int ss_layer_map(const struct ss_layer *layer, uint64_t offset, uint64_t limit, struct ss_run *run)
{
    struct ss_qcow2 *image = layer->image;

    run->offset = offset;
    run->host = 0;
    if (limit > layer->size - offset)
        limit = layer->size - offset;
    if (image == NULL) {
        run->kind = SS_RUN_DATA;
        run->host = offset;
        run->length = limit;
        return 0;
    }
    uint64_t covers = image->cluster_size << image->l2_bits;
    uint64_t l1_index = offset / covers, table = 0;
    if (l1_index < layer->l1_size) {
        int rc = ss_qcow2_l2_offset(image, layer->l1[l1_index], &table);
        if (rc < 0)
            return rc;
    }
    if (table == 0) {
        /* An empty stretch of the L1 table is one run. */
        uint64_t index = l1_index + 1, end = offset + limit;
        while (index < layer->l1_size && index * covers < end &&
               (layer->l1[index] & QCOW2_OFFSET) == 0)
            index++;
        run->kind = SS_RUN_HOLE;
        run->length =
            (index < layer->l1_size && index * covers < end ? index * covers : end) - offset;
        return 0;
    }
    uint64_t room = image->cluster_size < SLICE ? image->cluster_size : SLICE;
    uint64_t index = (offset & (covers - 1)) >> image->cluster_bits;
    uint64_t in_slice = room / image->entry_size;
    const uint8_t *slice;
    int rc = slice_at(image, table + index / in_slice * room, room, &slice);
    if (rc == 0)
        rc = map_in_slice(image, slice, index % in_slice, in_slice, limit, run);
    if (rc == 0 && run->length > limit)
        run->length = limit;
    return rc;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* No table may stand in an L1 table twice: so a walk over a disk never takes longer than its file
 * is long, however large the disk claims to be. */
static int check_l1(struct ss_qcow2 *image, const uint64_t *l1, uint32_t size)
{
    uint64_t *sorted = malloc((uint64_t)size * 8 + 8), last = 0;
    uint32_t count = 0;
    int rc = 0;

    if (sorted == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < size; i++)
        if ((l1[i] & QCOW2_OFFSET) != 0)
            sorted[count++] = l1[i] & QCOW2_OFFSET;
    qsort(sorted, count, 8, by_value);
    for (uint32_t i = 0; i < count && rc == 0; last = sorted[i++])
        if (sorted[i] == last)
            rc = ss_qcow2_fail(image, -EUCLEAN, "an L2 table is used for two places", last);
    free(sorted);
    return rc;
}

int ss_layer_qcow2(struct ss_layer *layer, struct ss_qcow2 *image, int64_t snapshot)
{
    *layer = (struct ss_layer){.image = image, .fd = image->fd, .size = image->size,
                               .file_size = image->file_size, .l1 = image->l1,
                               .l1_size = image->l1_size};
    if (snapshot < 0)
        return check_l1(image, layer->l1, layer->l1_size);
    if (snapshot >= image->snapshot_count)
        return ss_qcow2_fail(image, -EINVAL, "it has no such snapshot", (uint64_t)snapshot);
    struct ss_qcow2_snapshot *about = &image->snapshots[snapshot];
    if (about->l1 == NULL && about->l1_size > 0) {
        int rc = ss_qcow2_load(image, about->l1_offset, about->l1_size, &about->l1);
        if (rc < 0)
            return rc;
    }
    layer->size = about->size;
    layer->l1 = about->l1;
    layer->l1_size = about->l1_size;
    return check_l1(image, layer->l1, layer->l1_size);
}

void ss_layer_raw(struct ss_layer *layer, int fd, uint64_t size)
{
    *layer = (struct ss_layer){.fd = fd, .size = size, .file_size = size};
}

/* One piece of a run: what the topmost layer that knows says. */
static int map_piece(struct ss_view *view, uint64_t offset, uint64_t limit, struct ss_run *run)
{
    for (uint32_t i = 0; i < view->count; i++) {
        const struct ss_layer *layer = &view->layers[i];
        if (offset >= layer->size) {
            /* A backing file that ends here: nothing below is seen. */
            *run = (struct ss_run){offset, limit, 0, i, SS_RUN_HOLE};
            return 0;
        }
        run->layer = i;
        int rc = ss_layer_map(layer, offset, limit, run);
        if (rc < 0) {
            view->failed = layer;
            return rc;
        }
        if (run->kind != SS_RUN_HOLE)
            return 0;
        limit = run->length;
    }
    *run = (struct ss_run){offset, limit, 0, view->count - 1, SS_RUN_HOLE};
    return 0;
}

int ss_view_map(struct ss_view *view, uint64_t offset, uint64_t limit, struct ss_run *run)
{
    view->failed = NULL;
    if (limit > view->size - offset)
        limit = view->size - offset;
    int rc = map_piece(view, offset, limit, run);
    if (rc < 0)
        return rc;
    while (run->length < limit) {
        struct ss_run next;
        if (map_piece(view, offset + run->length, limit - run->length, &next) < 0)
            return 0; /* whoever asks for that offset will hear of it */
        if (!follows(run, &next))
            return 0;
        run->length += next.length;
    }
    return 0;
}

static int read_file(int fd, uint8_t *out, uint64_t length, uint64_t offset)
{
    int64_t got = ss_read_at(fd, out, length, offset);
    if (got < 0)
        return (int)got;
    memset(out + got, 0, length - (uint64_t)got);
    return 0;
}

int ss_view_read(struct ss_view *view, uint64_t offset, void *out, uint64_t length)
{
    uint8_t *at = out;

    while (length > 0 && offset < view->size) {
        struct ss_run run;
        int rc = ss_view_map(view, offset, length, &run);
        if (rc < 0)
            return rc;
        const struct ss_layer *layer = &view->layers[run.layer];
        if (run.kind == SS_RUN_DATA) {
            rc = read_file(layer->fd, at, run.length, run.host);
        } else if (run.kind == SS_RUN_PACKED) {
            const uint8_t *data;
            rc = ss_qcow2_unpack(layer->image, run.host, &data);
            if (rc == 0)
                memcpy(at, data + (offset & (layer->image->cluster_size - 1)), run.length);
        } else {
            memset(at, 0, run.length);
        }
        if (rc < 0) {
            view->failed = layer;
            return rc;
        }
        at += run.length;
        offset += run.length;
        length -= run.length;
    }
    memset(at, 0, length);
    return 0;
}
