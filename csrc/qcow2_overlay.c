/* A qcow2 overlay in one write; see qcow2_overlay.h. */
#include "qcow2_overlay.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLUSTER ((uint64_t)SS_QCOW2_CLUSTER)
#define TABLE_ENTRIES (CLUSTER / 8)
#define REFCOUNTS_PER_BLOCK (CLUSTER / 2)
#define COPIED ((uint64_t)1 << 63) /* reference count is exactly one */
#define MAX_CLUSTERS (1u << 14)    /* 1 GiB put together in memory */

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

static int write_all(int fd, const uint8_t *data, uint64_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t got = pwrite(fd, data, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        data += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

/* The end of the disk may lie inside the cluster: zeros follow it. */
static int read_cluster(int fd, uint64_t offset, uint8_t *data)
{
    uint64_t done = 0;
    while (done < CLUSTER) {
        ssize_t got = pread(fd, data + done, CLUSTER - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (uint64_t)got;
    }
    memset(data + done, 0, CLUSTER - done);
    return 0;
}

static int check(const struct ss_change *changes, uint32_t count, uint64_t size)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct ss_change *change = &changes[i];
        if (change->offset < end || change->offset > size ||
            change->length > size - change->offset || change->length == 0 ||
            change->offset / CLUSTER != (change->offset + change->length - 1) / CLUSTER)
            return -EINVAL;
        end = change->offset + change->length;
    }
    return 0;
}

/* How many different parts of `unit` bytes the changes touch. */
static uint64_t touched(const struct ss_change *changes, uint32_t count, uint64_t unit)
{
    uint64_t parts = 0;
    for (uint32_t i = 0; i < count; i++)
        parts += i == 0 || changes[i].offset / unit != changes[i - 1].offset / unit;
    return parts;
}

static void put64(uint8_t *table, uint64_t index, uint64_t value)
{
    uint64_t big = htobe64(value);
    memcpy(table + index * 8, &big, 8);
}

/* Where the parts of the file are, in clusters. */
struct plan {
    uint64_t refcount_blocks, l1_clusters, l1, l2, data, total, l1_entries;
};

static int make_plan(struct plan *plan, const struct ss_change *changes, uint32_t count,
                     uint64_t size)
{
    uint64_t l2_tables = touched(changes, count, CLUSTER * TABLE_ENTRIES);
    uint64_t clusters = touched(changes, count, CLUSTER);

    plan->l1_entries = (size + CLUSTER * TABLE_ENTRIES - 1) / (CLUSTER * TABLE_ENTRIES);
    plan->l1_clusters = (plan->l1_entries + TABLE_ENTRIES - 1) / TABLE_ENTRIES;
    if (plan->l1_clusters == 0)
        plan->l1_clusters = 1;
    plan->refcount_blocks = 1; /* counts 2 GiB of file: more than MAX_CLUSTERS */
    plan->l1 = 2 + plan->refcount_blocks;
    plan->l2 = plan->l1 + plan->l1_clusters;
    plan->data = plan->l2 + l2_tables;
    plan->total = plan->data + clusters;
    return plan->total > MAX_CLUSTERS ? -EFBIG : 0;
}

static void put_header(uint8_t *file, const struct plan *plan, uint64_t size, const char *name)
{
    struct header header = {0};
    header.magic = htonl(0x514649FB);
    header.version = htonl(3);
    header.backing_offset = htobe64(sizeof header);
    header.backing_size = htonl((uint32_t)strlen(name));
    header.cluster_bits = htonl(16);
    header.size = htobe64(size);
    header.l1_size = htonl((uint32_t)plan->l1_entries);
    header.l1_offset = htobe64(plan->l1 * CLUSTER);
    header.refcount_offset = htobe64(CLUSTER);
    header.refcount_clusters = htonl(1);
    header.refcount_order = htonl(4);
    header.header_length = htonl(104);
    header.backing_format_type = htonl(0xE2792ACA);
    header.backing_format_length = htonl(3);
    memcpy(header.backing_format, "raw", 3);
    memcpy(file, &header, sizeof header);
    memcpy(file + sizeof header, name, strlen(name));
    put64(file + CLUSTER, 0, 2 * CLUSTER); /* the table of reference counts: one block */
    for (uint64_t i = 0; i < plan->total; i++) {
        uint16_t one = htons(1);
        memcpy(file + 2 * CLUSTER + i * 2, &one, 2);
    }
}

static int put_data(uint8_t *file, const struct plan *plan, int backing,
                    const struct ss_change *changes, uint32_t count)
{
    uint64_t l2 = plan->l2 - 1, data = plan->data - 1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t cluster = changes[i].offset / CLUSTER;
        bool first = i == 0;
        if (first || cluster / TABLE_ENTRIES != changes[i - 1].offset / CLUSTER / TABLE_ENTRIES)
            put64(file + plan->l1 * CLUSTER, cluster / TABLE_ENTRIES, ++l2 * CLUSTER | COPIED);
        if (first || cluster != changes[i - 1].offset / CLUSTER) {
            put64(file + l2 * CLUSTER, cluster % TABLE_ENTRIES, ++data * CLUSTER | COPIED);
            int rc = read_cluster(backing, cluster * CLUSTER, file + data * CLUSTER);
            if (rc < 0)
                return rc;
        }
        memcpy(file + data * CLUSTER + changes[i].offset % CLUSTER, changes[i].data,
               changes[i].length);
    }
    return 0;
}

int ss_qcow2_overlay(int fd, int backing, const char *backing_name, uint64_t size,
                     const struct ss_change *changes, uint32_t count, uint64_t *written)
{
    struct plan plan;
    int rc = check(changes, count, size);

    if (rc < 0 || strlen(backing_name) > SS_QCOW2_MAX_NAME || backing_name[0] == 0)
        return -EINVAL;
    if ((rc = make_plan(&plan, changes, count, size)) < 0)
        return rc;
    uint8_t *file = calloc(plan.total, CLUSTER);
    if (file == NULL)
        return -ENOMEM;
    put_header(file, &plan, size, backing_name);
    rc = put_data(file, &plan, backing, changes, count);
    if (rc == 0)
        rc = write_all(fd, file, plan.total * CLUSTER, 0);
    free(file);
    *written = plan.total * CLUSTER;
    return rc;
}

int ss_changes_apply(int fd, const struct ss_change *changes, uint32_t count, uint64_t *written)
{
    *written = 0;
    for (uint32_t i = 0; i < count; i++) {
        int rc = write_all(fd, changes[i].data, changes[i].length, changes[i].offset);
        if (rc < 0)
            return rc;
        *written += changes[i].length;
    }
    return 0;
}
