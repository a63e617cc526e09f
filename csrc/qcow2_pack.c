/* Compressed clusters of a qcow2 image: deflate without a header, or zstd. */
#define ZLIB_CONST
#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "qcow2_pack.h"
#include "qcow2_table.h"

/* A window of 8 MiB is four times the largest cluster: more is only asked for by hostile data. */
enum { MAX_WINDOW_LOG = 23, WRITE_WINDOW_BITS = 12 };

void ss_qcow2_packed_place(const struct ss_qcow2 *image, uint64_t descriptor, uint64_t *host,
                           uint64_t *length)
{
    uint32_t bits = 62 - (image->cluster_bits - 8);
    uint64_t sectors = ((descriptor & (QCOW2_PACKED - 1)) >> bits) + 1;

    *host = descriptor & (((uint64_t)1 << bits) - 1);
    *length = sectors * 512 - *host % 512;
}

static int inflate_cluster(const uint8_t *data, uint64_t length, uint8_t *out, uint64_t size)
{
    z_stream stream = {0};

    stream.next_in = data;
    stream.avail_in = (uInt)length;
    stream.next_out = out;
    stream.avail_out = (uInt)size;
    if (inflateInit2(&stream, -15) != Z_OK)
        return -ENOMEM;
    int rc = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    /* The rest of the last sector belongs to someone else. */
    if ((rc == Z_STREAM_END || rc == Z_BUF_ERROR || rc == Z_OK) && stream.avail_out == 0)
        return 0;
    return rc == Z_MEM_ERROR ? -ENOMEM : -EUCLEAN;
}

static int unzstd_cluster(struct ss_qcow2 *image, const uint8_t *data, uint64_t length,
                          uint8_t *out, uint64_t size)
{
    ZSTD_inBuffer in = {data, length, 0};
    ZSTD_outBuffer room = {out, size, 0};

    if (image->zstd_context == NULL) {
        image->zstd_context = ZSTD_createDCtx();
        if (image->zstd_context == NULL)
            return -ENOMEM;
        ZSTD_DCtx_setParameter(image->zstd_context, ZSTD_d_windowLogMax, MAX_WINDOW_LOG);
    }
    ZSTD_DCtx_reset(image->zstd_context, ZSTD_reset_session_only);
    while (room.pos < room.size) {
        size_t before_in = in.pos, before_out = room.pos;
        size_t rc = ZSTD_decompressStream(image->zstd_context, &room, &in);
        if (ZSTD_isError(rc))
            return ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation ? -ENOMEM : -EUCLEAN;
        if (room.pos == before_out && in.pos == before_in)
            return -EUCLEAN;
        if (rc == 0 && room.pos < room.size)
            return -EUCLEAN; /* a frame shorter than the cluster */
    }
    return 0;
}

int ss_qcow2_unpack(struct ss_qcow2 *image, uint64_t descriptor, const uint8_t **data)
{
    uint64_t host, length;

    descriptor = (descriptor & (QCOW2_PACKED - 1)) | QCOW2_PACKED;
    ss_qcow2_packed_place(image, descriptor, &host, &length);
    if (image->unpacked == NULL) {
        image->unpacked = malloc(image->cluster_size);
        image->packed = malloc(2 * image->cluster_size + 1024);
        if (image->unpacked == NULL || image->packed == NULL) {
            free(image->unpacked);
            free(image->packed);
            image->unpacked = image->packed = NULL;
            return -ENOMEM;
        }
    }
    *data = image->unpacked;
    if (image->unpacked_key == descriptor)
        return 0;
    image->unpacked_key = 0;
    int64_t got = ss_read_at(image->fd, image->packed, length, host);
    if (got < 0)
        return (int)got;
    int rc = image->zstd ? unzstd_cluster(image, image->packed, (uint64_t)got, image->unpacked,
                                          image->cluster_size)
                         : inflate_cluster(image->packed, (uint64_t)got, image->unpacked,
                                           image->cluster_size);
    if (rc == -EUCLEAN)
        return ss_qcow2_fail(image, rc, "a compressed cluster cannot be unpacked", host);
    if (rc == 0)
        image->unpacked_key = descriptor;
    return rc;
}

void ss_qcow2_free_unpacker(struct ss_qcow2 *image)
{
    ZSTD_freeDCtx(image->zstd_context);
    free(image->packed);
    free(image->unpacked);
    image->zstd_context = NULL;
    image->packed = image->unpacked = NULL;
}

int ss_packer_open(struct ss_packer *packer, bool zstd, int level)
{
    memset(packer, 0, sizeof *packer);
    packer->level = level;
    if (!zstd)
        return 0;
    packer->zstd = ZSTD_createCCtx();
    return packer->zstd == NULL ? -ENOMEM : 0;
}

void ss_packer_close(struct ss_packer *packer)
{
    ZSTD_freeCCtx(packer->zstd);
    packer->zstd = NULL;
}

int64_t ss_packer_pack(struct ss_packer *packer, const uint8_t *data, uint64_t length,
                       uint8_t *out, uint64_t room)
{
    if (packer->zstd != NULL) {
        size_t got = ZSTD_compressCCtx(packer->zstd, out, room, data, length, packer->level);
        if (!ZSTD_isError(got))
            return (int64_t)got;
        return ZSTD_getErrorCode(got) == ZSTD_error_dstSize_tooSmall ? 0 : -ENOMEM;
    }
    z_stream stream = {0};
    stream.next_in = data;
    stream.avail_in = (uInt)length;
    stream.next_out = out;
    stream.avail_out = (uInt)room;
    if (deflateInit2(&stream, packer->level, Z_DEFLATED, -WRITE_WINDOW_BITS, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    int rc = deflate(&stream, Z_FINISH);
    int64_t got = (int64_t)stream.total_out;
    deflateEnd(&stream);
    return rc == Z_STREAM_END ? got : 0;
}
