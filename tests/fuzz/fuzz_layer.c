/* sources: csrc/ext4_write.c csrc/ext4_plan.c csrc/ext4_group.c csrc/ext4_inode.c csrc/ext4_fields.c csrc/ext4_files.c csrc/ext4_sink.c csrc/ext4_tree.c csrc/ext4_dir.c csrc/ext4_hash.c csrc/ext4_extent.c csrc/ext4_xattr.c csrc/ext4_layout.c csrc/ext4_csum.c csrc/blake3.c csrc/quick_sum.c csrc/crc32c.c csrc/ext4_edit.c csrc/ext4_edit_block.c csrc/ext4_edit_inode.c csrc/ext4_edit_dir.c csrc/ext4_edit_path.c csrc/qcow2_overlay.c */
/* The editor over a damaged brick: bytes of a small root are changed, then paths are written.
 *
 * Input: 2 bytes (options, number of changes), 5 bytes a change (which used block, byte, two bytes
 * of value), the rest is actions: 1 byte (kind), 1 byte (length), a path.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ext4.h"
#include "ext4_edit.h"
#include "qcow2_overlay.h"

enum { SIZE = 16 << 20, MAX_CHANGES = 64, MANY = 400 };

static int brick = -1, layer = -1;
static uint8_t *bytes;                  /* the brick, mapped */
static uint32_t used[SIZE / EXT4_BLOCK]; /* its blocks that are not zero */
static uint32_t used_count;

static int no_objects(void *context, uint32_t inode, const uint8_t hash[SS_HASH_SIZE])
{
    (void)context;
    (void)inode;
    (void)hash;
    return -ENOENT;
}

/* /etc, /etc/fstab (a link), /many with an index, and a long symlink. */
static void make_brick(void)
{
    static struct ss_inode inodes[6];
    static struct ss_entry entries[MANY + 5];
    static uint8_t blob[MANY * 32 + 4096];
    uint32_t end = 0, entry = 0;
    static const char *const NAMES[] = {"etc", "many", "long", "file", "fstab"};
    const uint16_t modes[6] = {0040755, 0040755, 0040755, 0120777, 0100644, 0120777};

    for (unsigned i = 0; i < 6; i++)
        inodes[i].mode = modes[i];
    for (unsigned i = 0; i < 5; i++) {
        entries[entry].inode = i + 1;
        entries[entry].name_off = end;
        entries[entry].name_len = (uint32_t)strlen(NAMES[i]);
        memcpy(blob + end, NAMES[i], strlen(NAMES[i]));
        end += entries[entry++].name_len;
    }
    for (unsigned i = 0; i < MANY; i++) {
        entries[entry].inode = 4;
        entries[entry].name_off = end;
        entries[entry].name_len = 24;
        memset(blob + end, 'a' + (int)(i % 26), 24);
        blob[end] = (uint8_t)('0' + i / 26 % 10);
        blob[end + 1] = (uint8_t)('0' + i / 260);
        end += 24;
        entry++;
    }
    inodes[0].entry_count = 4; /* the root: etc, many, long, file */
    inodes[1].first_entry = 4; /* /etc: fstab, a link to ../file */
    inodes[1].entry_count = 1;
    inodes[2].first_entry = 5;
    inodes[2].entry_count = MANY;
    inodes[3].data_off = end;
    inodes[3].data_len = 200;
    memset(blob + end, '/', 200);
    memcpy(blob + end + 190, "etc", 3);
    end += 200;
    inodes[5].data_off = end;
    inodes[5].data_len = 7;
    memcpy(blob + end, "../file", 7);
    end += 7;
    struct ss_tree tree = {inodes, entries, blob, 6, entry, end};
    struct ss_ext4_params params = {.size = SIZE};
    struct ss_ext4_source source = {NULL, no_objects, NULL};
    struct ss_ext4_report report;
    if (ss_ext4_write(brick, 0, &tree, &params, &source, &report) < 0)
        abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    brick = memfd_create("brick", MFD_CLOEXEC);
    layer = memfd_create("layer", MFD_CLOEXEC);
    if (brick < 0 || layer < 0 || ftruncate(brick, SIZE) < 0)
        abort();
    make_brick();
    bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, brick, 0);
    if (bytes == MAP_FAILED)
        abort();
    static const uint8_t zeros[EXT4_BLOCK];
    for (uint32_t i = 0; i < SIZE / EXT4_BLOCK; i++)
        if (memcmp(bytes + (size_t)i * EXT4_BLOCK, zeros, EXT4_BLOCK) != 0)
            used[used_count++] = i;
    return 0;
}

static int act(struct ss_edit *edit, uint8_t kind, const char *path)
{
    static uint8_t data[70000];
    switch (kind & 3) {
    case 0: return ss_edit_mkdir(edit, path);
    case 1: return ss_edit_write(edit, path, data, (uint64_t)(kind >> 2) << 10);
    case 2: {
        int64_t got = ss_edit_read(edit, path, data, sizeof data);
        return got < 0 ? (int)got : 0;
    }
    default: return ss_edit_identity(edit, "a new label\0\0\0\0", data);
    }
}

static void write_layer(struct ss_edit *edit)
{
    struct ss_edit_block *list;
    struct ss_change changes[256];
    uint32_t count;
    uint64_t written;
    if (ss_edit_changes(edit, &list, &count) < 0)
        return;
    for (uint32_t i = 0; i < count && i < 256; i++) {
        if (list[i].number >= SIZE / EXT4_BLOCK)
            abort(); /* beyond the brick */
        changes[i] = (struct ss_change){list[i].number * EXT4_BLOCK, list[i].data, EXT4_BLOCK};
    }
    if (count <= 256 &&
        (ftruncate(layer, 0) < 0 ||
         ss_qcow2_overlay(layer, "brick", SIZE, changes, count, &written) < 0))
        abort();
    free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    size_t places[MAX_CHANGES];
    uint8_t before[MAX_CHANGES][2];
    struct ss_edit edit;

    if (length < 2)
        return 0;
    uint8_t options = data[0];
    unsigned changes = data[1] % MAX_CHANGES;
    data += 2;
    length -= 2;
    if (length < changes * 5u)
        return 0;
    for (unsigned i = 0; i < changes; i++, data += 5) {
        size_t at = (data[1] | (size_t)data[2] << 8) % (EXT4_BLOCK - 1);
        places[i] = (size_t)used[data[0] % used_count] * EXT4_BLOCK + at;
        memcpy(before[i], bytes + places[i], 2);
        memcpy(bytes + places[i], data + 3, 2);
    }
    length -= changes * 5u;
    int rc = ss_edit_open(&edit, brick, 0, SIZE, 1000, options & 1 ? 0 : SS_EDIT_NO_CHECKSUMS);
    if (rc == 0) {
        while (rc == 0 && length >= 2) {
            char path[256];
            size_t name = data[1] < length - 2 ? data[1] : length - 2;
            memcpy(path, data + 2, name);
            path[name] = 0;
            rc = act(&edit, data[0], path);
            data += 2 + name;
            length -= 2 + name;
        }
        if (rc == 0)
            write_layer(&edit);
        if (changes == 0 && rc == -EUCLEAN)
            abort(); /* nothing was damaged */
        ss_edit_close(&edit);
    }
    for (unsigned i = changes; i-- > 0;)
        memcpy(bytes + places[i], before[i], 2);
    return 0;
}
