/* Writes a layer: the blocks that differ from a raw disk, as a qcow2 overlay or over a copy.
 *
 * qcow2 (QEMU's docs/interop/qcow2.txt): version 3, 64 KiB clusters, 16-bit reference counts, the
 * backing file recorded with format raw. The whole file is put together in memory and written at
 * once: header, reference counts, L1, the L2 tables in use, data. Numbers are big-endian.
 */
#ifndef SS_QCOW2_OVERLAY_H
#define SS_QCOW2_OVERLAY_H

#include <stddef.h>
#include <stdint.h>

#define SS_QCOW2_CLUSTER 65536u
#define SS_QCOW2_MAX_NAME 1023u /* bytes of a backing file's name */

/* `length` bytes at byte `offset` of the disk; no change crosses the border of a cluster. */
struct ss_change {
    uint64_t offset;
    const uint8_t *data;
    uint32_t length;
};

/* `changes` ascend. What a cluster has beside them is read from `backing`. `written`: bytes of the
 * file. -EINVAL: changes out of order or beyond `size`, a name too long; -EFBIG; -ENOMEM; or the
 * errno of reading or writing. */
int ss_qcow2_overlay(int fd, int backing, const char *backing_name, uint64_t size,
                     const struct ss_change *changes, uint32_t count, uint64_t *written);

/* Puts the changes into a file that is a copy of the disk. */
int ss_changes_apply(int fd, const struct ss_change *changes, uint32_t count, uint64_t *written);

#endif
