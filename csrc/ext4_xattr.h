/* Extended attributes from the tree's packed form to ext4's: in the inode first, then one block. */
#ifndef SS_EXT4_XATTR_H
#define SS_EXT4_XATTR_H

#include <stdint.h>

#define SS_XATTR_IN_INODE 96u /* bytes of a 256-byte inode behind its fixed part */

/* `packed`: as ss_inode.xattr_off says. POSIX ACLs are turned into ext4's own form. Fills `area`
 * (96 bytes) and `block` (4 KiB, without checksum; unused: zeros); both are cleared first.
 * Returns 0: the inode holds all; 1: the block is needed; -E2BIG: they do not fit;
 * -EINVAL: malformed, a name twice, an unknown name space. */
int ss_xattrs_encode(const uint8_t *packed, uint32_t length, uint8_t *area, uint8_t *block);

#endif
