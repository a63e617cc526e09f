/* sources: csrc/diff_stream.c csrc/blake3.c csrc/qcow2_extents.c csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c */
/* A hostile diff stream. Input: one byte of options, then the stream. With option 1 the digest of
 * its head is made right first, so that what lies behind is reached. */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "diff_stream.h"

static void digest_head(uint8_t *head, uint64_t length)
{
    struct ss_blake3 hash;
    ss_blake3_start(&hash);
    ss_blake3_update(&hash, head, 128);
    ss_blake3_update(&hash, head + SS_DIFF_HEADER, length - SS_DIFF_HEADER);
    ss_blake3_finish(&hash, head + 128);
}

static void frames(struct ss_diff *diff, const uint8_t *data, uint64_t length)
{
    static uint8_t out[SS_DIFF_MAX_BLOCKS * SS_DIFF_MAX_BLOCK];
    ZSTD_DCtx *context = ZSTD_createDCtx();
    uint64_t block = diff->first_block, end = 0;

    while (length >= SS_DIFF_FRAME && block < diff->block_count) {
        struct ss_diff_frame frame;
        uint64_t offset;
        uint32_t part;
        if (ss_diff_read_frame(diff, data, block, &frame) < 0)
            break;
        for (uint32_t i = 0; i < frame.blocks; i++) {
            ss_diff_place(diff, block + i, &offset, &part);
            if (part == 0 || part > diff->block_size || offset < end ||
                part > diff->new_size - offset)
                abort();
            end = offset + part;
        }
        if (frame.raw > sizeof out || frame.blocks == 0)
            abort();
        data += SS_DIFF_FRAME;
        length -= SS_DIFF_FRAME;
        if (frame.digests + (uint64_t)frame.stored > length)
            break;
        /* A copy of its own, so that a byte beyond is seen. */
        uint8_t *body = malloc(frame.digests + (uint64_t)frame.stored + 1);
        memcpy(body, data, frame.digests + (uint64_t)frame.stored);
        ss_diff_decode(diff, &frame, body, context, out);
        ss_diff_chain(diff->chain, body, frame.digests);
        free(body);
        data += frame.digests + (uint64_t)frame.stored;
        length -= frame.digests + (uint64_t)frame.stored;
        block += frame.blocks;
    }
    if (length >= SS_DIFF_TRAILER)
        ss_diff_read_trailer(diff, data, diff->chain);
    ZSTD_freeDCtx(context);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    struct ss_diff diff;

    if (length < 1 + SS_DIFF_HEADER || ss_diff_read_header(&diff, data + 1) < 0)
        return 0;
    uint64_t head = ss_diff_head_length(&diff);
    if (head > length - 1)
        return 0;
    uint8_t *copy = malloc(head);
    memcpy(copy, data + 1, head);
    if (data[0] & 1)
        digest_head(copy, head);
    if (ss_diff_read_head(&diff, copy, head) == 0) {
        uint8_t *again = malloc(head);
        ss_diff_write_head(&diff, again);
        if (memcmp(again, copy, head) != 0)
            abort();
        free(again);
        frames(&diff, data + 1 + head, length - 1 - head);
    }
    ss_diff_free(&diff);
    free(copy);
    return 0;
}
