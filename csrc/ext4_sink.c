/* Gathers sequential output; see ext4_sink.h. */
#include "ext4_sink.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext4_format.h"

int ss_sink_open(struct ss_sink *sink, int fd, uint64_t offset, size_t room)
{
    void *buffer;
    memset(sink, 0, sizeof *sink);
    if (posix_memalign(&buffer, EXT4_BLOCK, room) != 0)
        return -ENOMEM;
    sink->buffer = buffer;
    sink->room = room;
    sink->fd = fd;
    sink->offset = offset;
    return 0;
}

void ss_sink_free(struct ss_sink *sink)
{
    free(sink->buffer);
    sink->buffer = NULL;
}

int ss_sink_flush(struct ss_sink *sink)
{
    size_t done = 0;
    while (done < sink->fill) {
        ssize_t got = pwrite(sink->fd, sink->buffer + done, sink->fill - done,
                             (off_t)(sink->offset + sink->position + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        done += (size_t)got;
    }
    sink->written += sink->fill;
    sink->position += sink->fill;
    sink->fill = 0;
    return 0;
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
