/* Inside the reader: files, tables, entries. */
#ifndef SS_QCOW2_TABLE_H
#define SS_QCOW2_TABLE_H

#include <sys/types.h>

#include "qcow2.h"
#include "qcow2_format.h"

/* Notes what is wrong; returns `error`. */
int ss_qcow2_fail(struct ss_qcow2 *image, int error, const char *problem, uint64_t at);

/* Reads up to `length` bytes, fewer at the end of the file: how many, or a negative errno. */
int64_t ss_read_at(int fd, void *out, uint64_t length, uint64_t offset);
/* Writes them all, or a negative errno. */
int ss_write_at(int fd, const void *data, uint64_t length, uint64_t offset);

/* Is [offset, offset + length) inside the file, and offset a cluster's? */
bool ss_qcow2_table_fits(const struct ss_qcow2 *image, uint64_t offset, uint64_t length);

/* A table of `count` big-endian numbers, turned into this machine's order. Free it. */
int ss_qcow2_load(struct ss_qcow2 *image, uint64_t offset, uint64_t count, uint64_t **table);

/* A whole L2 table (or any cluster of metadata), as it is on disk. */
int ss_qcow2_read_table(struct ss_qcow2 *image, uint64_t offset, uint8_t *out);

/* The bytes of an L1 entry's table, checked: 0 when there is none. */
int ss_qcow2_l2_offset(struct ss_qcow2 *image, uint64_t l1_entry, uint64_t *offset);

/* What one L2 entry says of the bytes from `within` (of the cluster): the kind, `host` of that
 * byte, and how many bytes of this cluster are like it. `kind` SS_RUN_HOLE: look below. */
int ss_qcow2_entry(struct ss_qcow2 *image, uint64_t entry, uint64_t subclusters, uint64_t within,
                   struct ss_run *run);

/* The place and length in the file of a compressed cluster. */
void ss_qcow2_packed_place(const struct ss_qcow2 *image, uint64_t descriptor, uint64_t *host,
                           uint64_t *length);

/* Unpacks a compressed cluster: `*data` is cluster_size bytes, valid until the next call. */
int ss_qcow2_unpack(struct ss_qcow2 *image, uint64_t descriptor, const uint8_t **data);

/* What the layer itself says of the run at `offset` < layer->size, up to `limit`. */
int ss_layer_map(const struct ss_layer *layer, uint64_t offset, uint64_t limit, struct ss_run *run);

void ss_qcow2_free_unpacker(struct ss_qcow2 *image);
int ss_qcow2_load_snapshots(struct ss_qcow2 *image);
int ss_qcow2_load_bitmaps(struct ss_qcow2 *image);

#endif
