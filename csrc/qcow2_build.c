/* A new qcow2 image; see qcow2_build.h. */
#include "qcow2_build.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2_table.h"

enum { PIECE = 2 << 20, PAGE = 4096, MOST_COUNT = 65535 };

static uint64_t div_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static bool all_zeros(const uint8_t *data, uint64_t length)
{
    return length == 0 || (data[0] == 0 && memcmp(data, data + 1, length - 1) == 0);
}

static int count(struct ss_qcow2_build *build, uint64_t cluster)
{
    if (cluster >= build->counts_room) {
        uint64_t room = cluster * 2 + 1024;
        uint16_t *counts = realloc(build->counts, room * sizeof *counts);
        if (counts == NULL)
            return -ENOMEM;
        memset(counts + build->counts_room, 0, (room - build->counts_room) * sizeof *counts);
        build->counts = counts;
        build->counts_room = room;
    }
    build->counts[cluster]++;
    return 0;
}

static int take(struct ss_qcow2_build *build, uint64_t clusters, uint64_t *place)
{
    int rc = 0;
    *place = build->next << build->cluster_bits;
    for (uint64_t i = 0; i < clusters && rc == 0; i++)
        rc = count(build, build->next++);
    return rc;
}

int ss_build_open(struct ss_qcow2_build *build, int fd, uint64_t size, uint32_t cluster_bits,
                  enum ss_packing packing, int level)
{
    memset(build, 0, sizeof *build);
    if (cluster_bits < QCOW2_MIN_BITS || cluster_bits > QCOW2_MAX_BITS || size % 512 != 0 ||
        size > INT64_MAX)
        return -EINVAL;
    build->fd = fd;
    build->size = size;
    build->cluster_bits = cluster_bits;
    build->cluster_size = (uint64_t)1 << cluster_bits;
    build->packing = packing;
    build->l1_size = div_up(size, build->cluster_size << (cluster_bits - 3));
    build->table_index = UINT64_MAX;
    if (build->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return -EFBIG;
    build->l1 = calloc(build->l1_size + 1, 8);
    build->table = malloc(build->cluster_size);
    build->packed = malloc(build->cluster_size);
    build->piece = malloc(PIECE);
    if (build->l1 == NULL || build->table == NULL || build->packed == NULL || build->piece == NULL)
        return -ENOMEM;
    int rc = ss_packer_open(&build->packer, packing == SS_PACK_ZSTD, level);
    uint64_t header, row = div_up(build->l1_size * 8, build->cluster_size);
    if (rc == 0)
        rc = take(build, 1, &header);
    if (rc == 0)
        rc = take(build, row == 0 ? 1 : row, &build->l1_place);
    return rc;
}

static int flush_table(struct ss_qcow2_build *build)
{
    uint64_t place;
    if (build->table_index == UINT64_MAX)
        return 0;
    int rc = take(build, 1, &place);
    if (rc == 0)
        rc = ss_write_at(build->fd, build->table, build->cluster_size, place);
    build->l1[build->table_index] = place | QCOW2_COPIED;
    return rc;
}

static int set_entry(struct ss_qcow2_build *build, uint64_t guest, uint64_t entry)
{
    uint64_t entries = build->cluster_size / 8, index = guest / entries;
    int rc = 0;
    if (index != build->table_index) {
        rc = flush_table(build);
        memset(build->table, 0, build->cluster_size);
        build->table_index = index;
    }
    qcow2_put64(build->table + guest % entries * 8, entry);
    return rc;
}

/* A place for `length` compressed bytes, behind the last ones if that can be. */
static int packed_place(struct ss_qcow2_build *build, uint64_t length, uint64_t *place)
{
    uint64_t ignored;
    int rc = 0;

    if (build->packed_at != 0 &&
        build->counts[(build->packed_at - 1) >> build->cluster_bits] == MOST_COUNT)
        build->packed_at = build->packed_end = 0;
    if (build->packed_end - build->packed_at < length) {
        bool goes_on = build->packed_end != 0 &&
                       build->packed_end >> build->cluster_bits == build->next;
        if (!goes_on)
            build->packed_at = build->next << build->cluster_bits;
        rc = take(build, 1, &ignored);
        build->packed_end = build->next << build->cluster_bits;
        /* What counts is who uses it. */
        build->counts[build->next - 1]--;
    }
    *place = build->packed_at;
    build->packed_at += length;
    return rc;
}

static int put_packed(struct ss_qcow2_build *build, uint64_t guest, uint64_t length)
{
    uint64_t place, bits = 62 - (build->cluster_bits - 8);
    int rc = packed_place(build, length, &place);
    uint64_t last = place + length - 1, sectors = last / 512 - place / 512;

    if (place >> bits != 0 || place > QCOW2_OFFSET)
        return -EFBIG;
    for (uint64_t i = place >> build->cluster_bits; i <= last >> build->cluster_bits && rc == 0; i++)
        rc = count(build, i);
    if (rc == 0)
        rc = ss_write_at(build->fd, build->packed, length, place);
    return rc < 0 ? rc : set_entry(build, guest, QCOW2_PACKED | sectors << bits | place);
}

static int put_plain(struct ss_qcow2_build *build, uint64_t guest, const uint8_t *data,
                     uint64_t clusters)
{
    uint64_t place;
    /* Tables come first, so that the data is of one piece. */
    uint64_t entries = build->cluster_size / 8;
    while (clusters > 0) {
        uint64_t part = entries - guest % entries < clusters ? entries - guest % entries : clusters;
        int rc = 0;
        if (guest / entries != build->table_index)
            rc = set_entry(build, guest, 0);
        if (rc == 0)
            rc = take(build, part, &place);
        if (rc == 0)
            rc = ss_write_at(build->fd, data, part << build->cluster_bits, place);
        for (uint64_t i = 0; i < part && rc == 0; i++)
            rc = set_entry(build, guest + i, (place + (i << build->cluster_bits)) | QCOW2_COPIED);
        if (rc < 0)
            return rc;
        guest += part;
        clusters -= part;
        data += part << build->cluster_bits;
    }
    return 0;
}

static int put_whole(struct ss_qcow2_build *build, uint64_t guest, const uint8_t *data,
                     uint64_t clusters)
{
    uint64_t size = build->cluster_size, first = 0;

    for (uint64_t i = 0; i <= clusters; i++) {
        int64_t packed = 0;
        int rc = 0;
        bool zero = i == clusters || all_zeros(data + i * size, size);
        if (!zero && build->packing != SS_PACK_NONE)
            packed = ss_packer_pack(&build->packer, data + i * size, size, build->packed, size - 1);
        if (packed < 0)
            return (int)packed;
        if (!zero && packed == 0)
            continue; /* plain ones go out together */
        /* Entries are set in the disk's order: a table that was left is written. */
        if (first < i)
            rc = put_plain(build, guest + first, data + first * size, i - first);
        if (rc == 0 && packed > 0)
            rc = put_packed(build, guest + i, (uint64_t)packed);
        if (rc < 0)
            return rc;
        first = i + 1;
    }
    return 0;
}

int ss_build_put(struct ss_qcow2_build *build, uint64_t offset, const uint8_t *data,
                 uint64_t length)
{
    uint64_t size = build->cluster_size;

    if (offset % size != 0 || offset > build->size || length > build->size - offset ||
        (length % size != 0 && offset + length != build->size))
        return -EINVAL;
    uint64_t whole = length / size, rest = length % size;
    int rc = put_whole(build, offset / size, data, whole);
    if (rc < 0 || rest == 0)
        return rc;
    uint8_t *last = calloc(1, size);
    if (last == NULL)
        return -ENOMEM;
    memcpy(last, data + whole * size, rest);
    rc = put_whole(build, offset / size + whole, last, 1);
    free(last);
    return rc;
}

int ss_build_view(struct ss_qcow2_build *build, struct ss_view *view, uint64_t *offset,
                  uint64_t most)
{
    uint64_t size = build->cluster_size, done = 0;

    while (*offset < view->size && done < most) {
        struct ss_run run;
        int rc = ss_view_map(view, *offset, view->size - *offset, &run);
        if (rc < 0)
            return rc;
        uint64_t end = run.offset + run.length;
        if ((run.kind == SS_RUN_HOLE || run.kind == SS_RUN_ZERO) &&
            (end == view->size || end / size > *offset / size)) {
            *offset = end == view->size ? end : end - end % size;
            done += size; /* looking costs time too */
            continue;
        }
        uint64_t length = view->size - *offset < PIECE ? view->size - *offset : PIECE;
        uint64_t want = div_up(end - *offset, size) * size;
        if (want < length)
            length = want;
        rc = ss_view_read(view, *offset, build->piece, length);
        if (rc == 0)
            rc = ss_build_put(build, *offset, build->piece, length);
        if (rc < 0)
            return rc;
        *offset += length;
        done += length;
    }
    return 0;
}

static int write_counts(struct ss_qcow2_build *build, uint64_t *table, uint64_t *row)
{
    uint64_t in_block = build->cluster_size / 2, blocks = 1, first;
    int rc = 0;

    *row = 1;
    for (;;) {
        uint64_t total = build->next + blocks + *row;
        uint64_t want = div_up(total, in_block), want_row = div_up(want * 8, build->cluster_size);
        if (want <= blocks && want_row <= *row)
            break;
        blocks = want;
        *row = want_row;
    }
    if (*row > QCOW2_MAX_REFCOUNT_TABLE >> build->cluster_bits)
        return -EFBIG;
    rc = take(build, *row, table);
    if (rc == 0)
        rc = take(build, blocks, &first);
    for (uint64_t i = 0; i < blocks && rc == 0; i++) {
        memset(build->table, 0, build->cluster_size);
        for (uint64_t j = 0; j < in_block && i * in_block + j < build->next; j++)
            qcow2_put16(build->table + j * 2, build->counts[i * in_block + j]);
        rc = ss_write_at(build->fd, build->table, build->cluster_size,
                         first + (i << build->cluster_bits));
    }
    uint8_t *entries = calloc(*row, build->cluster_size);
    if (entries == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < blocks; i++)
        qcow2_put64(entries + i * 8, first + (i << build->cluster_bits));
    if (rc == 0)
        rc = ss_write_at(build->fd, entries, *row << build->cluster_bits, *table);
    free(entries);
    return rc;
}

int ss_build_finish(struct ss_qcow2_build *build)
{
    uint8_t header[128] = {0};
    uint64_t table, row;
    int rc = flush_table(build);

    if (rc == 0)
        rc = write_counts(build, &table, &row);
    if (rc < 0)
        return rc;
    for (uint64_t i = 0; i < build->l1_size; i++)
        build->l1[i] = htobe64(build->l1[i]);
    rc = ss_write_at(build->fd, build->l1, build->l1_size * 8, build->l1_place);
    qcow2_put32(header, QCOW2_MAGIC);
    qcow2_put32(header + 4, 3);
    qcow2_put32(header + 20, build->cluster_bits);
    qcow2_put64(header + 24, build->size);
    qcow2_put32(header + 36, (uint32_t)build->l1_size);
    qcow2_put64(header + 40, build->l1_place);
    qcow2_put64(header + 48, table);
    qcow2_put32(header + 56, (uint32_t)row);
    if (build->packing == SS_PACK_ZSTD) {
        qcow2_put64(header + 72, QCOW2_COMPRESSION);
        header[104] = 1;
    }
    qcow2_put32(header + 96, 4);
    qcow2_put32(header + 100, 112);
    if (rc == 0)
        rc = ss_write_at(build->fd, header, sizeof header, 0);
    if (rc == 0 && ftruncate(build->fd, (off_t)(build->next << build->cluster_bits)) < 0)
        rc = -errno;
    return rc;
}

void ss_build_close(struct ss_qcow2_build *build)
{
    ss_packer_close(&build->packer);
    free(build->l1);
    free(build->table);
    free(build->packed);
    free(build->piece);
    free(build->counts);
    memset(build, 0, sizeof *build);
}

static int write_pages(int fd, const uint8_t *data, uint64_t length, uint64_t offset)
{
    uint64_t first = 0;
    for (uint64_t at = 0; at <= length; at += PAGE) {
        uint64_t part = length - at < PAGE ? length - at : PAGE;
        if (part > 0 && !all_zeros(data + at, part))
            continue;
        if (first < at) {
            uint64_t end = at < length ? at : length;
            int rc = ss_write_at(fd, data + first, end - first, offset + first);
            if (rc < 0)
                return rc;
        }
        first = at + PAGE;
    }
    return first < length ? ss_write_at(fd, data + first, length - first, offset + first) : 0;
}

int ss_flatten_raw(int fd, struct ss_view *view, uint64_t *offset, uint64_t most)
{
    uint8_t *piece = malloc(PIECE);
    uint64_t done = 0;
    int rc = piece == NULL ? -ENOMEM : 0;

    while (rc == 0 && *offset < view->size && done < most) {
        struct ss_run run;
        rc = ss_view_map(view, *offset, view->size - *offset, &run);
        if (rc < 0)
            break;
        uint64_t length = run.length < PIECE ? run.length : PIECE;
        if (run.kind == SS_RUN_HOLE || run.kind == SS_RUN_ZERO) {
            *offset += run.length;
            done += PAGE;
            continue;
        }
        rc = ss_view_read(view, *offset, piece, length);
        if (rc == 0)
            rc = write_pages(fd, piece, length, *offset);
        *offset += length;
        done += length;
    }
    free(piece);
    return rc;
}
