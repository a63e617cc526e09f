/* The parts of a diff stream; see diff_stream.h. */
#include "diff_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "qcow2_format.h"

#define ZEROS ((uint64_t)1 << 63)

static const uint8_t MAGIC[8] = {'S', 'S', 'D', 'I', 'F', 'F', 0, 1};

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Blocks that [offset, offset + length) is cut into. */
static uint64_t blocks_of(const struct ss_diff *diff, const struct ss_extent *extent)
{
    if (extent->zero)
        return 0;
    return (extent->offset + extent->length - 1) / diff->block_size -
           extent->offset / diff->block_size + 1;
}

/* Checks the extents and numbers their blocks. */
static int number_blocks(struct ss_diff *diff)
{
    uint64_t blocks = 0, end = 0;

    if (diff->block_size < SS_DIFF_MIN_BLOCK || diff->block_size > SS_DIFF_MAX_BLOCK ||
        (diff->block_size & (diff->block_size - 1)) != 0 || diff->frame_blocks == 0 ||
        diff->frame_blocks > SS_DIFF_MAX_BLOCKS || diff->new_size > INT64_MAX ||
        diff->old_size > INT64_MAX || (diff->flags & ~SS_DIFF_OLD_DIGESTS) != 0)
        return -EBADMSG;
    diff->starts = malloc((diff->extent_count + 1) * sizeof *diff->starts);
    if (diff->starts == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < diff->extent_count; i++) {
        const struct ss_extent *extent = &diff->extents[i];
        if (extent->length == 0 || extent->offset < end || extent->offset > diff->new_size ||
            extent->length > diff->new_size - extent->offset)
            return -EBADMSG;
        end = extent->offset + extent->length;
        diff->starts[i] = blocks;
        blocks += blocks_of(diff, extent);
    }
    diff->starts[diff->extent_count] = blocks;
    diff->block_count = blocks;
    return 0;
}

static void put_extent(const struct ss_extent *extent, uint8_t *out)
{
    qcow2_put64(out, extent->offset);
    qcow2_put64(out + 8, extent->length | (extent->zero ? ZEROS : 0));
}

static void put_header(const struct ss_diff *diff, uint8_t *out)
{
    memset(out, 0, SS_DIFF_HEADER);
    memcpy(out, MAGIC, sizeof MAGIC);
    qcow2_put32(out + 8, SS_DIFF_HEADER);
    qcow2_put32(out + 12, diff->flags);
    qcow2_put32(out + 16, diff->block_size);
    qcow2_put32(out + 20, diff->frame_blocks);
    qcow2_put64(out + 24, diff->old_size);
    qcow2_put64(out + 32, diff->new_size);
    qcow2_put64(out + 40, diff->extent_count);
    qcow2_put64(out + 48, diff->block_count);
    qcow2_put64(out + 56, diff->first_block);
    memcpy(out + 64, diff->identity, SS_BLAKE3_SIZE);
    memcpy(out + 96, diff->chain, SS_BLAKE3_SIZE);
}

int ss_diff_make(struct ss_diff *diff, const struct ss_extent *extents, uint64_t count,
                 const uint8_t fingerprint[SS_BLAKE3_SIZE])
{
    struct ss_blake3 hash;
    uint8_t bytes[SS_DIFF_HEADER];

    diff->extents = NULL;
    diff->starts = NULL;
    diff->first_block = 0;
    if (count > SS_DIFF_MAX_EXTENTS)
        return -EFBIG;
    diff->extents = malloc((count + 1) * sizeof *extents);
    if (diff->extents == NULL)
        return -ENOMEM;
    if (count > 0)
        memcpy(diff->extents, extents, count * sizeof *extents);
    diff->extent_count = count;
    int rc = number_blocks(diff);
    if (rc < 0)
        return rc == -EBADMSG ? -EINVAL : rc;
    put_header(diff, bytes);
    ss_blake3_start(&hash);
    ss_blake3_update(&hash, bytes + 8, 48);
    ss_blake3_update(&hash, fingerprint, SS_BLAKE3_SIZE);
    for (uint64_t i = 0; i < count; i++) {
        put_extent(&diff->extents[i], bytes);
        ss_blake3_update(&hash, bytes, 16);
    }
    ss_blake3_finish(&hash, diff->identity);
    memcpy(diff->chain, diff->identity, SS_BLAKE3_SIZE);
    return 0;
}

uint64_t ss_diff_head_length(const struct ss_diff *diff)
{
    return SS_DIFF_HEADER + diff->extent_count * 16;
}

static void head_digest(const uint8_t *head, uint64_t length, uint8_t digest[SS_BLAKE3_SIZE])
{
    struct ss_blake3 hash;
    ss_blake3_start(&hash);
    ss_blake3_update(&hash, head, 128);
    ss_blake3_update(&hash, head + SS_DIFF_HEADER, length - SS_DIFF_HEADER);
    ss_blake3_finish(&hash, digest);
}

void ss_diff_write_head(const struct ss_diff *diff, uint8_t *out)
{
    put_header(diff, out);
    for (uint64_t i = 0; i < diff->extent_count; i++)
        put_extent(&diff->extents[i], out + SS_DIFF_HEADER + i * 16);
    head_digest(out, ss_diff_head_length(diff), out + 128);
}

int ss_diff_read_header(struct ss_diff *diff, const uint8_t header[SS_DIFF_HEADER])
{
    memset(diff, 0, sizeof *diff);
    if (memcmp(header, MAGIC, 7) != 0)
        return -EBADMSG;
    if (header[7] != MAGIC[7] || qcow2_get32(header + 8) != SS_DIFF_HEADER)
        return -ENOTSUP;
    diff->flags = qcow2_get32(header + 12);
    diff->block_size = qcow2_get32(header + 16);
    diff->frame_blocks = qcow2_get32(header + 20);
    diff->old_size = qcow2_get64(header + 24);
    diff->new_size = qcow2_get64(header + 32);
    diff->extent_count = qcow2_get64(header + 40);
    diff->block_count = qcow2_get64(header + 48);
    diff->first_block = qcow2_get64(header + 56);
    memcpy(diff->identity, header + 64, SS_BLAKE3_SIZE);
    memcpy(diff->chain, header + 96, SS_BLAKE3_SIZE);
    return diff->extent_count > SS_DIFF_MAX_EXTENTS ? -EFBIG : 0;
}

int ss_diff_read_head(struct ss_diff *diff, const uint8_t *head, uint64_t length)
{
    uint8_t digest[SS_BLAKE3_SIZE];

    if (length < SS_DIFF_HEADER)
        return -EBADMSG;
    int rc = ss_diff_read_header(diff, head);
    if (rc < 0)
        return rc;
    if (length != ss_diff_head_length(diff))
        return -EBADMSG;
    head_digest(head, length, digest);
    if (memcmp(digest, head + 128, SS_BLAKE3_SIZE) != 0)
        return -EBADMSG;
    diff->extents = malloc((diff->extent_count + 1) * sizeof *diff->extents);
    if (diff->extents == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < diff->extent_count; i++) {
        const uint8_t *at = head + SS_DIFF_HEADER + i * 16;
        uint64_t word = qcow2_get64(at + 8);
        diff->extents[i] =
            (struct ss_extent){qcow2_get64(at), word & ~ZEROS, (word & ZEROS) != 0};
    }
    uint64_t blocks = diff->block_count;
    rc = number_blocks(diff);
    if (rc == 0 && (blocks != diff->block_count || diff->first_block > blocks ||
                    (diff->first_block % diff->frame_blocks != 0 && diff->first_block != blocks)))
        rc = -EBADMSG;
    return rc;
}

void ss_diff_free(struct ss_diff *diff)
{
    free(diff->extents);
    free(diff->starts);
    diff->extents = NULL;
    diff->starts = NULL;
}

void ss_diff_place(const struct ss_diff *diff, uint64_t block, uint64_t *offset, uint32_t *length)
{
    uint64_t low = 0, high = diff->extent_count;
    /* The last extent whose first block is not behind `block`; extents of zeros have none. */
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (diff->starts[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    while (low > 0 && diff->extents[low].zero)
        low--;
    const struct ss_extent *extent = &diff->extents[low];
    uint64_t size = diff->block_size;
    uint64_t at = (extent->offset / size + (block - diff->starts[low])) * size;
    uint64_t end = min64(at + size, extent->offset + extent->length);
    *offset = at < extent->offset ? extent->offset : at;
    *length = (uint32_t)(end - *offset);
}

uint32_t ss_diff_frame_blocks(const struct ss_diff *diff, uint64_t first)
{
    return (uint32_t)min64(diff->frame_blocks, diff->block_count - first);
}

uint64_t ss_diff_frame_room(const struct ss_diff *diff)
{
    return SS_DIFF_FRAME +
           (uint64_t)diff->frame_blocks * (2 * SS_BLAKE3_SIZE + (uint64_t)diff->block_size);
}

void ss_diff_digests(const struct ss_diff *diff, uint64_t first, uint32_t blocks,
                     const uint8_t *data, uint8_t *digests)
{
    struct ss_blake3_message messages[SS_DIFF_MAX_BLOCKS];

    for (uint32_t i = 0; i < blocks; i++) {
        uint64_t offset;
        uint32_t length;
        ss_diff_place(diff, first + i, &offset, &length);
        messages[i].data = data;
        messages[i].length = length;
        data += length;
    }
    ss_blake3_small(messages, blocks);
    for (uint32_t i = 0; i < blocks; i++)
        memcpy(digests + i * SS_BLAKE3_SIZE, messages[i].digest, SS_BLAKE3_SIZE);
}

void ss_diff_chain(uint8_t chain[SS_BLAKE3_SIZE], const uint8_t *digests, uint64_t length)
{
    struct ss_blake3 hash;
    ss_blake3_start(&hash);
    ss_blake3_update(&hash, chain, SS_BLAKE3_SIZE);
    ss_blake3_update(&hash, digests, length);
    ss_blake3_finish(&hash, chain);
}

int ss_diff_encoder_open(struct ss_diff_encoder *encoder, const struct ss_diff *diff, int level)
{
    uint64_t room = (uint64_t)diff->frame_blocks * diff->block_size;

    encoder->raw = malloc(room);
    encoder->old = malloc(room);
    encoder->packed = malloc(ZSTD_compressBound(room));
    encoder->zstd = ZSTD_createCCtx();
    if (encoder->raw == NULL || encoder->old == NULL || encoder->packed == NULL ||
        encoder->zstd == NULL) {
        ss_diff_encoder_close(encoder);
        return -ENOMEM;
    }
    ZSTD_CCtx_setParameter(encoder->zstd, ZSTD_c_compressionLevel, level);
    return 0;
}

void ss_diff_encoder_close(struct ss_diff_encoder *encoder)
{
    free(encoder->raw);
    free(encoder->old);
    free(encoder->packed);
    ZSTD_freeCCtx(encoder->zstd);
    memset(encoder, 0, sizeof *encoder);
}

/* The blocks of a frame, one after the other; blocks that follow on the disk are one read. */
static int64_t read_blocks(const struct ss_diff *diff, struct ss_view *view, uint64_t first,
                           uint32_t blocks, uint8_t *out)
{
    uint64_t start = 0, run = 0, done = 0;

    for (uint32_t i = 0; i <= blocks; i++) {
        uint64_t offset = 0;
        uint32_t length = 0;
        if (i < blocks)
            ss_diff_place(diff, first + i, &offset, &length);
        if (i < blocks && run > 0 && offset == start + run) {
            run += length;
            continue;
        }
        if (run > 0) {
            int rc = ss_view_read(view, start, out + done, run);
            if (rc < 0)
                return rc;
            done += run;
        }
        start = offset;
        run = length;
    }
    return (int64_t)done;
}

int64_t ss_diff_encode(struct ss_diff_encoder *encoder, const struct ss_diff *diff,
                       struct ss_view *old, struct ss_view *new, uint64_t first, uint8_t *out)
{
    uint32_t blocks = ss_diff_frame_blocks(diff, first);
    uint8_t *digests = out + SS_DIFF_FRAME;
    int64_t length = read_blocks(diff, new, first, blocks, encoder->raw);

    if (length < 0)
        return length;
    ss_diff_digests(diff, first, blocks, encoder->raw, digests);
    uint8_t *at = digests + (uint64_t)blocks * SS_BLAKE3_SIZE;
    if ((diff->flags & SS_DIFF_OLD_DIGESTS) != 0) {
        int64_t rc = read_blocks(diff, old, first, blocks, encoder->old);
        if (rc < 0)
            return rc;
        ss_diff_digests(diff, first, blocks, encoder->old, at);
        at += (uint64_t)blocks * SS_BLAKE3_SIZE;
    }
    size_t got = ZSTD_compress2(encoder->zstd, encoder->packed,
                                ZSTD_compressBound((size_t)length), encoder->raw, (size_t)length);
    if (ZSTD_isError(got))
        return -ENOMEM;
    bool packed = got < (size_t)length;
    uint64_t stored = packed ? got : (uint64_t)length;
    memcpy(at, packed ? encoder->packed : encoder->raw, stored);
    memcpy(out, "SSFR", 4);
    qcow2_put32(out + 4, blocks);
    qcow2_put64(out + 8, first);
    qcow2_put32(out + 16, (uint32_t)stored);
    qcow2_put32(out + 20, packed);
    return (int64_t)((uint64_t)(at - out) + stored);
}

int ss_diff_read_frame(const struct ss_diff *diff, const uint8_t *head, uint64_t first,
                       struct ss_diff_frame *frame)
{
    if (memcmp(head, "SSFR", 4) != 0 || first >= diff->block_count)
        return -EBADMSG;
    frame->blocks = qcow2_get32(head + 4);
    frame->first = qcow2_get64(head + 8);
    frame->stored = qcow2_get32(head + 16);
    frame->packed = qcow2_get32(head + 20);
    if (frame->first != first || frame->blocks != ss_diff_frame_blocks(diff, first) ||
        frame->packed > 1)
        return -EBADMSG;
    frame->raw = 0;
    for (uint32_t i = 0; i < frame->blocks; i++) {
        uint64_t offset;
        uint32_t length;
        ss_diff_place(diff, first + i, &offset, &length);
        frame->raw += length;
    }
    if (frame->packed ? frame->stored >= frame->raw : frame->stored != frame->raw)
        return -EBADMSG;
    frame->digests = frame->blocks * SS_BLAKE3_SIZE;
    if ((diff->flags & SS_DIFF_OLD_DIGESTS) != 0)
        frame->digests *= 2;
    return 0;
}

int ss_diff_decode(const struct ss_diff *diff, const struct ss_diff_frame *frame,
                   const uint8_t *body, void *context, uint8_t *out)
{
    uint8_t digests[SS_DIFF_MAX_BLOCKS * SS_BLAKE3_SIZE];
    const uint8_t *stored = body + frame->digests;

    if (frame->packed) {
        size_t got = ZSTD_decompressDCtx(context, out, frame->raw, stored, frame->stored);
        if (ZSTD_isError(got) || got != frame->raw)
            return -EBADMSG;
    } else {
        memcpy(out, stored, frame->raw);
    }
    ss_diff_digests(diff, frame->first, frame->blocks, out, digests);
    return memcmp(digests, body, (size_t)frame->blocks * SS_BLAKE3_SIZE) == 0 ? 0 : -EBADMSG;
}

void ss_diff_write_trailer(const struct ss_diff *diff, const uint8_t chain[SS_BLAKE3_SIZE],
                           uint8_t out[SS_DIFF_TRAILER])
{
    memcpy(out, "DONE", 4);
    qcow2_put32(out + 4, 0);
    qcow2_put64(out + 8, diff->block_count);
    memcpy(out + 16, chain, SS_BLAKE3_SIZE);
}

int ss_diff_read_trailer(const struct ss_diff *diff, const uint8_t trailer[SS_DIFF_TRAILER],
                         const uint8_t chain[SS_BLAKE3_SIZE])
{
    uint8_t want[SS_DIFF_TRAILER];
    ss_diff_write_trailer(diff, chain, want);
    return memcmp(want, trailer, sizeof want) == 0 ? 0 : -EBADMSG;
}
