/* The bytes of stored objects, one object after the other, into a socket that does not block.
 *
 * Many small objects are read together and sent in one call, large ones go from the page cache.
 */
#ifndef SS_OBJECT_SEND_H
#define SS_OBJECT_SEND_H

#include <stddef.h>
#include <stdint.h>

enum { SS_SEND_ROOM = 256 << 10 };

struct ss_object_sent {
    const uint8_t *hash; /* 64 bytes */
    uint64_t size;       /* bytes */
};

/* The directories of a store, which are looked up once for all objects in them. */
struct ss_object_directories {
    int store;       /* a descriptor */
    unsigned levels; /* 1 or 2, see object_path.h */
    int open[256];   /* descriptors by the first byte of a digest, or negative */
};

struct ss_object_sender {
    int directory;   /* of the store: a descriptor */
    unsigned levels; /* of directories: 1 or 2, see object_path.h */
    const struct ss_object_sent *objects;
    size_t count;
    uint8_t *buffer; /* SS_SEND_ROOM bytes */
    /* all zero to begin with, `file` -1 */
    size_t next;       /* the object that comes up */
    size_t fill, sent; /* bytes in the buffer, and of those that are out */
    int file;          /* of the large object before `next`, -1: none is on its way */
    uint64_t offset;   /* what is out of that one */
};

void ss_object_directories_start(struct ss_object_directories *directories, int store,
                                 unsigned levels);
/* Closes what was opened; the store's descriptor stays the caller's. */
void ss_object_directories_close(struct ss_object_directories *directories);

/* Sizes in bytes of stored objects, 0 for one that is not there. 0 or a negative errno. */
int ss_object_sizes(struct ss_object_directories *directories, struct ss_object_sent *objects,
                    size_t count);

/* Sends until all is out, `most` bytes are (about), or the socket is full. Once something has gone,
 * more room is waited for, each time no longer than `linger_ms` and not more than 16 times: a peer
 * that is a little slower than we are does not have to be come back for. How many bytes went, or a
 * negative errno: -ENODATA where the file of the object before `next` is shorter than its size. */
int64_t ss_object_send(struct ss_object_sender *sender, int fd, uint64_t most, int linger_ms);

/* Whether all is out. */
static inline int ss_object_all_sent(const struct ss_object_sender *sender)
{
    return sender->next == sender->count && sender->sent == sender->fill && sender->file < 0;
}

#endif
