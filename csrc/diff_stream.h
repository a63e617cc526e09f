/* A diff stream: what turns one disk into another, block by block, each with its BLAKE3.
 *
 * All numbers are big-endian. A stream is a header, the table of extents, frames, a trailer:
 *
 *   header   0  8  "SSDIFF" 0 1            frame    0   4  "SSFR"
 *            8  4  bytes of this header             4   4  blocks, 1 … frame_blocks
 *           12  4  flags                            8   8  number of the first
 *           16  4  bytes of a block                16   4  bytes stored
 *           20  4  blocks of a frame               20   4  how: 0 plain, 1 one zstd frame
 *           24  8  bytes of the old disk           24  32  BLAKE3 of each block
 *           32  8  bytes of the new disk               32  BLAKE3 of each old block (flag 1)
 *           40  8  extents                              …  the blocks, one after the other
 *           48  8  blocks in all of them
 *           56  8  the first block in here         trailer 0   4  "DONE"
 *           64 32  identity                                4   4  0
 *           96 32  chain before that block                 8   8  blocks in all
 *          128 32  BLAKE3 of all above and                16  32  chain after the last block
 *                  of the table
 *   extent   0  8  offset on the disk
 *            8  8  length; bit 63: zeros, nothing is sent
 *
 * Blocks are the data extents cut at multiples of the block's size, numbered from 0. The identity
 * is the BLAKE3 of header bytes 8 … 55, of 32 bytes that stand for both disks, and of the table:
 * a stream that was cut off is gone on with by one of the same identity that begins at a later
 * frame. The chain begins as the identity; behind each frame it is the BLAKE3 of itself and of the
 * frame's digests. So every byte of a stream is checked, and the order of frames.
 *
 * Functions return 0 or a length, or a negative errno: -EBADMSG a damaged stream; -ENOTSUP another
 * version; -EFBIG beyond a limit; -ENOMEM; or what reading a disk gave.
 */
#ifndef SS_DIFF_STREAM_H
#define SS_DIFF_STREAM_H

#include "blake3.h"
#include "qcow2.h"
#include "qcow2_extents.h"

#define SS_DIFF_HEADER 160u
#define SS_DIFF_FRAME 24u
#define SS_DIFF_TRAILER 48u
#define SS_DIFF_MIN_BLOCK 4096u
#define SS_DIFF_MAX_BLOCK 65536u
#define SS_DIFF_MAX_BLOCKS 64u /* of a frame */
#define SS_DIFF_MAX_EXTENTS ((uint64_t)1 << 24)
#define SS_DIFF_OLD_DIGESTS 1u /* flag */

struct ss_diff {
    uint32_t flags, block_size, frame_blocks;
    uint64_t old_size, new_size, extent_count, block_count, first_block;
    uint8_t identity[SS_BLAKE3_SIZE], chain[SS_BLAKE3_SIZE];
    struct ss_extent *extents;
    uint64_t *starts; /* number of the first block of each extent */
};

/* Copies and checks the extents; the caller has set flags, sizes, block_size, frame_blocks. Free
 * with ss_diff_free, also after a failure. */
int ss_diff_make(struct ss_diff *diff, const struct ss_extent *extents, uint64_t count,
                 const uint8_t fingerprint[SS_BLAKE3_SIZE]);
/* Bytes of header and table, and the writing of them. */
uint64_t ss_diff_head_length(const struct ss_diff *diff);
void ss_diff_write_head(const struct ss_diff *diff, uint8_t *out);

/* Reads the SS_DIFF_HEADER bytes of a header: ss_diff_head_length is then known. */
int ss_diff_read_header(struct ss_diff *diff, const uint8_t header[SS_DIFF_HEADER]);
/* Reads header and table once more, `length` bytes of them. */
int ss_diff_read_head(struct ss_diff *diff, const uint8_t *head, uint64_t length);
void ss_diff_free(struct ss_diff *diff);

/* Where a block is on the disk. `block` < block_count. */
void ss_diff_place(const struct ss_diff *diff, uint64_t block, uint64_t *offset, uint32_t *length);

struct ss_diff_frame {
    uint64_t first;
    uint32_t blocks, stored, packed;
    uint32_t raw;     /* bytes of all blocks */
    uint32_t digests; /* bytes of digests behind the frame's head */
};

/* How many blocks a frame that begins at `first` has. */
uint32_t ss_diff_frame_blocks(const struct ss_diff *diff, uint64_t first);

struct ss_diff_encoder {
    uint8_t *raw, *old, *packed;
    void *zstd;
};

int ss_diff_encoder_open(struct ss_diff_encoder *encoder, const struct ss_diff *diff, int level);
void ss_diff_encoder_close(struct ss_diff_encoder *encoder);
/* Bytes that a frame can need at most. */
uint64_t ss_diff_frame_room(const struct ss_diff *diff);
/* Reads the blocks from the disks and writes a frame; its length. `old` only with the flag. */
int64_t ss_diff_encode(struct ss_diff_encoder *encoder, const struct ss_diff *diff,
                       struct ss_view *old, struct ss_view *new, uint64_t first, uint8_t *out);

/* Reads a frame's head of SS_DIFF_FRAME bytes; it must begin at block `first`. */
int ss_diff_read_frame(const struct ss_diff *diff, const uint8_t *head, uint64_t first,
                       struct ss_diff_frame *frame);
/* Unpacks and checks the blocks. `body` is what follows the head: digests, then `stored` bytes;
 * `out` has room for frame->raw. `context` is a ZSTD_DCtx. */
int ss_diff_decode(const struct ss_diff *diff, const struct ss_diff_frame *frame,
                   const uint8_t *body, void *context, uint8_t *out);

/* The chain behind a frame with these digests. */
void ss_diff_chain(uint8_t chain[SS_BLAKE3_SIZE], const uint8_t *digests, uint64_t length);
void ss_diff_write_trailer(const struct ss_diff *diff, const uint8_t chain[SS_BLAKE3_SIZE],
                           uint8_t out[SS_DIFF_TRAILER]);
int ss_diff_read_trailer(const struct ss_diff *diff, const uint8_t trailer[SS_DIFF_TRAILER],
                         const uint8_t chain[SS_BLAKE3_SIZE]);

/* The BLAKE3 of blocks that follow each other in `data`, each as long as on the disk. */
void ss_diff_digests(const struct ss_diff *diff, uint64_t first, uint32_t blocks,
                     const uint8_t *data, uint8_t *digests);

#endif
