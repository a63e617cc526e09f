/* The header of a qcow2 image, its extensions and directories; see qcow2.h. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2_table.h"

int ss_qcow2_fail(struct ss_qcow2 *image, int error, const char *problem, uint64_t at)
{
    image->problem = problem;
    image->problem_at = at;
    return error;
}

int64_t ss_read_at(int fd, void *out, uint64_t length, uint64_t offset)
{
    uint64_t done = 0;
    while (done < length) {
        if (offset + done > INT64_MAX)
            break;
        ssize_t got = pread(fd, (uint8_t *)out + done, length - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (uint64_t)got;
    }
    return (int64_t)done;
}

int ss_write_at(int fd, const void *data, uint64_t length, uint64_t offset)
{
    uint64_t done = 0;
    while (done < length) {
        ssize_t put =
            pwrite(fd, (const uint8_t *)data + done, length - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        done += (uint64_t)put;
    }
    return 0;
}

bool ss_qcow2_table_fits(const struct ss_qcow2 *image, uint64_t offset, uint64_t length)
{
    return offset % image->cluster_size == 0 && offset > 0 && offset <= image->file_size &&
           length <= image->file_size - offset;
}

int ss_qcow2_load(struct ss_qcow2 *image, uint64_t offset, uint64_t count, uint64_t **table)
{
    if (!ss_qcow2_table_fits(image, offset, count * 8))
        return ss_qcow2_fail(image, -EUCLEAN, "a table is not inside the file", offset);
    uint64_t *entries = malloc(count * 8 + 8);
    if (entries == NULL)
        return -ENOMEM;
    int64_t got = ss_read_at(image->fd, entries, count * 8, offset);
    if (got != (int64_t)(count * 8)) {
        free(entries);
        return got < 0 ? (int)got : -EIO;
    }
    for (uint64_t i = 0; i < count; i++)
        entries[i] = be64toh(entries[i]);
    *table = entries;
    return 0;
}

static int read_extensions(struct ss_qcow2 *image, const uint8_t *area, uint64_t end)
{
    uint64_t at = image->header_length;
    bool bitmaps = false;

    if (image->backing_offset != 0 && image->backing_offset < end)
        end = image->backing_offset;
    while (at + 8 <= end) {
        uint32_t type = qcow2_get32(area + at), length = qcow2_get32(area + at + 4);
        const uint8_t *data = area + at + 8;
        if (type == QCOW2_EXT_END)
            break;
        if (length > end - at - 8)
            return ss_qcow2_fail(image, -EUCLEAN, "a header extension is too long", at);
        if (type == QCOW2_EXT_BACKING_FORMAT) {
            if (length >= sizeof image->backing_format)
                return ss_qcow2_fail(image, -EUCLEAN, "the backing format's name is too long", at);
            memcpy(image->backing_format, data, length);
            image->backing_format_length = length;
        } else if (type == QCOW2_EXT_BITMAPS && (image->autoclear & QCOW2_BITMAPS) != 0) {
            if (length != 24 || bitmaps)
                return ss_qcow2_fail(image, -EUCLEAN, "the bitmaps extension is damaged", at);
            bitmaps = true;
            image->bitmaps_extension = at + 8;
            image->bitmap_count = qcow2_get32(data);
            image->bitmaps_length = qcow2_get64(data + 8);
            image->bitmaps_offset = qcow2_get64(data + 16);
            if (image->bitmap_count == 0 || image->bitmap_count > QCOW2_MAX_BITMAPS ||
                image->bitmaps_length > QCOW2_MAX_BITMAP_DIRECTORY)
                return ss_qcow2_fail(image, -EUCLEAN, "the bitmaps extension is damaged", at);
        }
        at += 8 + ((uint64_t)length + 7) / 8 * 8;
    }
    return 0;
}

static int read_features(struct ss_qcow2 *image, const uint8_t *header, uint64_t got)
{
    image->header_length = QCOW2_HEADER_V2;
    image->refcount_order = 4;
    if (image->version == 2)
        return 0;
    if (got < QCOW2_HEADER_V3)
        return ss_qcow2_fail(image, -EUCLEAN, "the header is cut off", got);
    image->incompatible = qcow2_get64(header + 72);
    image->compatible = qcow2_get64(header + 80);
    image->autoclear = qcow2_get64(header + 88);
    image->refcount_order = qcow2_get32(header + 96);
    image->header_length = qcow2_get32(header + 100);
    if (image->header_length < QCOW2_HEADER_V3 || image->header_length % 8 != 0 ||
        image->header_length > got || image->header_length > image->cluster_size)
        return ss_qcow2_fail(image, -EUCLEAN, "the header's length is wrong",
                             image->header_length);
    if ((image->incompatible & QCOW2_DATA_FILE) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "its data is in another file", 0);
    if ((image->incompatible & ~(QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_COMPRESSION |
                                 QCOW2_EXTENDED_L2)) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "it has an unknown feature", image->incompatible);
    if (image->refcount_order > 6)
        return ss_qcow2_fail(image, -EUCLEAN, "the width of reference counts is wrong",
                             image->refcount_order);
    uint8_t compression = image->header_length > 104 ? header[104] : 0;
    if ((compression != 0) != ((image->incompatible & QCOW2_COMPRESSION) != 0))
        return ss_qcow2_fail(image, -EUCLEAN, "the compression type contradicts its feature bit",
                             compression);
    if (compression > 1)
        return ss_qcow2_fail(image, -ENOTSUP, "its compression type is unknown", compression);
    image->zstd = compression == 1;
    image->extended = (image->incompatible & QCOW2_EXTENDED_L2) != 0;
    if (image->extended && image->cluster_bits < QCOW2_MIN_BITS_EXTENDED)
        return ss_qcow2_fail(image, -EUCLEAN, "its clusters are too small for subclusters",
                             image->cluster_bits);
    return 0;
}

static int read_header(struct ss_qcow2 *image, const uint8_t *header, uint64_t got)
{
    if (got < 4 || qcow2_get32(header) != QCOW2_MAGIC)
        return ss_qcow2_fail(image, -EINVAL, "it is not a qcow2 image", 0);
    if (got < QCOW2_HEADER_V2)
        return ss_qcow2_fail(image, -EUCLEAN, "the header is cut off", got);
    image->version = qcow2_get32(header + 4);
    if (image->version != 2 && image->version != 3)
        return ss_qcow2_fail(image, -ENOTSUP, "its version is not 2 or 3", image->version);
    image->backing_offset = qcow2_get64(header + 8);
    image->backing_length = image->backing_offset == 0 ? 0 : qcow2_get32(header + 16);
    image->cluster_bits = qcow2_get32(header + 20);
    if (image->cluster_bits < QCOW2_MIN_BITS || image->cluster_bits > QCOW2_MAX_BITS)
        return ss_qcow2_fail(image, -ENOTSUP, "its clusters are not of 512 bytes to 2 MiB",
                             image->cluster_bits);
    image->cluster_size = (uint64_t)1 << image->cluster_bits;
    image->size = qcow2_get64(header + 24);
    if (image->size > INT64_MAX - image->cluster_size)
        return ss_qcow2_fail(image, -EFBIG, "its disk is too large", image->size);
    if (qcow2_get32(header + 32) != 0)
        return ss_qcow2_fail(image, -ENOTSUP, "it is encrypted", 0);
    image->l1_size = qcow2_get32(header + 36);
    image->l1_offset = qcow2_get64(header + 40);
    image->refcount_offset = qcow2_get64(header + 48);
    image->refcount_clusters = qcow2_get32(header + 56);
    image->snapshot_count = qcow2_get32(header + 60);
    image->snapshots_offset = qcow2_get64(header + 64);
    int rc = read_features(image, header, got);
    if (rc < 0)
        return rc;
    image->entry_size = image->extended ? 16 : 8;
    image->l2_bits = image->cluster_bits - (image->extended ? 4 : 3);
    return 0;
}

static int check_tables(struct ss_qcow2 *image)
{
    uint64_t covers = image->cluster_size << image->l2_bits;
    uint64_t needed = image->size / covers + (image->size % covers != 0);

    if (image->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return ss_qcow2_fail(image, -EFBIG, "its L1 table is too large", image->l1_size);
    if (image->l1_size < needed)
        return ss_qcow2_fail(image, -EUCLEAN, "its L1 table is too small for the disk",
                             image->l1_size);
    if (image->refcount_clusters > QCOW2_MAX_REFCOUNT_TABLE >> image->cluster_bits)
        return ss_qcow2_fail(image, -EFBIG, "its table of reference counts is too large",
                             image->refcount_clusters);
    if (image->snapshot_count > QCOW2_MAX_SNAPSHOTS)
        return ss_qcow2_fail(image, -EFBIG, "it has too many snapshots", image->snapshot_count);
    return 0;
}

static int read_names(struct ss_qcow2 *image, const uint8_t *area, uint64_t got)
{
    if (image->backing_offset != 0) {
        if (image->backing_length > QCOW2_MAX_BACKING_NAME ||
            image->backing_offset > image->cluster_size ||
            image->backing_length > image->cluster_size - image->backing_offset ||
            image->backing_offset < image->header_length)
            return ss_qcow2_fail(image, -EUCLEAN, "the backing file's name is out of place",
                                 image->backing_offset);
        if (image->backing_offset + image->backing_length > got)
            return ss_qcow2_fail(image, -EUCLEAN, "the header is cut off", got);
        memcpy(image->backing, area + image->backing_offset, image->backing_length);
        if (memchr(image->backing, 0, image->backing_length) != NULL)
            return ss_qcow2_fail(image, -EUCLEAN, "the backing file's name has a NUL in it",
                                 image->backing_offset);
    }
    return read_extensions(image, area, got < image->cluster_size ? got : image->cluster_size);
}

int ss_qcow2_open(struct ss_qcow2 *image, int fd)
{
    struct stat status;
    uint8_t header[256];

    memset(image, 0, sizeof *image);
    image->fd = fd;
    if (fstat(fd, &status) < 0)
        return -errno;
    off_t end = S_ISBLK(status.st_mode) ? lseek(fd, 0, SEEK_END) : status.st_size;
    if (end < 0)
        return -errno;
    image->file_size = (uint64_t)end;
    int64_t got = ss_read_at(fd, header, sizeof header, 0);
    if (got < 0)
        return (int)got;
    int rc = read_header(image, header, (uint64_t)got);
    if (rc == 0)
        rc = check_tables(image);
    if (rc < 0)
        return rc;
    uint8_t *area = malloc(image->cluster_size);
    if (area == NULL)
        return -ENOMEM;
    got = ss_read_at(fd, area, image->cluster_size, 0);
    rc = got < 0 ? (int)got : read_names(image, area, (uint64_t)got);
    free(area);
    if (rc == 0 && image->l1_size > 0)
        rc = ss_qcow2_load(image, image->l1_offset, image->l1_size, &image->l1);
    if (rc == 0)
        rc = ss_qcow2_load_snapshots(image);
    if (rc == 0)
        rc = ss_qcow2_load_bitmaps(image);
    if (rc < 0) {
        const char *problem = image->problem;
        uint64_t at = image->problem_at;
        ss_qcow2_close(image);
        ss_qcow2_fail(image, rc, problem, at);
    }
    return rc;
}

static int one_snapshot(struct ss_qcow2 *image, const uint8_t *table, uint64_t length,
                        uint64_t *at, struct ss_qcow2_snapshot *snapshot)
{
    const uint8_t *entry = table + *at;
    uint64_t start = *at;

    if (length - start < 40)
        return ss_qcow2_fail(image, -EUCLEAN, "the table of snapshots is cut off", start);
    uint32_t extra = qcow2_get32(entry + 36);
    snapshot->place = start;
    snapshot->l1_offset = qcow2_get64(entry);
    snapshot->l1_size = qcow2_get32(entry + 8);
    snapshot->id_length = qcow2_get16(entry + 12);
    snapshot->name_length = qcow2_get16(entry + 14);
    snapshot->seconds = qcow2_get32(entry + 16);
    snapshot->nanoseconds = qcow2_get32(entry + 20);
    snapshot->vm_clock_ns = qcow2_get64(entry + 24);
    snapshot->vm_state_size = qcow2_get32(entry + 32);
    snapshot->size = image->size;
    if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
        return ss_qcow2_fail(image, -EFBIG, "a snapshot has too much extra data", extra);
    uint64_t names = start + 40 + extra;
    uint64_t end = names + snapshot->id_length + snapshot->name_length;
    if (end > length)
        return ss_qcow2_fail(image, -EUCLEAN, "the table of snapshots is cut off", start);
    if (extra >= 8)
        snapshot->vm_state_size = qcow2_get64(entry + 40);
    if (extra >= 16)
        snapshot->size = qcow2_get64(entry + 48);
    if (snapshot->size > INT64_MAX - image->cluster_size)
        return ss_qcow2_fail(image, -EFBIG, "a snapshot's disk is too large", snapshot->size);
    if (snapshot->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return ss_qcow2_fail(image, -EFBIG, "a snapshot's L1 table is too large",
                             snapshot->l1_size);
    if (snapshot->l1_size > 0 &&
        !ss_qcow2_table_fits(image, snapshot->l1_offset, (uint64_t)snapshot->l1_size * 8))
        return ss_qcow2_fail(image, -EUCLEAN, "a snapshot's L1 table is not inside the file",
                             snapshot->l1_offset);
    snapshot->id = (const char *)table + names;
    snapshot->name = snapshot->id + snapshot->id_length;
    *at = (end + 7) / 8 * 8;
    if (*at > length)
        *at = length;
    return 0;
}

int ss_qcow2_load_snapshots(struct ss_qcow2 *image)
{
    if (image->snapshot_count == 0)
        return 0;
    if (!ss_qcow2_table_fits(image, image->snapshots_offset, 40))
        return ss_qcow2_fail(image, -EUCLEAN, "the table of snapshots is not inside the file",
                             image->snapshots_offset);
    uint64_t room = (uint64_t)image->snapshot_count * (40 + QCOW2_MAX_SNAPSHOT_EXTRA + 131072);
    uint64_t left = image->file_size - image->snapshots_offset;
    if (room > left)
        room = left;
    if (room > QCOW2_MAX_SNAPSHOT_TABLE)
        room = QCOW2_MAX_SNAPSHOT_TABLE;
    if (room / 40 < image->snapshot_count)
        return ss_qcow2_fail(image, -EUCLEAN, "the table of snapshots is cut off",
                             image->snapshot_count);
    image->snapshot_table = malloc(room);
    image->snapshots = calloc(image->snapshot_count, sizeof *image->snapshots);
    if (image->snapshot_table == NULL || image->snapshots == NULL)
        return -ENOMEM;
    int64_t got = ss_read_at(image->fd, image->snapshot_table, room, image->snapshots_offset);
    if (got < 0)
        return (int)got;
    uint64_t at = 0, entries = 0;
    for (uint32_t i = 0; i < image->snapshot_count; i++) {
        int rc = one_snapshot(image, image->snapshot_table, (uint64_t)got, &at,
                              &image->snapshots[i]);
        if (rc < 0)
            return rc;
        entries += image->snapshots[i].l1_size;
    }
    if (entries > QCOW2_MAX_TABLES)
        return ss_qcow2_fail(image, -EFBIG, "its snapshots have too large L1 tables", entries);
    image->snapshots_length = at;
    return 0;
}

void ss_qcow2_close(struct ss_qcow2 *image)
{
    for (uint32_t i = 0; image->snapshots != NULL && i < image->snapshot_count; i++)
        free(image->snapshots[i].l1);
    ss_qcow2_free_unpacker(image);
    free(image->l1);
    free(image->snapshots);
    free(image->snapshot_table);
    free(image->bitmaps);
    free(image->bitmap_directory);
    free(image->slice_keys);
    free(image->slices);
    memset(image, 0, sizeof *image);
    image->fd = -1;
}
