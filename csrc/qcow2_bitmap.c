/* Persistent bitmaps of a qcow2 image; see qcow2.h. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2_table.h"

enum { IN_USE = 1, KNOWN_FLAGS = 7, EXTRA_COMPATIBLE = 4, DIRTY_TRACKING = 1, WINDOW = 4096 };

static int one_bitmap(struct ss_qcow2 *image, uint64_t *at, struct ss_qcow2_bitmap *bitmap)
{
    const uint8_t *entry = image->bitmap_directory + *at;
    uint64_t left = image->bitmaps_length - *at;

    if (left < 24)
        return ss_qcow2_fail(image, -EUCLEAN, "the directory of bitmaps is cut off", *at);
    bitmap->place = *at;
    bitmap->table_offset = qcow2_get64(entry);
    bitmap->table_size = qcow2_get32(entry + 8);
    bitmap->flags = qcow2_get32(entry + 12);
    bitmap->granularity_bits = entry[17];
    bitmap->name_length = qcow2_get16(entry + 18);
    uint64_t extra = qcow2_get32(entry + 20);
    uint64_t length = (24 + extra + bitmap->name_length + 7) / 8 * 8;
    if (length > left || bitmap->name_length == 0)
        return ss_qcow2_fail(image, -EUCLEAN, "the directory of bitmaps is cut off", *at);
    if (bitmap->granularity_bits < 9 || bitmap->granularity_bits > 31)
        return ss_qcow2_fail(image, -EUCLEAN, "a bitmap's granularity is wrong",
                             bitmap->granularity_bits);
    uint64_t bits = (image->size + ((uint64_t)1 << bitmap->granularity_bits) - 1) >>
                    bitmap->granularity_bits;
    uint64_t clusters = ((bits + 7) / 8 + image->cluster_size - 1) >> image->cluster_bits;
    if (bitmap->table_size > QCOW2_MAX_BITMAP_TABLE)
        return ss_qcow2_fail(image, -EFBIG, "a bitmap's table is too large", bitmap->table_size);
    if (bitmap->table_size > 0 &&
        !ss_qcow2_table_fits(image, bitmap->table_offset, (uint64_t)bitmap->table_size * 8))
        return ss_qcow2_fail(image, -EUCLEAN, "a bitmap's table is not inside the file",
                             bitmap->table_offset);
    bitmap->name = (const char *)entry + 24 + extra;
    /* One in use was not saved, and may have another size than the disk. */
    bitmap->usable = (bitmap->flags & IN_USE) == 0 && (bitmap->flags & ~(uint32_t)KNOWN_FLAGS) == 0 &&
                     entry[16] == DIRTY_TRACKING && bitmap->table_size == clusters &&
                     (extra == 0 || (bitmap->flags & EXTRA_COMPATIBLE) != 0);
    *at += length;
    return 0;
}

int ss_qcow2_load_bitmaps(struct ss_qcow2 *image)
{
    if (image->bitmap_count == 0)
        return 0;
    if (!ss_qcow2_table_fits(image, image->bitmaps_offset, image->bitmaps_length) ||
        image->bitmaps_length / 24 < image->bitmap_count)
        return ss_qcow2_fail(image, -EUCLEAN, "the directory of bitmaps is not inside the file",
                             image->bitmaps_offset);
    image->bitmap_directory = malloc(image->bitmaps_length);
    image->bitmaps = calloc(image->bitmap_count, sizeof *image->bitmaps);
    if (image->bitmap_directory == NULL || image->bitmaps == NULL)
        return -ENOMEM;
    int64_t got = ss_read_at(image->fd, image->bitmap_directory, image->bitmaps_length,
                             image->bitmaps_offset);
    if (got != (int64_t)image->bitmaps_length)
        return got < 0 ? (int)got : -EIO;
    uint64_t at = 0, entries = 0;
    for (uint32_t i = 0; i < image->bitmap_count; i++) {
        int rc = one_bitmap(image, &at, &image->bitmaps[i]);
        if (rc < 0)
            return rc;
        entries += image->bitmaps[i].table_size;
    }
    if (entries > QCOW2_MAX_TABLES)
        return ss_qcow2_fail(image, -EFBIG, "its bitmaps have too large tables", entries);
    return 0;
}

/* A walk through the bits: whole clusters of zeros or ones are passed in one step. */
struct walk {
    struct ss_qcow2 *image;
    const struct ss_qcow2_bitmap *bitmap;
    uint64_t cluster_bits;       /* bits in one cluster of its data */
    uint64_t window;             /* first bit of `bytes`, or UINT64_MAX */
    uint64_t entry, entry_index; /* the entry of the table read last */
    uint8_t bytes[WINDOW];
};

static int table_entry(struct walk *walk, uint64_t index)
{
    uint8_t raw[8];
    if (index == walk->entry_index)
        return 0;
    int64_t got = ss_read_at(walk->image->fd, raw, 8, walk->bitmap->table_offset + index * 8);
    if (got != 8)
        return got < 0 ? (int)got : -EIO;
    walk->entry = qcow2_get64(raw);
    walk->entry_index = index;
    uint64_t offset = walk->entry & QCOW2_OFFSET;
    if ((walk->entry & ~(QCOW2_OFFSET | 1)) != 0 || (offset != 0 && (walk->entry & 1) != 0) ||
        (offset != 0 && !ss_qcow2_table_fits(walk->image, offset, walk->image->cluster_size)))
        return ss_qcow2_fail(walk->image, -EUCLEAN, "an entry of a bitmap's table is wrong",
                             walk->entry);
    return 0;
}

/* Passes bits that are not `wanted` from `*bit` on, up to `end`. */
static int pass(struct walk *walk, uint64_t *bit, uint64_t end, bool wanted)
{
    while (*bit < end) {
        uint64_t index = *bit / walk->cluster_bits;
        uint64_t stop = (index + 1) * walk->cluster_bits;
        int rc = table_entry(walk, index);
        if (rc < 0)
            return rc;
        uint64_t offset = walk->entry & QCOW2_OFFSET;
        if (offset == 0) {
            if (((walk->entry & 1) != 0) == wanted)
                return 0;
            *bit = stop < end ? stop : end;
            continue;
        }
        uint64_t room = walk->image->cluster_size < WINDOW ? walk->image->cluster_size : WINDOW;
        uint64_t first = *bit / (room * 8) * (room * 8);
        if (walk->window != first) {
            int64_t got = ss_read_at(walk->image->fd, walk->bytes, room,
                                     offset + first % walk->cluster_bits / 8);
            if (got != (int64_t)room)
                return got < 0 ? (int)got : -EIO;
            walk->window = first;
        }
        stop = first + room * 8 < end ? first + room * 8 : end;
        uint8_t dull = wanted ? 0 : 0xff;
        while (*bit < stop) {
            uint8_t byte = walk->bytes[(*bit - first) / 8];
            if (*bit % 8 == 0 && byte == dull && stop - *bit >= 8) {
                *bit += 8;
                continue;
            }
            if (((byte >> (*bit % 8)) & 1) == wanted)
                return 0;
            ++*bit;
        }
    }
    return 0;
}

int ss_qcow2_dirty(struct ss_qcow2 *image, uint32_t bitmap, uint64_t offset, struct ss_run *run)
{
    if (bitmap >= image->bitmap_count || !image->bitmaps[bitmap].usable)
        return ss_qcow2_fail(image, -EINVAL, "it has no such usable bitmap", bitmap);
    const struct ss_qcow2_bitmap *about = &image->bitmaps[bitmap];
    uint32_t shift = about->granularity_bits;
    uint64_t bits = (image->size + ((uint64_t)1 << shift) - 1) >> shift;
    struct walk walk = {.image = image, .bitmap = about,
                        .cluster_bits = image->cluster_size * 8, .window = UINT64_MAX,
                        .entry_index = UINT64_MAX};
    uint64_t from = offset >> shift;
    int rc = pass(&walk, &from, bits, true);
    if (rc < 0 || from >= bits)
        return rc;
    uint64_t to = from;
    if ((rc = pass(&walk, &to, bits, false)) < 0)
        return rc;
    uint64_t start = from << shift, end = to << shift;
    run->offset = start < offset ? offset : start;
    if (end > image->size)
        end = image->size;
    if (run->offset >= end)
        return 0;
    run->length = end - run->offset;
    run->kind = SS_RUN_DATA;
    run->host = 0;
    run->layer = 0;
    return 1;
}
