/* Output that only moves forward: gathers blocks and writes them in large pieces.
 *
 * A second thread does the writing, so that reading and hashing go on meanwhile: the pass takes as
 * long as the slower of the two, about two thirds of doing one after the other.
 */
#ifndef SS_EXT4_SINK_H
#define SS_EXT4_SINK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SS_SINK_BUFFERS = 4 };

struct ss_sink_piece {
    uint8_t *buffer;
    size_t fill;       /* bytes */
    uint64_t position; /* in the file system */
};

struct ss_sink {
    /* the pass's own */
    uint8_t *buffer;   /* what is gathered */
    size_t room, fill; /* bytes */
    uint64_t position; /* of the buffer's first byte in the file system */
    /* shared with the writer, under the lock */
    struct ss_sink_piece queue[SS_SINK_BUFFERS]; /* filled ones, oldest first */
    uint8_t *spare[SS_SINK_BUFFERS];
    unsigned queued, spares;
    bool closed;
    int error; /* the first negative errno; nothing is written after it */
    uint64_t written;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* fixed */
    pthread_t writer;
    bool running;
    int fd;
    uint64_t offset; /* of the file system in the file, bytes */
    uint8_t *memory;
};

/* Starts the writer. -ENOMEM, -EAGAIN. The sink must not move in memory until it is closed. */
int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room);
/* Hands what is gathered to the writer; a negative errno when an earlier piece failed. */
int ss_sink_flush(struct ss_sink *sink);
/* Goes on at another byte; what lies between is left as it is. */
int ss_sink_seek(struct ss_sink *sink, uint64_t position);
/* One cleared block at the current position, to be filled at once. NULL: *rc is the error. */
uint8_t *ss_sink_block(struct ss_sink *sink, int *rc);
/* Waits for the writer and frees everything; the first error of any piece. What is gathered and
 * was not flushed is dropped. Harmless on a sink that was never opened (all zeros). */
int ss_sink_close(struct ss_sink *sink);

#endif
