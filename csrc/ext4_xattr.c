/* Extended attributes; see ext4_xattr.h, and "Extended Attributes" in the kernel's ext4 document. */
#include "ext4_xattr.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ext4_format.h"

enum { MAX_ATTRIBUTES = 256, MAX_ACL_ENTRIES = 500 };
enum { INDEX_ACL_ACCESS = 2, INDEX_ACL_DEFAULT = 3 };

struct attribute {
    const uint8_t *name, *value;
    uint32_t value_length;
    uint8_t name_length, index;
    bool in_inode;
};

static const struct {
    const char *prefix;
    uint8_t index;
    bool whole; /* the prefix is all of the name */
} SPACES[] = {
    {"user.", 1, false},
    {"system.posix_acl_access", INDEX_ACL_ACCESS, true},
    {"system.posix_acl_default", INDEX_ACL_DEFAULT, true},
    {"trusted.", 4, false},
    {"security.", 6, false},
};

static int split_name(struct attribute *attribute, const uint8_t *name, uint32_t length)
{
    for (size_t i = 0; i < sizeof SPACES / sizeof SPACES[0]; i++) {
        size_t prefix = strlen(SPACES[i].prefix);
        if (length < prefix || memcmp(name, SPACES[i].prefix, prefix) != 0)
            continue;
        if (SPACES[i].whole ? length != prefix : length == prefix || length - prefix > 255)
            return -EINVAL;
        attribute->index = SPACES[i].index;
        attribute->name = name + prefix;
        attribute->name_length = (uint8_t)(length - prefix);
        return 0;
    }
    return -EINVAL;
}

/* The kernel's xattr form of an ACL (version 2, entries of 8 bytes) to ext4's (version 1, entries
 * of 4 bytes where there is no id). Returns the length in `out`, or -EINVAL, -E2BIG. */
static int convert_acl(const uint8_t *value, uint32_t length, uint8_t *out, uint32_t room)
{
    enum { USER = 2, GROUP = 8, KNOWN = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 };
    uint32_t version = 0, used = 4;

    if (length < 4 || (length - 4) % 8 != 0)
        return -EINVAL;
    memcpy(&version, value, 4);
    if (version != 2)
        return -EINVAL;
    if ((length - 4) / 8 > MAX_ACL_ENTRIES)
        return -E2BIG;
    version = 1;
    memcpy(out, &version, 4);
    for (uint32_t at = 4; at < length; at += 8) {
        uint16_t tag;
        memcpy(&tag, value + at, 2);
        if (tag == 0 || (tag & (tag - 1)) != 0 || (tag & ~KNOWN) != 0)
            return -EINVAL;
        uint32_t size = tag == USER || tag == GROUP ? 8 : 4;
        if (used + size > room)
            return -E2BIG;
        memcpy(out + used, value + at, size);
        used += size;
    }
    return (int)used;
}

static int by_key(const void *left, const void *right)
{
    const struct attribute *a = left, *b = right;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    if (a->name_length != b->name_length)
        return a->name_length < b->name_length ? -1 : 1;
    return memcmp(a->name, b->name, a->name_length);
}

static uint32_t entry_size(const struct attribute *attribute)
{
    return (uint32_t)(sizeof(struct ext4_xattr_entry) + attribute->name_length + 3) & ~3u;
}

static uint32_t value_size(const struct attribute *attribute)
{
    return (attribute->value_length + 3) & ~3u;
}

static uint32_t hash_entry(const struct attribute *attribute, const uint8_t *padded)
{
    uint32_t hash = 0;
    for (uint32_t i = 0; i < attribute->name_length; i++)
        hash = hash << 5 ^ hash >> 27 ^ attribute->name[i];
    for (uint32_t i = 0; i < value_size(attribute); i += 4) {
        uint32_t word;
        memcpy(&word, padded + i, 4);
        hash = hash << 16 ^ hash >> 16 ^ word;
    }
    return hash;
}

/* Entries grow up from `entries`, values grow down from the end; offsets count from `base`. */
struct region {
    uint8_t *base, *entries, *values;
    bool hashed;
    uint32_t hash;
};

static bool fits(const struct region *region, const struct attribute *attribute)
{
    size_t room = (size_t)(region->values - region->entries);
    return entry_size(attribute) + value_size(attribute) + 4 <= room; /* 4: the end mark */
}

static void put(struct region *region, const struct attribute *attribute)
{
    struct ext4_xattr_entry entry = {attribute->name_length, attribute->index, 0, 0,
                                     attribute->value_length, 0};
    region->values -= value_size(attribute);
    if (attribute->value_length > 0) {
        entry.value_offs = (uint16_t)(region->values - region->base);
        memcpy(region->values, attribute->value, attribute->value_length);
    }
    if (region->hashed) {
        entry.hash = hash_entry(attribute, region->values);
        region->hash = region->hash << 16 ^ region->hash >> 16 ^ entry.hash;
    }
    memcpy(region->entries, &entry, sizeof entry);
    memcpy(region->entries + sizeof entry, attribute->name, attribute->name_length);
    region->entries += entry_size(attribute);
}

/* Splits the packed form. ACL values are converted into `scratch`. */
static int parse(const uint8_t *packed, uint32_t length, struct attribute *list, uint32_t *count,
                 uint8_t *scratch, uint32_t scratch_room)
{
    uint32_t used = 0;
    *count = 0;
    while (length > 0) {
        uint16_t name_length;
        uint32_t value_length;
        if (length < 6)
            return -EINVAL;
        memcpy(&name_length, packed, 2);
        memcpy(&value_length, packed + 2, 4);
        packed += 6;
        length -= 6;
        if (name_length > length || value_length > length - name_length)
            return -EINVAL;
        if (*count == MAX_ATTRIBUTES)
            return -E2BIG;
        struct attribute *attribute = &list[*count];
        int rc = split_name(attribute, packed, name_length);
        if (rc < 0)
            return rc;
        attribute->value = packed + name_length;
        attribute->value_length = value_length;
        attribute->in_inode = false;
        if (value_length > EXT4_BLOCK)
            return -E2BIG;
        if (attribute->index == INDEX_ACL_ACCESS || attribute->index == INDEX_ACL_DEFAULT) {
            rc = convert_acl(attribute->value, value_length, scratch + used, scratch_room - used);
            if (rc < 0)
                return rc;
            attribute->value = scratch + used;
            attribute->value_length = (uint32_t)rc;
            used += (uint32_t)rc;
        }
        (*count)++;
        packed += name_length + value_length;
        length -= name_length + value_length;
    }
    return 0;
}

int ss_xattrs_encode(const uint8_t *packed, uint32_t length, uint8_t *area, uint8_t *block)
{
    struct attribute list[MAX_ATTRIBUTES];
    uint8_t scratch[2 * EXT4_BLOCK];
    uint32_t count, magic = EXT4_XATTR_MAGIC, in_block = 0;
    int rc = parse(packed, length, list, &count, scratch, sizeof scratch);

    if (rc < 0)
        return rc;
    memset(area, 0, SS_XATTR_IN_INODE);
    memset(block, 0, EXT4_BLOCK);
    if (count == 0)
        return 0;
    qsort(list, count, sizeof *list, by_key);
    for (uint32_t i = 1; i < count; i++)
        if (by_key(&list[i - 1], &list[i]) == 0)
            return -EINVAL;
    struct region inode = {area + 4, area + 4, area + SS_XATTR_IN_INODE, false, 0};
    for (uint32_t i = 0; i < count; i++)
        if (fits(&inode, &list[i])) {
            put(&inode, &list[i]);
            list[i].in_inode = true;
            memcpy(area, &magic, 4);
        }
    struct region rest = {block, block + sizeof(struct ext4_xattr_header), block + EXT4_BLOCK,
                          true, 0};
    for (uint32_t i = 0; i < count; i++) {
        if (list[i].in_inode)
            continue;
        if (!fits(&rest, &list[i]))
            return -E2BIG;
        put(&rest, &list[i]);
        in_block++;
    }
    if (in_block == 0)
        return 0;
    struct ext4_xattr_header header = {magic, 1, 1, rest.hash, 0, {0}};
    memcpy(block, &header, sizeof header);
    return 1;
}
