/* The numbers of the qcow2 format (QEMU's docs/interop/qcow2.txt). All are big-endian on disk. */
#ifndef SS_QCOW2_FORMAT_H
#define SS_QCOW2_FORMAT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_HEADER_V2 72u
#define QCOW2_HEADER_V3 104u

#define QCOW2_DIRTY ((uint64_t)1 << 0) /* incompatible features */
#define QCOW2_CORRUPT ((uint64_t)1 << 1)
#define QCOW2_DATA_FILE ((uint64_t)1 << 2)
#define QCOW2_COMPRESSION ((uint64_t)1 << 3)
#define QCOW2_EXTENDED_L2 ((uint64_t)1 << 4)
#define QCOW2_BITMAPS ((uint64_t)1 << 0) /* autoclear feature */

#define QCOW2_EXT_END 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u

#define QCOW2_COPIED ((uint64_t)1 << 63)
#define QCOW2_PACKED ((uint64_t)1 << 62) /* a compressed cluster */
#define QCOW2_ZERO ((uint64_t)1)
#define QCOW2_OFFSET ((uint64_t)0x00fffffffffffe00)
#define QCOW2_L1_RESERVED ((uint64_t)0x7f000000000001ff)
#define QCOW2_L2_RESERVED ((uint64_t)0x3f000000000001fe)
#define QCOW2_REFCOUNT_OFFSET (~(uint64_t)0x1ff)

#define QCOW2_MIN_BITS 9u
#define QCOW2_MAX_BITS 21u
#define QCOW2_MIN_BITS_EXTENDED 14u
#define QCOW2_MAX_L1_BYTES ((uint64_t)32 << 20)        /* as QEMU's own limit */
#define QCOW2_MAX_REFCOUNT_TABLE ((uint64_t)8 << 20)   /* as QEMU's own limit */
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPSHOT_TABLE ((uint64_t)64 << 20)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024u
#define QCOW2_MAX_BITMAPS 65535u
#define QCOW2_MAX_BITMAP_DIRECTORY ((uint64_t)64 << 20)
#define QCOW2_MAX_BITMAP_TABLE ((uint64_t)1 << 25)     /* entries */
/* Entries of all snapshots' L1 tables, or of all bitmaps' tables, together. */
#define QCOW2_MAX_TABLES ((uint64_t)1 << 27)
#define QCOW2_MAX_BACKING_NAME 1023u

static inline uint16_t qcow2_get16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return be16toh(value);
}

static inline uint32_t qcow2_get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static inline uint64_t qcow2_get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static inline void qcow2_put16(uint8_t *at, uint16_t value)
{
    value = htobe16(value);
    memcpy(at, &value, sizeof value);
}

static inline void qcow2_put32(uint8_t *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static inline void qcow2_put64(uint8_t *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

#endif
