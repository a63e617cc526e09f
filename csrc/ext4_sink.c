/* Gathers sequential output; see ext4_sink.h. */
#define _GNU_SOURCE
#include "ext4_sink.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext4_format.h"

/* In one call. The kernel takes page-cache folios as large as a call, and large ones often come
 * from memory that a virtual machine's host has not backed yet: calls of 1 MiB then take up to
 * three times as long in all as smaller ones. Otherwise 700 MB take 118 ms by 128 KiB, 106 by
 * 256 KiB, 102 by 1 MiB. */
enum { WRITE_AT_ONCE = 256 << 10 };

/* Blocks that have their place already are written in three quarters of the time: ext4 then has
 * nothing to reserve and to note for every single one. 0 where a file system has no such call. */
static int allocate_blocks(struct ss_sink *sink, const struct ss_sink_piece *piece)
{
    while (!sink->unplaced && fallocate(sink->fd, FALLOC_FL_KEEP_SIZE,
                                        (off_t)(sink->offset + piece->position),
                                        (off_t)piece->fill) < 0) {
        if (errno == EIO)
            return -errno;
        sink->unplaced = errno != EINTR; /* without room too: the write says whether it needs any */
    }
    return 0;
}

static int write_piece(struct ss_sink *sink, const struct ss_sink_piece *piece)
{
    size_t done = 0;
    int rc = allocate_blocks(sink, piece);

    if (rc < 0)
        return rc;
    while (done < piece->fill) {
        size_t part = piece->fill - done < WRITE_AT_ONCE ? piece->fill - done : WRITE_AT_ONCE;
        ssize_t got = pwrite(sink->fd, piece->buffer + done, part,
                             (off_t)(sink->offset + piece->position + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        done += (size_t)got;
    }
    return 0;
}

/* The first file whose content is wrong, or `count`. */
static uint32_t find_corrupt(struct ss_sink_files *files)
{
    uint32_t i = 0;
    ss_blake3_small(files->messages, files->count);
    while (i < files->count &&
           memcmp(files->messages[i].digest, files->expected[i], SS_BLAKE3_SIZE) == 0)
        i++;
    return i;
}

/* Takes the oldest piece; the lock is held but for the work itself. */
static void finish_piece(struct ss_sink *sink)
{
    struct ss_sink_piece piece = sink->queue[0];
    if (sink->error == 0) {
        pthread_mutex_unlock(&sink->lock);
        uint32_t corrupt = find_corrupt(&piece.files);
        int rc = corrupt < piece.files.count ? -EBADMSG : write_piece(sink, &piece);
        pthread_mutex_lock(&sink->lock);
        if (rc < 0) {
            sink->error = rc;
            sink->corrupt = corrupt < piece.files.count;
            sink->inode = sink->corrupt ? piece.files.inodes[corrupt] : 0;
        } else {
            sink->written += piece.fill;
        }
    }
    sink->queued--;
    memmove(sink->queue, sink->queue + 1, sink->queued * sizeof sink->queue[0]);
    sink->spare[sink->spares++] = piece;
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
        finish_piece(sink);
        pthread_cond_signal(&sink->changed);
    }
    pthread_mutex_unlock(&sink->lock);
    return NULL;
}

/* Buffers, and for each the table of as many files as it has blocks. */
static int allocate(struct ss_sink *sink)
{
    const size_t files = sink->room / EXT4_BLOCK;
    const size_t each = sizeof(struct ss_blake3_message) + SS_BLAKE3_SIZE + sizeof(uint32_t);

    if (posix_memalign(&sink->memory, EXT4_BLOCK, sink->room * SS_SINK_BUFFERS) != 0)
        sink->memory = NULL;
    sink->tables = malloc(files * each * SS_SINK_BUFFERS);
    if (sink->memory == NULL || sink->tables == NULL)
        return -ENOMEM;
    struct ss_blake3_message *messages = sink->tables;
    uint8_t(*expected)[SS_BLAKE3_SIZE] = (void *)(messages + files * SS_SINK_BUFFERS);
    uint32_t *inodes = (void *)(expected + files * SS_SINK_BUFFERS);
    for (unsigned i = 0; i < SS_SINK_BUFFERS; i++)
        sink->spare[i] = (struct ss_sink_piece){
            (uint8_t *)sink->memory + i * sink->room, 0, 0,
            {0, messages + i * files, inodes + i * files, expected + i * files}};
    sink->spares = SS_SINK_BUFFERS - 1;
    sink->now = sink->spare[sink->spares];
    return 0;
}

int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room)
{
    sigset_t all, before;

    memset(sink, 0, sizeof *sink);
    sink->room = room;
    sink->fd = fd;
    sink->offset = offset;
    pthread_mutex_init(&sink->lock, NULL);
    pthread_cond_init(&sink->changed, NULL);
    if (allocate(sink) < 0)
        return -ENOMEM;
    sigfillset(&all); /* signals belong to the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&sink->writer, NULL, writer, sink);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    sink->running = rc == 0;
    return -rc;
}

int ss_sink_close(struct ss_sink *sink)
{
    if (sink->room == 0)
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
    free(sink->tables);
    sink->room = 0;
    return sink->error;
}

int ss_sink_flush(struct ss_sink *sink)
{
    uint64_t next = sink->now.position + sink->now.fill;

    pthread_mutex_lock(&sink->lock);
    if (sink->now.fill > 0) {
        sink->queue[sink->queued++] = sink->now;
        pthread_cond_signal(&sink->changed);
        while (sink->spares == 0)
            pthread_cond_wait(&sink->changed, &sink->lock);
        sink->now = sink->spare[--sink->spares];
    }
    int rc = sink->error;
    pthread_mutex_unlock(&sink->lock);
    sink->now.position = next;
    sink->now.fill = 0;
    sink->now.files.count = 0;
    return rc;
}

int ss_sink_seek(struct ss_sink *sink, uint64_t position)
{
    int rc;
    if (sink->now.position + sink->now.fill == position)
        return 0;
    if ((rc = ss_sink_flush(sink)) < 0)
        return rc;
    sink->now.position = position;
    return 0;
}

uint8_t *ss_sink_block(struct ss_sink *sink, int *rc)
{
    if (sink->room - sink->now.fill < EXT4_BLOCK && (*rc = ss_sink_flush(sink)) < 0)
        return NULL;
    uint8_t *block = sink->now.buffer + sink->now.fill;
    memset(block, 0, EXT4_BLOCK);
    sink->now.fill += EXT4_BLOCK;
    return block;
}

void ss_sink_expect(struct ss_sink *sink, uint32_t inode, const uint8_t *data, size_t length,
                    const uint8_t digest[SS_BLAKE3_SIZE])
{
    struct ss_sink_files *files = &sink->now.files;
    files->messages[files->count].data = data;
    files->messages[files->count].length = length;
    files->inodes[files->count] = inode;
    memcpy(files->expected[files->count], digest, SS_BLAKE3_SIZE);
    files->count++;
}
