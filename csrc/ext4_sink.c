/* Gathers sequential output; see ext4_sink.h. */
#include "ext4_sink.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext4_format.h"

static int write_piece(const struct ss_sink *sink, const struct ss_sink_piece *piece)
{
    size_t done = 0;
    while (done < piece->fill) {
        ssize_t got = pwrite(sink->fd, piece->buffer + done, piece->fill - done,
                             (off_t)(sink->offset + piece->position + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        done += (size_t)got;
    }
    return 0;
}

static void *writer(void *context)
{
    struct ss_sink *sink = context;

    pthread_mutex_lock(&sink->lock);
    for (;;) {
        while (sink->queued == 0 && !sink->closed)
            pthread_cond_wait(&sink->changed, &sink->lock);
        if (sink->queued == 0)
            break;
        struct ss_sink_piece piece = sink->queue[0];
        if (sink->error == 0) {
            pthread_mutex_unlock(&sink->lock);
            int rc = write_piece(sink, &piece);
            pthread_mutex_lock(&sink->lock);
            if (rc < 0)
                sink->error = rc;
            else
                sink->written += piece.fill;
        }
        sink->queued--;
        memmove(sink->queue, sink->queue + 1, sink->queued * sizeof sink->queue[0]);
        sink->spare[sink->spares++] = piece.buffer;
        pthread_cond_signal(&sink->changed);
    }
    pthread_mutex_unlock(&sink->lock);
    return NULL;
}

int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room)
{
    void *memory;
    sigset_t all, before;

    memset(sink, 0, sizeof *sink);
    sink->room = room;
    sink->fd = fd;
    sink->offset = offset;
    if (posix_memalign(&memory, EXT4_BLOCK, room * SS_SINK_BUFFERS) != 0)
        return -ENOMEM;
    sink->memory = memory;
    sink->buffer = sink->memory;
    for (unsigned i = 1; i < SS_SINK_BUFFERS; i++)
        sink->spare[sink->spares++] = sink->memory + i * room;
    pthread_mutex_init(&sink->lock, NULL);
    pthread_cond_init(&sink->changed, NULL);
    sigfillset(&all); /* signals belong to the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&sink->writer, NULL, writer, sink);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    sink->running = rc == 0;
    return -rc;
}

int ss_sink_close(struct ss_sink *sink)
{
    if (sink->memory == NULL)
        return 0;
    if (sink->running) {
        pthread_mutex_lock(&sink->lock);
        sink->closed = true;
        pthread_cond_signal(&sink->changed);
        pthread_mutex_unlock(&sink->lock);
        pthread_join(sink->writer, NULL);
    }
    pthread_cond_destroy(&sink->changed);
    pthread_mutex_destroy(&sink->lock);
    free(sink->memory);
    sink->memory = NULL;
    return sink->error;
}

int ss_sink_flush(struct ss_sink *sink)
{
    pthread_mutex_lock(&sink->lock);
    if (sink->fill > 0) {
        sink->queue[sink->queued++] =
            (struct ss_sink_piece){sink->buffer, sink->fill, sink->position};
        pthread_cond_signal(&sink->changed);
        while (sink->spares == 0)
            pthread_cond_wait(&sink->changed, &sink->lock);
        sink->buffer = sink->spare[--sink->spares];
    }
    int rc = sink->error;
    pthread_mutex_unlock(&sink->lock);
    sink->position += sink->fill;
    sink->fill = 0;
    return rc;
}

int ss_sink_seek(struct ss_sink *sink, uint64_t position)
{
    int rc;
    if (sink->position + sink->fill == position)
        return 0;
    if ((rc = ss_sink_flush(sink)) < 0)
        return rc;
    sink->position = position;
    return 0;
}

uint8_t *ss_sink_block(struct ss_sink *sink, int *rc)
{
    if (sink->room - sink->fill < EXT4_BLOCK && (*rc = ss_sink_flush(sink)) < 0)
        return NULL;
    uint8_t *block = sink->buffer + sink->fill;
    memset(block, 0, EXT4_BLOCK);
    sink->fill += EXT4_BLOCK;
    return block;
}
