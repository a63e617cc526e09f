/* Reads objects and checks them; see ext4_files.h. */
#include "ext4_files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SHARE_FROM = 64 << 10, /* bytes: below, writing is as fast, and extents stay few */
    SMALL = 64 << 10,      /* bytes: up to here a file is hashed with its neighbours */
    PART = 128 << 10       /* bytes read and hashed at a time, while they are in the second-level cache */
};

int ss_files_open(struct ss_files *files)
{
    memset(files, 0, sizeof *files);
    files->fd = -1;
    files->wanted = malloc(SS_FILES_BATCH * sizeof *files->wanted);
    files->objects = malloc(SS_FILES_BATCH * sizeof *files->objects);
    return files->wanted == NULL || files->objects == NULL ? -ENOMEM : 0;
}

void ss_files_free(struct ss_files *files)
{
    free(files->wanted);
    free(files->objects);
    files->wanted = NULL;
    files->objects = NULL;
}

/* Files come up in the order of the tree, so the next ones can be asked about together. */
static int fetch_facts(struct ss_files *files, struct ss_plan *plan, uint32_t index)
{
    const struct ss_tree *tree = plan->tree;

    files->have = files->next = 0;
    for (uint32_t i = index; i < tree->inode_count && files->have < SS_FILES_BATCH; i++)
        if (plan->facts.links[i] > 0 && ss_tree_size(&tree->inodes[i]) > 0)
            files->wanted[files->have++] = i;
    int rc = plan->source->facts(plan->source->context, files->wanted, files->have, files->objects);
    return rc < 0 ? ss_plan_fail(plan, rc, SS_EXT4_OBJECT_OPEN, index) : 0;
}

int ss_files_begin(struct ss_files *files, struct ss_plan *plan, uint32_t index)
{
    const struct ss_inode *inode = &plan->tree->inodes[index];
    int rc;

    if (plan->source->facts != NULL && files->next == files->have &&
        (rc = fetch_facts(files, plan, index)) < 0)
        return rc;
    const struct ss_ext4_object *object =
        plan->source->facts != NULL ? &files->objects[files->next] : NULL;
    files->index = index;
    files->size = inode->size;
    files->done = 0;
    files->small = false;
    files->packed = object != NULL && object->pack != 0;
    files->base = files->packed ? object->offset : 0;
    files->fd = plan->source->open(plan->source->context, index, inode->hash, object);
    if (files->fd < 0) {
        rc = files->fd;
        files->fd = -1;
        return ss_plan_fail(plan, rc, SS_EXT4_OBJECT_OPEN, index);
    }
    ss_blake3_start(&files->hash);
    ss_quick_sum_start(&files->sum);
    return 0;
}

static int wrong(struct ss_plan *plan, enum ss_ext4_what what, uint32_t index, uint64_t have)
{
    plan->report->wanted = plan->tree->inodes[index].size;
    plan->report->have = have;
    return ss_plan_fail(plan, -EBADMSG, what, index);
}

static const struct ss_ext4_object *expected(const struct ss_files *files)
{
    return &files->objects[files->next];
}

/* Exactly `length` bytes from byte files->done on. */
static int read_all(struct ss_files *files, struct ss_plan *plan, uint8_t *to, size_t length)
{
    while (length > 0) {
        ssize_t got = pread(files->fd, to, length, (off_t)(files->base + files->done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return ss_plan_fail(plan, -errno, SS_EXT4_OBJECT_READ, files->index);
        if (got == 0)
            return wrong(plan, SS_EXT4_OBJECT_SHORT, files->index, files->done);
        to += got;
        length -= (size_t)got;
        files->done += (uint64_t)got;
    }
    return 0;
}

/* The bytes before files->done. */
static void hash(struct ss_files *files, const struct ss_plan *plan, const uint8_t *data,
                 size_t length)
{
    if (plan->source->facts == NULL)
        return;
    if (expected(files)->quick)
        ss_quick_sum_update(&files->sum, data, length);
    else if (files->done < files->size)
        ss_blake3_more(&files->hash, data, length);
    else
        ss_blake3_update(&files->hash, data, length);
}

/* A hole's zeros count in the digest too. */
static void pass_hole(struct ss_files *files, const struct ss_plan *plan, uint64_t to)
{
    static const uint8_t zeros[65536];
    if (to > files->size)
        to = files->size;
    while (files->done < to) {
        uint64_t part = to - files->done < sizeof zeros ? to - files->done : sizeof zeros;
        files->done += part;
        hash(files, plan, zeros, part);
    }
}

static int flush(struct ss_plan *plan, struct ss_sink *sink)
{
    int rc = ss_sink_flush(sink);
    return rc < 0 ? ss_plan_fail(plan, rc, SS_EXT4_WRITE, 0) : 0;
}

/* A file that lies whole in the buffer is hashed with its neighbours, by the sink. */
static int copy_small(struct ss_files *files, struct ss_plan *plan, struct ss_sink *sink,
                      size_t padded)
{
    size_t size = files->size;
    int rc;

    if (sink->room - sink->now.fill < padded && (rc = flush(plan, sink)) < 0)
        return rc;
    uint8_t *to = sink->now.buffer + sink->now.fill;
    if ((rc = read_all(files, plan, to, size)) < 0)
        return rc;
    memset(to + size, 0, padded - size);
    sink->now.fill += padded;
    if (plan->source->facts == NULL)
        return 0;
    if (expected(files)->quick) {
        hash(files, plan, to, size);
        return 0;
    }
    files->small = true;
    ss_sink_expect(sink, files->index, to, size, expected(files)->check);
    return 0;
}

/* Whether the file system has the output share `length` bytes of the object from byte files->done
 * on. -EAGAIN: it cannot. */
static int share(struct ss_files *files, struct ss_plan *plan, struct ss_sink *sink, uint64_t length)
{
    struct file_clone_range range = {
        .src_fd = files->fd,
        .src_offset = files->base + files->done,
        .src_length = length,
        .dest_offset = sink->offset + sink->now.position,
    };

    while (ioctl(sink->fd, FICLONERANGE, &range) < 0) {
        switch (errno) {
        case EINTR:
            continue;
        case ENOSPC:
        case EDQUOT:
        case EIO:
            return ss_plan_fail(plan, -errno, SS_EXT4_WRITE, 0);
        default: /* there are many ways to say so */
            files->unshared = true;
            return -EAGAIN;
        }
    }
    return 0;
}

/* Has the whole blocks of the object in the `padded` bytes from here on shared, and checks what they
 * hold; how many bytes that were, 0 where they have to be written. */
static int64_t copy_shared(struct ss_files *files, struct ss_plan *plan, struct ss_sink *sink,
                           size_t padded)
{
    struct stat at;
    uint64_t left = files->size - files->done;
    uint64_t length = (left < padded ? left : padded) / EXT4_BLOCK * EXT4_BLOCK;
    int rc;

    if (files->unshared || length < SHARE_FROM)
        return 0;
    if (fstat(files->fd, &at) < 0 || (uint64_t)at.st_size < files->base + files->done + length)
        return 0; /* a short one is told of by whoever reads it */
    if ((rc = flush(plan, sink)) < 0)
        return rc;
    rc = share(files, plan, sink, length);
    if (rc < 0)
        return rc == -EAGAIN ? 0 : rc;
    for (uint64_t passed = 0; passed < length;) {
        size_t part = length - passed < PART ? length - passed : PART;
        if (part > sink->room)
            part = sink->room;
        if ((rc = read_all(files, plan, sink->now.buffer, part)) < 0)
            return rc;
        hash(files, plan, sink->now.buffer, part);
        passed += part;
    }
    if ((rc = ss_sink_seek(sink, sink->now.position + length)) < 0)
        return ss_plan_fail(plan, rc, SS_EXT4_WRITE, 0);
    return (int64_t)length;
}

int ss_files_copy(struct ss_files *files, struct ss_plan *plan, struct ss_sink *sink,
                  uint32_t logical, uint32_t length)
{
    uint64_t end = ((uint64_t)logical + length) * EXT4_BLOCK;
    size_t padded = (size_t)length * EXT4_BLOCK;
    int rc;

    pass_hole(files, plan, (uint64_t)logical * EXT4_BLOCK);
    if (files->done == 0 && end >= files->size && files->size <= SMALL)
        return copy_small(files, plan, sink, padded);
    int64_t shared = copy_shared(files, plan, sink, padded);
    if (shared < 0)
        return (int)shared;
    padded -= (size_t)shared;
    while (padded > 0) {
        size_t part = padded < PART ? padded : PART;
        if (part > sink->room)
            part = sink->room;
        if (sink->room - sink->now.fill < part && (rc = flush(plan, sink)) < 0)
            return rc;
        size_t bytes = files->size - files->done < part ? files->size - files->done : part;
        uint8_t *to = sink->now.buffer + sink->now.fill;
        if ((rc = read_all(files, plan, to, bytes)) < 0)
            return rc;
        hash(files, plan, to, bytes);
        memset(to + bytes, 0, part - bytes);
        sink->now.fill += part;
        padded -= part;
    }
    return 0;
}

int ss_files_end(struct ss_files *files, struct ss_plan *plan, int rc)
{
    if (!files->packed)
        close(files->fd);
    files->fd = -1;
    if (plan->source->facts == NULL || rc < 0)
        return rc;
    if (!files->small) {
        uint8_t digest[SS_BLAKE3_SIZE] = {0};
        pass_hole(files, plan, files->size);
        if (expected(files)->quick)
            ss_quick_sum_finish(&files->sum, digest);
        else
            ss_blake3_finish(&files->hash, digest);
        if (memcmp(digest, expected(files)->check, SS_BLAKE3_SIZE) != 0)
            rc = wrong(plan, SS_EXT4_OBJECT_CORRUPT, files->index, files->done);
    }
    files->next++;
    return rc;
}
