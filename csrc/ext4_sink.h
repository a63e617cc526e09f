/* Output that only moves forward: gathers blocks and writes them in large pieces. */
#ifndef SS_EXT4_SINK_H
#define SS_EXT4_SINK_H

#include <stddef.h>
#include <stdint.h>

struct ss_sink {
    int fd;
    uint64_t offset;   /* of the file system in the file, bytes */
    uint8_t *buffer;
    size_t room, fill; /* bytes */
    uint64_t position; /* of the buffer's first byte in the file system */
    uint64_t written;
};

int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room);
void ss_sink_free(struct ss_sink *sink);
/* Writes what is gathered; a negative errno when the file takes no more. */
int ss_sink_flush(struct ss_sink *sink);
/* Goes on at another byte; what lies between is left as it is. */
int ss_sink_seek(struct ss_sink *sink, uint64_t position);
/* One cleared block at the current position, to be filled at once. NULL: *rc is the error. */
uint8_t *ss_sink_block(struct ss_sink *sink, int *rc);

#endif
