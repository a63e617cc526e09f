/* Output that only moves forward: gathers blocks and writes them in large pieces.
 *
 * A second thread checks the small files in a piece and writes it, while the pass reads on: the
 * whole takes as long as the slower of the two, little more than half of one after the other.
 */
#ifndef SS_EXT4_SINK_H
#define SS_EXT4_SINK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blake3.h"

enum { SS_SINK_BUFFERS = 4 };

/* Files that lie whole in a buffer: they are hashed together before it is written. */
struct ss_sink_files {
    uint32_t count;
    struct ss_blake3_message *messages;
    uint32_t *inodes;
    uint8_t (*expected)[SS_BLAKE3_SIZE];
};

struct ss_sink_piece {
    uint8_t *buffer;
    size_t fill;       /* bytes */
    uint64_t position; /* in the file system */
    struct ss_sink_files files;
};

struct ss_sink {
    struct ss_sink_piece now; /* what is gathered: the pass's own */
    size_t room;              /* bytes of a buffer */
    /* shared with the writer, under the lock */
    struct ss_sink_piece queue[SS_SINK_BUFFERS]; /* filled ones, oldest first */
    struct ss_sink_piece spare[SS_SINK_BUFFERS];
    unsigned queued, spares;
    bool closed;
    int error;        /* the first negative errno; nothing is written after it */
    bool corrupt;     /* -EBADMSG: a file's content is not what it has to be */
    uint32_t inode;   /* then: which */
    uint64_t written;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* fixed */
    pthread_t writer;
    bool running;
    bool unplaced; /* the writer's own: blocks cannot be allocated before they are written */
    int fd;
    uint64_t offset; /* of the file system in the file, bytes */
    void *memory, *tables;
};

/* Starts the writer. -ENOMEM, -EAGAIN. The sink must not move in memory until it is closed. */
int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room);
/* Hands what is gathered to the writer; a negative errno when an earlier piece failed. */
int ss_sink_flush(struct ss_sink *sink);
/* Goes on at another byte; what lies between is left as it is. */
int ss_sink_seek(struct ss_sink *sink, uint64_t position);
/* One cleared block at the current position, to be filled at once. NULL: *rc is the error. */
uint8_t *ss_sink_block(struct ss_sink *sink, int *rc);
/* `length` bytes at `data`, which lie in what is gathered, have to have this BLAKE3. */
void ss_sink_expect(struct ss_sink *sink, uint32_t inode, const uint8_t *data, size_t length,
                    const uint8_t digest[SS_BLAKE3_SIZE]);
/* Waits for the writer and frees everything; the first error of any piece. What is gathered and
 * was not flushed is dropped. Harmless on a sink that was never opened (all zeros). */
int ss_sink_close(struct ss_sink *sink);

#endif
