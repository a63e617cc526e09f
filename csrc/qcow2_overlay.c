/* A qcow2 overlay in one go; see qcow2_overlay.h. */
#include "qcow2_overlay.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define CLUSTER ((uint64_t)SS_QCOW2_CLUSTER)
#define L1_COVERS (CLUSTER / 16 * CLUSTER) /* bytes of disk behind one L2 table */
#define COPIED ((uint64_t)1 << 63)         /* the reference count is exactly one */
#define MAX_CLUSTERS ((uint32_t)(CLUSTER / 2)) /* what one block of reference counts covers */
#define EXTENDED_L2 ((uint64_t)1 << 4)

enum { MAX_PIECES = 256 };

struct header {
    uint32_t magic, version;
    uint64_t backing_offset;
    uint32_t backing_size, cluster_bits;
    uint64_t size;
    uint32_t crypt, l1_size;
    uint64_t l1_offset, refcount_offset;
    uint32_t refcount_clusters, snapshots;
    uint64_t snapshots_offset, incompatible, compatible, autoclear;
    uint32_t refcount_order, header_length;
    uint32_t backing_format_type, backing_format_length; /* the first header extension */
    char backing_format[8];
    uint32_t end_type, end_length;
};
_Static_assert(sizeof(struct header) == 104 + 16 + 8, "qcow2 header");

struct l2_entry {
    uint64_t cluster, subclusters; /* offset in the file; low half: which 2 KiB are here */
};

/* Where the parts of the file are, in clusters: 0 header, 1 table and 2 block of counts. */
struct plan {
    uint64_t size, l1_entries;
    uint32_t l1, l2, data, total;
};

/* Pieces that follow each other in the file go out together. */
struct output {
    int fd;
    int error;
    uint64_t offset, end, written;
    struct iovec pieces[MAX_PIECES];
    int count;
};

static void flush(struct output *out)
{
    struct iovec *piece = out->pieces;
    while (out->count > 0 && out->error == 0) {
        ssize_t got = pwritev(out->fd, piece, out->count, (off_t)out->offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            out->error = got < 0 ? -errno : -EIO;
            break;
        }
        out->offset += (uint64_t)got;
        out->written += (uint64_t)got;
        while (out->count > 0 && (size_t)got >= piece->iov_len) {
            got -= (ssize_t)piece->iov_len;
            piece++;
            out->count--;
        }
        if (out->count > 0) {
            piece->iov_base = (uint8_t *)piece->iov_base + got;
            piece->iov_len -= (size_t)got;
        }
    }
    out->count = 0;
}

/* `data` must stay until the next flush. */
static void put(struct output *out, uint64_t offset, const void *data, size_t length)
{
    if (out->count > 0 && (offset != out->end || out->count == MAX_PIECES))
        flush(out);
    if (out->count == 0)
        out->offset = offset;
    out->pieces[out->count++] = (struct iovec){(void *)(uintptr_t)data, length};
    out->end = offset + length;
}

static int check(const struct ss_change *changes, uint32_t count, uint64_t size)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct ss_change *change = &changes[i];
        if (change->offset < end || change->offset > size ||
            change->length > size - change->offset || change->length == 0 ||
            change->offset % SS_QCOW2_SUBCLUSTER != 0 ||
            change->length % SS_QCOW2_SUBCLUSTER != 0 ||
            change->offset / CLUSTER != (change->offset + change->length - 1) / CLUSTER)
            return -EINVAL;
        end = change->offset + change->length;
    }
    return 0;
}

/* Is change `i` the first in its part of `unit` bytes? */
static bool begins(const struct ss_change *changes, uint32_t i, uint64_t unit)
{
    return i == 0 || changes[i].offset / unit != changes[i - 1].offset / unit;
}

static int make_plan(struct plan *plan, const struct ss_change *changes, uint32_t count,
                     uint64_t size)
{
    uint64_t tables = 0, clusters = 0;
    for (uint32_t i = 0; i < count; i++) {
        tables += begins(changes, i, L1_COVERS);
        clusters += begins(changes, i, CLUSTER);
    }
    plan->size = size;
    plan->l1_entries = (size + L1_COVERS - 1) / L1_COVERS;
    uint64_t l1_clusters = (plan->l1_entries * 8 + CLUSTER - 1) / CLUSTER;
    uint64_t total = 3 + (l1_clusters == 0 ? 1 : l1_clusters) + tables + clusters;
    if (total > MAX_CLUSTERS)
        return -EFBIG;
    plan->total = (uint32_t)total;
    plan->data = (uint32_t)(total - clusters);
    plan->l2 = (uint32_t)(plan->data - tables);
    plan->l1 = 3;
    return 0;
}

static void put_header(struct output *out, const struct plan *plan, const char *name,
                       uint16_t *counts, uint64_t *l1)
{
    const uint64_t first_block = htobe64(2 * CLUSTER);
    struct header header = {0};

    header.magic = htonl(0x514649FB);
    header.version = htonl(3);
    header.backing_offset = htobe64(sizeof header);
    header.backing_size = htonl((uint32_t)strlen(name));
    header.cluster_bits = htonl(16);
    header.size = htobe64(plan->size);
    header.l1_size = htonl((uint32_t)plan->l1_entries);
    header.l1_offset = htobe64(plan->l1 * CLUSTER);
    header.refcount_offset = htobe64(CLUSTER);
    header.refcount_clusters = htonl(1);
    header.incompatible = htobe64(EXTENDED_L2);
    header.refcount_order = htonl(4);
    header.header_length = htonl(104);
    header.backing_format_type = htonl(0xE2792ACA);
    header.backing_format_length = htonl(3);
    memcpy(header.backing_format, "raw", 3);
    for (uint32_t i = 0; i < plan->total; i++)
        counts[i] = htons(1);
    put(out, 0, &header, sizeof header);
    put(out, sizeof header, name, strlen(name));
    put(out, CLUSTER, &first_block, sizeof first_block);
    put(out, 2 * CLUSTER, counts, plan->total * sizeof *counts);
    if (plan->l1_entries > 0)
        put(out, plan->l1 * CLUSTER, l1, plan->l1_entries * sizeof *l1);
    flush(out);
}

/* One L2 entry for every run of changes in a cluster; `entries` takes one a cluster. */
static void put_tables(struct output *out, const struct plan *plan, struct l2_entry *entries,
                       const struct ss_change *changes, uint32_t count)
{
    uint32_t table = plan->l2 - 1, cluster = plan->data - 1;
    struct l2_entry *entry = entries;

    for (uint32_t i = 0; i < count; i++) {
        if (begins(changes, i, L1_COVERS))
            table++;
        if (begins(changes, i, CLUSTER)) {
            entry = &entries[++cluster - plan->data];
            *entry = (struct l2_entry){htobe64(cluster * CLUSTER | COPIED), 0};
            put(out, table * CLUSTER + changes[i].offset % L1_COVERS / CLUSTER * sizeof *entry,
                entry, sizeof *entry);
        }
        uint32_t from = (uint32_t)(changes[i].offset % CLUSTER / SS_QCOW2_SUBCLUSTER);
        uint32_t parts = changes[i].length / SS_QCOW2_SUBCLUSTER;
        uint64_t mask = (((uint64_t)1 << parts) - 1) << from;
        entry->subclusters |= htobe64(mask);
    }
    flush(out);
}

static void put_data(struct output *out, const struct plan *plan, const struct ss_change *changes,
                     uint32_t count)
{
    uint64_t cluster = plan->data - 1;
    for (uint32_t i = 0; i < count; i++) {
        cluster += begins(changes, i, CLUSTER);
        put(out, cluster * CLUSTER + changes[i].offset % CLUSTER, changes[i].data,
            changes[i].length);
    }
    flush(out);
}

int ss_qcow2_overlay(int fd, const char *backing_name, uint64_t size,
                     const struct ss_change *changes, uint32_t count, uint64_t *written)
{
    struct output out = {.fd = fd};
    struct plan plan;
    int rc = check(changes, count, size);

    *written = 0;
    if (rc < 0 || strlen(backing_name) > SS_QCOW2_MAX_NAME || backing_name[0] == 0)
        return -EINVAL;
    if ((rc = make_plan(&plan, changes, count, size)) < 0)
        return rc;
    uint16_t *counts = malloc(plan.total * sizeof *counts);
    uint64_t *l1 = calloc(plan.l1_entries + 1, sizeof *l1);
    struct l2_entry *entries = malloc((plan.total - plan.data + 1) * sizeof *entries);
    if (counts == NULL || l1 == NULL || entries == NULL) {
        rc = -ENOMEM;
    } else if (ftruncate(fd, (off_t)(plan.total * CLUSTER)) < 0) {
        rc = -errno;
    } else {
        for (uint32_t i = 0, table = plan.l2; i < count; i++)
            if (begins(changes, i, L1_COVERS))
                l1[changes[i].offset / L1_COVERS] = htobe64(table++ * CLUSTER | COPIED);
        put_header(&out, &plan, backing_name, counts, l1);
        /* Entries are put before all of their bits are known: the flush comes after. */
        put_tables(&out, &plan, entries, changes, count);
        put_data(&out, &plan, changes, count);
        rc = out.error;
    }
    free(counts);
    free(l1);
    free(entries);
    *written = out.written;
    return rc;
}

int ss_changes_apply(int fd, const struct ss_change *changes, uint32_t count, uint64_t *written)
{
    struct output out = {.fd = fd};
    for (uint32_t i = 0; i < count; i++)
        put(&out, changes[i].offset, changes[i].data, changes[i].length);
    flush(&out);
    *written = out.written;
    return out.error;
}
