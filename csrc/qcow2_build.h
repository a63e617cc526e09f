/* Writes a new qcow2 image, version 3, from the beginning of its disk to the end.
 *
 * Clusters of zeros are left out. With packing, a cluster that becomes shorter is compressed; it
 * may begin anywhere behind the last. In memory: one L2 table, the L1 table, two bytes a cluster of
 * the file. Functions return 0 or a negative errno; -EFBIG beyond a limit of the format.
 */
#ifndef SS_QCOW2_BUILD_H
#define SS_QCOW2_BUILD_H

#include "qcow2.h"
#include "qcow2_pack.h"

enum ss_packing { SS_PACK_NONE, SS_PACK_ZLIB, SS_PACK_ZSTD };

struct ss_qcow2_build {
    int fd;
    uint32_t cluster_bits, packing;
    uint64_t size, cluster_size;
    uint64_t next; /* the first cluster of the file that is free */
    uint64_t packed_at, packed_end;
    uint64_t l1_place, l1_size, table_index;
    uint64_t *l1;
    uint8_t *table, *packed, *piece;
    uint16_t *counts;
    uint64_t counts_room;
    struct ss_packer packer;
};

/* `fd`: an empty file. `level`: of the packing. Close it also after a failure. */
int ss_build_open(struct ss_qcow2_build *build, int fd, uint64_t size, uint32_t cluster_bits,
                  enum ss_packing packing, int level);
/* Whole clusters (the last of the disk may be cut) behind all that was put before. */
int ss_build_put(struct ss_qcow2_build *build, uint64_t offset, const uint8_t *data,
                 uint64_t length);
/* What a view shows from `*offset` on, which moves; about `most` bytes of it. */
int ss_build_view(struct ss_qcow2_build *build, struct ss_view *view, uint64_t *offset,
                  uint64_t most);
int ss_build_finish(struct ss_qcow2_build *build);
void ss_build_close(struct ss_qcow2_build *build);

/* The same into a raw file of the view's size already: pages of zeros stay holes. */
int ss_flatten_raw(int fd, struct ss_view *view, uint64_t *offset, uint64_t most);

#endif
