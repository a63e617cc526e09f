/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of ext4's metadata.
 *
 * No inversion is done on either side: ext4 starts from ~0 and stores the register as it is.
 */
#ifndef SS_CRC32C_H
#define SS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The register after `length` bytes of `data`, which started as `crc`. Never fails. */
uint32_t ss_crc32c(uint32_t crc, const void *data, size_t length);

#endif
