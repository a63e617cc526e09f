/* Compresses clusters as qcow2 has them: deflate with a window of 4 KiB and no header, or zstd. */
#ifndef SS_QCOW2_PACK_H
#define SS_QCOW2_PACK_H

#include <stdbool.h>
#include <stdint.h>

struct ss_packer {
    void *zstd; /* NULL: deflate */
    int level;
};

int ss_packer_open(struct ss_packer *packer, bool zstd, int level);
void ss_packer_close(struct ss_packer *packer);

/* The compressed length, 0 when it does not fit into `room` bytes, or -ENOMEM. */
int64_t ss_packer_pack(struct ss_packer *packer, const uint8_t *data, uint64_t length,
                       uint8_t *out, uint64_t room);

#endif
