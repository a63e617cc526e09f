/* Writes a layer: the blocks that differ from a raw disk, as a qcow2 overlay or into a copy.
 *
 * qcow2 (QEMU's docs/interop/qcow2.txt): version 3, 64 KiB clusters, 16-bit reference counts, the
 * backing file recorded with format raw. Extended L2 entries say for every 2 KiB whether it is
 * here, so a changed block costs its own bytes and not a cluster's, now and when the guest writes.
 * Order in the file: header, reference counts, L1, the L2 tables in use, data. What is zero is not
 * written. Numbers are big-endian.
 */
#ifndef SS_QCOW2_OVERLAY_H
#define SS_QCOW2_OVERLAY_H

#include <stddef.h>
#include <stdint.h>

#define SS_QCOW2_CLUSTER 65536u
#define SS_QCOW2_SUBCLUSTER 2048u
#define SS_QCOW2_MAX_NAME 1023u /* bytes of a backing file's name */

/* `length` bytes at byte `offset` of the disk, both multiples of SS_QCOW2_SUBCLUSTER; no change
 * crosses the border of a cluster. */
struct ss_change {
    uint64_t offset;
    const uint8_t *data;
    uint32_t length;
};

/* `fd` is an empty file; `changes` ascend; `size`: bytes of the disk. `written`: bytes of content.
 * -EINVAL: changes out of order, out of place or beyond `size`, a name empty or too long; -EFBIG:
 * more than 2 GiB of changed clusters; -ENOMEM; or the errno of writing. */
int ss_qcow2_overlay(int fd, const char *backing_name, uint64_t size,
                     const struct ss_change *changes, uint32_t count, uint64_t *written);

/* Puts the changes into a file that is a copy of the disk. */
int ss_changes_apply(int fd, const struct ss_change *changes, uint32_t count, uint64_t *written);

#endif
