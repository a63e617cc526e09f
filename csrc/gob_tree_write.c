#include "gob_tree.h"

/* The number of a field, as the step from the one before it. */
static void step(struct gob_buffer *out, int *at, int field)
{
    gob_write_uint(out, (uint64_t)(field - *at));
    *at = field;
}

static void put_uint(struct gob_buffer *out, int *at, int field, uint64_t value)
{
    if (value) {
        step(out, at, field);
        gob_write_uint(out, value);
    }
}

static void put_int(struct gob_buffer *out, int *at, int field, int64_t value, int always)
{
    if (value || always) {
        step(out, at, field);
        gob_write_int(out, value);
    }
}

static void put_string(struct gob_buffer *out, int *at, int field, const uint8_t *data,
                       uint32_t length)
{
    if (length) {
        step(out, at, field);
        gob_write_bytes(out, data, length);
    }
}

static void put_xattrs(struct gob_buffer *out, int *at, int field, const struct ss_inode *inode,
                       const uint8_t *blob)
{
    const uint8_t *from = blob + inode->xattr_off, *end = from + inode->xattr_len;
    uint64_t count = 0;
    uint16_t name_len;
    uint32_t value_len;
    if (inode->xattr_len == 0)
        return;
    for (const uint8_t *x = from; x < end; x += 6 + name_len + value_len, count++) {
        memcpy(&name_len, x, sizeof name_len);
        memcpy(&value_len, x + 2, sizeof value_len);
    }
    step(out, at, field);
    gob_write_uint(out, count);
    for (const uint8_t *x = from; x < end; x += 6 + name_len + value_len) {
        memcpy(&name_len, x, sizeof name_len);
        memcpy(&value_len, x + 2, sizeof value_len);
        gob_write_bytes(out, x + 6, name_len);
        gob_write_bytes(out, x + 6 + name_len, value_len);
    }
}

/* Directories and symlinks have a time that may be unknown: then neither part of it is there. */
static void put_mtime(struct gob_buffer *out, int *at, int field, const struct ss_inode *inode,
                      int may_lack)
{
    if (may_lack && !(inode->flags & SS_INODE_HAS_MTIME))
        return;
    put_int(out, at, field, inode->mtime_nsec, 0);
    put_int(out, at, field + 1, inode->mtime_sec, may_lack && inode->mtime_nsec == 0);
}

static void put_entries(struct gob_buffer *out, int *at, int field, const struct ss_inode *inode,
                        const struct ss_inode *inodes, const struct ss_entry *entries,
                        const uint8_t *blob)
{
    if (inode->entry_count == 0)
        return;
    step(out, at, field);
    gob_write_uint(out, inode->entry_count);
    for (uint32_t i = 0; i < inode->entry_count; i++) {
        const struct ss_entry *entry = &entries[inode->first_entry + i];
        int below = -1;
        put_string(out, &below, 0, blob + entry->name_off, entry->name_len);
        put_uint(out, &below, 1, inodes[entry->inode].number);
        gob_write_uint(out, 0);
    }
}

/* An inode of any kind: each has some of these fields, numbered in this order. */
static void put_inode(struct gob_buffer *out, enum gob_tree_kind kind, const struct ss_inode *inode,
                      const struct ss_inode *inodes, const struct ss_entry *entries,
                      const uint8_t *blob)
{
    int at = -1, field = 0;
    if (kind == GOB_TREE_DIRECTORY) {
        put_entries(out, &at, field, inode, inodes, entries, blob);
        field += 2; /* upstream's map of the entries by name comes next; it is never sent */
    }
    if (kind != GOB_TREE_SYMLINK)
        put_uint(out, &at, field++, inode->mode);
    put_uint(out, &at, field++, inode->uid);
    put_uint(out, &at, field++, inode->gid);
    if (kind == GOB_TREE_COMPUTED || kind == GOB_TREE_SYMLINK)
        put_string(out, &at, field++, blob + inode->data_off, inode->data_len);
    if (kind != GOB_TREE_COMPUTED) {
        put_mtime(out, &at, field, inode, kind == GOB_TREE_DIRECTORY || kind == GOB_TREE_SYMLINK);
        field += 2;
    }
    if (kind == GOB_TREE_REGULAR) {
        put_uint(out, &at, field++, inode->size);
        step(out, &at, field++);
        gob_write_uint(out, SS_HASH_SIZE);
        gob_write_byte_array(out, inode->hash, SS_HASH_SIZE);
    }
    if (kind == GOB_TREE_SPECIAL)
        put_uint(out, &at, field++, inode->rdev);
    put_xattrs(out, &at, field, inode, blob);
    gob_write_uint(out, 0);
}

int gob_tree_write(const struct ss_inode *inodes, uint32_t inode_count,
                   const struct ss_entry *entries, const uint8_t *blob,
                   uint64_t num_regular_inodes, uint64_t total_data_bytes,
                   uint64_t directory_count, struct gob_tree_announcement kinds[GOB_TREE_KINDS],
                   struct gob_buffer *message, struct gob_buffer *done)
{
    struct gob_buffer value = {0};
    int at = -1;
    if (!blob)
        blob = (const uint8_t *)""; /* offsets are taken of it, even of length 0 */
    if (inode_count > 1) {
        step(message, &at, 0);
        gob_write_uint(message, inode_count - 1);
    }
    for (uint32_t i = 1; i < inode_count; i++) {
        const struct ss_inode *inode = &inodes[i];
        enum gob_tree_kind kind = gob_tree_kind_of(inode);
        struct gob_tree_announcement *announced = &kinds[kind];
        value.len = 0;
        put_inode(&value, kind, inode, inodes, entries, blob);
        gob_write_uint(message, inode->number);
        gob_write_bytes(message, gob_tree_names[kind], strlen(gob_tree_names[kind]));
        if (announced->first) {
            gob_write(message, announced->first, announced->first_len);
            gob_write_bytes(done, message->data, message->len);
            gob_write(done, announced->rest, announced->rest_len);
            message->len = 0;
            announced->first = NULL;
        }
        gob_write_int(message, announced->id);
        gob_write_bytes(message, value.data, value.len);
    }
    put_uint(message, &at, 1, num_regular_inodes);
    put_uint(message, &at, 2, total_data_bytes);
    put_uint(message, &at, 3, directory_count);
    step(message, &at, 4);
    put_inode(message, GOB_TREE_DIRECTORY, &inodes[0], inodes, entries, blob);
    gob_write_uint(message, 0);
    int failed = value.failed || message->failed || done->failed;
    gob_buffer_free(&value);
    return failed ? GOB_E_MEMORY : 0;
}
