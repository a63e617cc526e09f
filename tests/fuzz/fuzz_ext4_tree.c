/* sources: csrc/ext4_write.c csrc/ext4_plan.c csrc/ext4_group.c csrc/ext4_inode.c csrc/ext4_fields.c csrc/ext4_files.c csrc/ext4_sink.c csrc/ext4_tree.c csrc/ext4_dir.c csrc/ext4_hash.c csrc/ext4_extent.c csrc/ext4_xattr.c csrc/ext4_layout.c csrc/ext4_csum.c csrc/blake3.c csrc/quick_sum.c csrc/crc32c.c csrc/ext4_edit.c csrc/ext4_edit_block.c csrc/ext4_edit_inode.c csrc/ext4_edit_dir.c csrc/ext4_edit_path.c */
/* Hostile trees for the ext4 writer; what it accepts, the editor must find undamaged.
 *
 * Input: 4 bytes (options, inodes, entries, low byte of the entries), 20 bytes an inode, 4 bytes
 * an entry, the rest is the blob. Each table is given to the writer in a buffer of its own size.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ext4.h"
#include "ext4_edit.h"

enum { INODE_BYTES = 20, ENTRY_BYTES = 4, LIMIT = 1 << 20 };

static const uint64_t SIZES[] = {8 << 20, 64 << 20, 129 << 20, 257 << 20};
static const uint16_t TYPES[] = {0040755, 0100644, 0120777, 0020600, 0060600, 0010644, 0140755, 0};

static uint16_t u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static int open_object(void *context, uint32_t inode, const uint8_t hash[SS_HASH_SIZE],
                       const struct ss_ext4_object *object)
{
    static int pack = -1; /* the context's, as that of a pack is */

    (void)context;
    (void)inode;
    if (object != NULL && object->pack != 0) {
        if (pack < 0)
            pack = open("/dev/zero", O_RDONLY | O_CLOEXEC);
        return pack;
    }
    if (hash[0] == 1)
        return -ENOENT;
    if (hash[0] == 0)
        return open("/dev/zero", O_RDONLY | O_CLOEXEC);
    int fd = memfd_create("object", MFD_CLOEXEC); /* holes, perhaps too short */
    if (fd >= 0 && (ftruncate(fd, (off_t)hash[1] << 12) < 0 ||
                    pwrite(fd, "x", 1, hash[2] << 10) < 0)) {
        close(fd);
        return -EIO;
    }
    return fd;
}

static int facts(void *context, const uint32_t *inodes, uint32_t count,
                 struct ss_ext4_object *objects)
{
    (void)context;
    memset(objects, 0x5A, count * sizeof *objects);
    for (uint32_t i = 0; i < count; i++) {
        objects[i].pack = inodes[i] & 1;
        objects[i].quick = (inodes[i] & 2) != 0;
    }
    return 0;
}

static void *exact(const void *data, size_t size)
{
    void *copy = malloc(size);
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

static void expand(struct ss_inode *to, const uint8_t *from)
{
    memset(to, 0, sizeof *to);
    to->mode = TYPES[from[0] & 7] ^ (from[0] & 0x40 ? 0x10000u : 0);
    to->flags = from[1] & 3;
    to->size = (uint64_t)u16(from + 2) << (from[1] >> 6); /* to 512 KiB */
    to->data_off = u16(from + 4);
    to->data_len = u16(from + 6);
    to->first_entry = from[8];
    to->entry_count = from[9];
    to->xattr_off = u16(from + 10);
    to->xattr_len = u16(from + 12);
    to->mtime_nsec = (int32_t)((uint32_t)u16(from + 14) << 16);
    to->mtime_sec = (int64_t)((uint64_t)u16(from + 14) << 40);
    to->rdev = u16(from + 16);
    memcpy(to->hash, from + 17, 3);
    if (from[1] & 8) { /* offsets near the ends of 32 bits */
        to->data_off |= 0xFFFF0000u;
        to->xattr_off |= 0xFFFF0000u;
    }
}

static void look_again(int fd, uint64_t size)
{
    struct ss_edit edit;
    int rc = ss_edit_open(&edit, fd, 4096, size, 0, 0);
    if (rc < 0)
        abort();
    rc = ss_edit_mkdir(&edit, "/a/new/directory");
    if (rc == -EUCLEAN)
        abort();
    if (rc == 0) {
        rc = ss_edit_write(&edit, "/a/new/file", (const uint8_t *)"text", 4);
        if (rc == -EUCLEAN)
            abort();
    }
    ss_edit_close(&edit);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    if (length < 4 || length > LIMIT)
        return 0;
    uint32_t inodes = data[1], entries = data[2];
    uint8_t options = data[0];
    data += 4;
    length -= 4;
    if (length < inodes * INODE_BYTES + entries * ENTRY_BYTES)
        return 0;
    struct ss_inode *table = malloc(inodes * sizeof *table);
    struct ss_entry *names = malloc(entries * sizeof *names);
    for (uint32_t i = 0; i < inodes; i++, data += INODE_BYTES)
        expand(&table[i], data);
    for (uint32_t i = 0; i < entries; i++, data += ENTRY_BYTES)
        names[i] = (struct ss_entry){data[0], data[1], data[2] ? data[2] : data[3]};
    length -= inodes * INODE_BYTES + entries * ENTRY_BYTES;
    uint8_t *blob = exact(data, length);

    struct ss_tree tree = {table, names, blob, inodes, entries, length};
    struct ss_ext4_params params = {.size = SIZES[options & 3], .reserved_percent = 5};
    struct ss_ext4_source source = {NULL, open_object, options & 4 ? facts : NULL};
    struct ss_ext4_report report;
    memset(params.uuid, options, sizeof params.uuid);
    int fd = memfd_create("root", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)params.size + 4096) == 0) {
        int rc = ss_ext4_write(fd, 4096, &tree, &params, &source, &report);
        if (rc == 0)
            look_again(fd, params.size);
        else if (report.what == SS_EXT4_OK)
            abort(); /* an error that nobody can explain */
    }
    close(fd);
    free(table);
    free(names);
    free(blob);
    return 0;
}
