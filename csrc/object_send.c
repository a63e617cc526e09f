/* Sends objects; see object_send.h. */
#define _GNU_SOURCE
#include "object_send.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "object_path.h"
#include "object_read.h"

enum {
    LARGE = 64 << 10,  /* bytes: below, a copy costs less than a call of its own */
    WAITS = 16,
    DIRECTORIES = 256,
    FIRST = 3, /* characters of a path that name the first directory, with the slash */
    NOT_TRIED = -1,
    IN_VAIN = -2
};

void ss_object_directories_start(struct ss_object_directories *directories, int store,
                                 unsigned levels)
{
    directories->store = store;
    directories->levels = levels;
    for (unsigned i = 0; i < DIRECTORIES; i++)
        directories->open[i] = NOT_TRIED;
}

void ss_object_directories_close(struct ss_object_directories *directories)
{
    for (unsigned i = 0; i < DIRECTORIES; i++) {
        if (directories->open[i] >= 0)
            close(directories->open[i]);
        directories->open[i] = NOT_TRIED;
    }
}

/* Where an object is: a descriptor, and the path below it, which is in `room`. */
static int place(struct ss_object_directories *directories, const uint8_t *hash,
                 char room[SS_OBJECT_PATH], const char **path)
{
    int *open = &directories->open[hash[0]];

    ss_object_path(hash, directories->levels, room);
    if (*open == NOT_TRIED) {
        room[FIRST - 1] = 0;
        *open = openat(directories->store, room, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        room[FIRST - 1] = '/';
        if (*open < 0)
            *open = IN_VAIN; /* there is none, or there are too many descriptors */
    }
    *path = *open >= 0 ? room + FIRST : room;
    return *open >= 0 ? *open : directories->store;
}

int ss_object_sizes(struct ss_object_directories *directories, struct ss_object_sent *objects,
                    size_t count)
{
    char room[SS_OBJECT_PATH];
    const char *path;
    struct stat st;

    for (size_t i = 0; i < count; i++) {
        int directory = place(directories, objects[i].hash, room, &path);
        objects[i].size = 0;
        if (fstatat(directory, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
            objects[i].size = (uint64_t)st.st_size;
        else if (errno != ENOENT)
            return -errno;
    }
    return 0;
}

/* Takes the next objects: as many small ones as the buffer holds, or a large one. */
static int take(struct ss_object_sender *sender)
{
    char path[SS_OBJECT_PATH];

    sender->fill = sender->sent = 0;
    while (sender->next < sender->count) {
        const struct ss_object_sent *object = &sender->objects[sender->next];
        if (object->size >= LARGE ? sender->fill > 0 : object->size > SS_SEND_ROOM - sender->fill)
            break;
        ss_object_path(object->hash, sender->levels, path);
        int file =
            openat(sender->directory, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        sender->next++;
        if (file < 0)
            return -errno;
        if (object->size >= LARGE) {
            sender->file = file;
            sender->offset = 0;
            break;
        }
        int rc = ss_object_read(file, sender->buffer + sender->fill, (size_t)object->size, 0);
        close(file);
        if (rc < 0)
            return rc;
        sender->fill += (size_t)object->size;
    }
    return 0;
}

static int64_t send_file(struct ss_object_sender *sender, int fd)
{
    uint64_t size = sender->objects[sender->next - 1].size;
    off_t at = (off_t)sender->offset;
    ssize_t out = sendfile(fd, sender->file, &at, (size_t)(size - sender->offset));

    if (out == 0)
        errno = ENODATA;
    if (out <= 0)
        return -errno;
    sender->offset += (uint64_t)out;
    if (sender->offset == size) {
        close(sender->file);
        sender->file = -1;
    }
    return out;
}

static int64_t send_buffer(struct ss_object_sender *sender, int fd)
{
    ssize_t out = send(fd, sender->buffer + sender->sent, sender->fill - sender->sent,
                       MSG_DONTWAIT | MSG_NOSIGNAL);
    if (out < 0)
        return -errno;
    sender->sent += (size_t)out;
    return out;
}

/* Whether the socket has room again within `linger_ms`, of which a call has so many. */
static bool lingers(int fd, int linger_ms, unsigned *waits)
{
    struct pollfd waiting = {.fd = fd, .events = POLLOUT};

    return (*waits)++ < WAITS && poll(&waiting, 1, linger_ms) > 0;
}

int64_t ss_object_send(struct ss_object_sender *sender, int fd, uint64_t most, int linger_ms)
{
    uint64_t total = 0;
    unsigned waits = 0;

    while (total < most && !ss_object_all_sent(sender)) {
        int64_t out = 0;
        if (sender->sent < sender->fill)
            out = send_buffer(sender, fd);
        else if (sender->file >= 0)
            out = send_file(sender, fd);
        else
            out = take(sender);
        if (out == -EAGAIN || out == -EWOULDBLOCK) {
            if (total == 0 || !lingers(fd, linger_ms, &waits))
                break;
            continue;
        }
        if (out < 0 && out != -EINTR)
            return out;
        total += out > 0 ? (uint64_t)out : 0;
    }
    return (int64_t)total;
}
