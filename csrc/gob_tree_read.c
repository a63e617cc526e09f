/* Wire structures into the tables: which field fills what (a plan), then inode by inode. */
#include "gob_tree.h"

#include <stddef.h>

#define MAX_FIELDS 64       /* of the structures read here */
#define MAX_XATTRS 1024     /* of one inode */
#define MAX_XATTR_BYTES (1u << 20)

enum role { /* the five kinds of inode, and */
    ROLE_ENTRY = GOB_TREE_KINDS,
    ROLE_SYSTEM,
    ROLES
};

enum slot {
    SKIP,
    MODE,
    UID,
    GID,
    NANOSECONDS,
    SECONDS,
    SIZE,
    HASH,
    SOURCE,
    TARGET,
    RDEV,
    XATTRS,
    ENTRIES,
    NAME,
    NUMBER,
    TABLE,
    REGULARS,
    BYTES,
    DIRECTORIES,
    ROOT
};

#define BIT(role) (1u << (role))
#define INODES 31u

static const struct {
    const char *name;
    uint8_t slot, roles, kind, elem, key;
} known_fields[] = {
    {"Mode", MODE, INODES & ~BIT(GOB_TREE_SYMLINK), GOB_UINT, 0, 0},
    {"Uid", UID, INODES, GOB_UINT, 0, 0},
    {"Gid", GID, INODES, GOB_UINT, 0, 0},
    {"MtimeNanoSeconds", NANOSECONDS, INODES & ~BIT(GOB_TREE_COMPUTED), GOB_INT, 0, 0},
    {"MtimeSeconds", SECONDS, INODES & ~BIT(GOB_TREE_COMPUTED), GOB_INT, 0, 0},
    {"Size", SIZE, BIT(GOB_TREE_REGULAR), GOB_UINT, 0, 0},
    {"Hash", HASH, BIT(GOB_TREE_REGULAR), GOB_ARRAY, GOB_UINT, 0},
    {"Source", SOURCE, BIT(GOB_TREE_COMPUTED), GOB_STRING, 0, 0},
    {"Symlink", TARGET, BIT(GOB_TREE_SYMLINK), GOB_STRING, 0, 0},
    {"Rdev", RDEV, BIT(GOB_TREE_SPECIAL), GOB_UINT, 0, 0},
    {"Xattrs", XATTRS, INODES, GOB_MAP, GOB_BYTES, GOB_STRING},
    {"EntryList", ENTRIES, BIT(GOB_TREE_DIRECTORY), GOB_SLICE, GOB_STRUCT, 0},
    {"Name", NAME, BIT(ROLE_ENTRY), GOB_STRING, 0, 0},
    {"InodeNumber", NUMBER, BIT(ROLE_ENTRY), GOB_UINT, 0, 0},
    {"InodeTable", TABLE, BIT(ROLE_SYSTEM), GOB_MAP, GOB_INTERFACE, GOB_UINT},
    {"NumRegularInodes", REGULARS, BIT(ROLE_SYSTEM), GOB_UINT, 0, 0},
    {"TotalDataBytes", BYTES, BIT(ROLE_SYSTEM), GOB_UINT, 0, 0},
    {"DirectoryCount", DIRECTORIES, BIT(ROLE_SYSTEM), GOB_UINT, 0, 0},
    {"DirectoryInode", ROOT, BIT(ROLE_SYSTEM), GOB_STRUCT, 0, 0},
};

/* Which field of a wire structure fills which slot; made once per structure, as a rule. */
struct plan {
    uint32_t type;
    uint8_t slot[MAX_FIELDS];
};

struct reader {
    const struct gob_types *types;
    struct gob_cursor *in;
    struct gob_tree *tree;
    struct plan plan[ROLES];
    uint64_t max_inodes;
    const uint8_t *read; /* up to here the input was dropped; NULL: it is left alone */
};

static uint32_t kind_of(const struct gob_types *types, uint32_t index)
{
    return index < types->count ? types->type[index].kind : GOB_NONE;
}

static int make_plan(const struct gob_types *types, uint32_t index, unsigned role,
                     struct plan *plan)
{
    const struct gob_type *type = &types->type[index];
    plan->type = GOB_NO_TYPE;
    if (type->kind != GOB_STRUCT)
        return GOB_E_VALUE;
    if (type->field_count > MAX_FIELDS)
        return GOB_E_LIMIT;
    for (uint32_t f = 0; f < type->field_count; f++) {
        const struct gob_field *field = &type->fields[f];
        plan->slot[f] = SKIP;
        for (size_t k = 0; k < sizeof known_fields / sizeof *known_fields; k++) {
            if (!(known_fields[k].roles & BIT(role)) ||
                strlen(known_fields[k].name) != field->name_len ||
                memcmp(known_fields[k].name, field->name, field->name_len) != 0)
                continue;
            if (kind_of(types, field->type) != known_fields[k].kind)
                return GOB_E_VALUE;
            const struct gob_type *found = &types->type[field->type];
            if ((known_fields[k].elem && kind_of(types, found->elem) != known_fields[k].elem) ||
                (known_fields[k].key && kind_of(types, found->key) != known_fields[k].key) ||
                (known_fields[k].slot == HASH && found->length != SS_HASH_SIZE))
                return GOB_E_VALUE;
            plan->slot[f] = known_fields[k].slot;
        }
    }
    plan->type = index;
    return 0;
}

/* The next field of a structure: *slot, and its type in *type; *over at the end. */
static int next_slot(struct reader *reader, const struct plan *plan, int64_t *field, uint8_t *slot,
                     uint32_t *type, int *over)
{
    const struct gob_type *structure = &reader->types->type[plan->type];
    uint64_t delta;
    int result = gob_read_uint(reader->in, &delta);
    if (result)
        return result;
    *over = delta == 0;
    if (*over)
        return 0;
    if (delta > (uint64_t)((int64_t)structure->field_count - 1 - *field))
        return GOB_E_FIELD;
    *field += (int64_t)delta;
    *slot = plan->slot[*field];
    *type = structure->fields[*field].type;
    return 0;
}

static int use_plan(struct reader *reader, uint32_t type, unsigned role)
{
    if (reader->plan[role].type == type)
        return 0;
    if (type >= reader->types->count)
        return GOB_E_TYPE;
    return make_plan(reader->types, type, role, &reader->plan[role]);
}

static int read_u32(struct gob_cursor *in, uint32_t *value)
{
    uint64_t number;
    int result = gob_read_uint(in, &number);
    if (!result && number > UINT32_MAX)
        result = GOB_E_VALUE;
    *value = (uint32_t)number;
    return result;
}

/* A string, kept in the blob. */
static int keep_string(struct reader *reader, uint32_t *offset, uint32_t *length)
{
    const uint8_t *data;
    uint64_t count;
    int result = gob_read_bytes(reader->in, &data, &count);
    if (result)
        return result;
    struct gob_buffer *blob = &reader->tree->blob;
    if (count > UINT32_MAX || blob->len + count > UINT32_MAX)
        return GOB_E_LIMIT;
    *offset = (uint32_t)blob->len;
    *length = (uint32_t)count;
    gob_write(blob, data, (size_t)count);
    return blob->failed ? GOB_E_MEMORY : 0;
}

struct xattr {
    const uint8_t *name, *value;
    uint32_t name_len, value_len;
};

static int compare_xattrs(const void *left, const void *right)
{
    const struct xattr *a = left, *b = right;
    uint32_t length = a->name_len < b->name_len ? a->name_len : b->name_len;
    int order = memcmp(a->name, b->name, length);
    return order ? order : (a->name_len > b->name_len) - (a->name_len < b->name_len);
}

static int read_xattrs(struct reader *reader, struct ss_inode *inode)
{
    struct xattr found[MAX_XATTRS];
    uint64_t count, total = 0;
    int result = gob_read_uint(reader->in, &count);
    if (result)
        return result;
    if (count > MAX_XATTRS)
        return GOB_E_LIMIT;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t name_len, value_len;
        result = gob_read_bytes(reader->in, &found[i].name, &name_len);
        if (!result)
            result = gob_read_bytes(reader->in, &found[i].value, &value_len);
        if (result)
            return result;
        if (name_len == 0 || name_len > 255 || value_len > 65536 ||
            memchr(found[i].name, 0, name_len))
            return GOB_E_VALUE;
        found[i].name_len = (uint32_t)name_len;
        found[i].value_len = (uint32_t)value_len;
        total += 6 + name_len + value_len;
    }
    struct gob_buffer *blob = &reader->tree->blob;
    if (total > MAX_XATTR_BYTES || blob->len + total > UINT32_MAX)
        return GOB_E_LIMIT;
    qsort(found, count, sizeof *found, compare_xattrs);
    inode->xattr_off = (uint32_t)blob->len;
    inode->xattr_len = (uint32_t)total;
    for (uint64_t i = 0; i < count; i++) {
        if (i && compare_xattrs(&found[i - 1], &found[i]) == 0)
            return GOB_E_VALUE;
        uint16_t name_len = (uint16_t)found[i].name_len;
        gob_write(blob, &name_len, sizeof name_len);
        gob_write(blob, &found[i].value_len, sizeof found[i].value_len);
        gob_write(blob, found[i].name, found[i].name_len);
        gob_write(blob, found[i].value, found[i].value_len);
    }
    return blob->failed ? GOB_E_MEMORY : 0;
}

static int read_entry(struct reader *reader)
{
    struct ss_entry entry = {0};
    uint64_t number = 0;
    int64_t field = -1;
    for (;;) {
        uint8_t slot;
        uint32_t type;
        int over;
        int result = next_slot(reader, &reader->plan[ROLE_ENTRY], &field, &slot, &type, &over);
        if (result)
            return result;
        if (over)
            break;
        if (slot == NAME)
            result = keep_string(reader, &entry.name_off, &entry.name_len);
        else if (slot == NUMBER)
            result = gob_read_uint(reader->in, &number);
        else
            result = gob_skip(reader->types, type, reader->in);
        if (result)
            return result;
    }
    gob_write(&reader->tree->entries, &entry, sizeof entry);
    gob_write(&reader->tree->numbers, &number, sizeof number);
    return reader->tree->entries.failed || reader->tree->numbers.failed ? GOB_E_MEMORY : 0;
}

static int read_entries(struct reader *reader, uint32_t type, struct ss_inode *inode)
{
    uint64_t count, before = reader->tree->entries.len / sizeof(struct ss_entry);
    int result = use_plan(reader, reader->types->type[type].elem, ROLE_ENTRY);
    if (!result)
        result = gob_read_uint(reader->in, &count);
    if (result)
        return result;
    if (count > (uint64_t)(reader->in->end - reader->in->at))
        return GOB_E_SHORT;
    if (before + count > UINT32_MAX)
        return GOB_E_LIMIT;
    for (uint64_t i = 0; i < count && !result; i++)
        result = read_entry(reader);
    inode->first_entry = (uint32_t)before;
    inode->entry_count = (uint32_t)count;
    return result;
}

static int read_slot(struct reader *reader, uint8_t slot, uint32_t type, struct ss_inode *inode)
{
    struct gob_cursor *in = reader->in;
    int64_t number = 0;
    uint64_t count = 0;
    int result;
    switch (slot) {
    case MODE:
        return read_u32(in, &inode->mode);
    case UID:
        return read_u32(in, &inode->uid);
    case GID:
        return read_u32(in, &inode->gid);
    case NANOSECONDS:
        result = gob_read_int(in, &number);
        if (!result && (number < 0 || number > 999999999))
            result = GOB_E_VALUE;
        inode->mtime_nsec = (int32_t)number;
        inode->flags |= SS_INODE_HAS_MTIME;
        return result;
    case SECONDS:
        inode->flags |= SS_INODE_HAS_MTIME;
        return gob_read_int(in, &inode->mtime_sec);
    case SIZE:
        return gob_read_uint(in, &inode->size);
    case HASH:
        result = gob_read_uint(in, &count);
        if (!result && count != SS_HASH_SIZE)
            result = GOB_E_LENGTH;
        return result ? result : gob_read_byte_array(in, inode->hash, SS_HASH_SIZE);
    case SOURCE:
    case TARGET:
        return keep_string(reader, &inode->data_off, &inode->data_len);
    case RDEV:
        return gob_read_uint(in, &inode->rdev);
    case XATTRS:
        return read_xattrs(reader, inode);
    case ENTRIES:
        return read_entries(reader, type, inode);
    default:
        return gob_skip(reader->types, type, in);
    }
}

/* What a kind says about the rest of an inode. */
static int settle_inode(struct gob_tree *tree, unsigned kind, struct ss_inode *inode)
{
    static const uint32_t types[GOB_TREE_KINDS] = {S_IFDIR, S_IFREG, S_IFREG, S_IFLNK, 0};
    uint32_t format = inode->mode & S_IFMT;
    if (kind == GOB_TREE_SPECIAL) {
        if (format != S_IFCHR && format != S_IFBLK && format != S_IFIFO && format != S_IFSOCK)
            return gob_tree_fault(tree, SS_TREE_BAD_MODE, inode->number, 0);
    } else if (kind == GOB_TREE_SYMLINK) {
        inode->mode = S_IFLNK | 0777;
    } else if (format == 0) {
        inode->mode |= types[kind];
    } else if (format != types[kind]) {
        return gob_tree_fault(tree, SS_TREE_BAD_MODE, inode->number, 0);
    }
    if (kind != GOB_TREE_DIRECTORY && kind != GOB_TREE_SYMLINK)
        inode->flags &= ~(uint32_t)SS_INODE_HAS_MTIME;
    if (kind == GOB_TREE_COMPUTED)
        inode->flags |= SS_INODE_COMPUTED;
    if (inode->size == 0)
        memset(inode->hash, 0, SS_HASH_SIZE);
    return 0;
}

static int read_inode(struct reader *reader, uint32_t type, unsigned kind, struct ss_inode *inode)
{
    int64_t field = -1;
    int result = use_plan(reader, type, kind);
    while (!result) {
        uint8_t slot;
        uint32_t below;
        int over;
        result = next_slot(reader, &reader->plan[kind], &field, &slot, &below, &over);
        if (result)
            break;
        if (over)
            return settle_inode(reader->tree, kind, inode);
        result = read_slot(reader, slot, below, inode);
    }
    return result;
}

/* An interface value: name, type id, length, value. */
static int read_generic(struct reader *reader, struct ss_inode *inode)
{
    const uint8_t *name;
    uint64_t length;
    int64_t id;
    unsigned kind;
    int result = gob_read_bytes(reader->in, &name, &length);
    if (result)
        return result;
    for (kind = 0; kind < GOB_TREE_KINDS; kind++)
        if (strlen(gob_tree_names[kind]) == length &&
            memcmp(gob_tree_names[kind], name, length) == 0)
            break;
    if (kind == GOB_TREE_KINDS)
        return GOB_E_NAME;
    result = gob_read_int(reader->in, &id);
    if (!result)
        result = gob_read_uint(reader->in, &length);
    return result ? result
                  : read_inode(reader, gob_types_find(reader->types, id), kind, inode);
}

static void drop_read(struct reader *reader)
{
    if (reader->read == NULL || reader->in->at - reader->read < (ptrdiff_t)GOB_DROP_AT_ONCE)
        return;
    gob_drop(reader->read, reader->in->at);
    reader->read = reader->in->at;
}

static int read_table(struct reader *reader)
{
    struct gob_tree *tree = reader->tree;
    uint64_t count;
    int result = gob_read_uint(reader->in, &count);
    if (result)
        return result;
    if (count > (uint64_t)(reader->in->end - reader->in->at))
        return GOB_E_SHORT;
    if (count + tree->inodes.len / sizeof(struct ss_inode) > reader->max_inodes)
        return GOB_E_LIMIT;
    for (uint64_t i = 0; i < count && !result; i++) {
        struct ss_inode inode = {0};
        result = gob_read_uint(reader->in, &inode.number);
        if (!result)
            result = read_generic(reader, &inode);
        gob_write(&tree->inodes, &inode, sizeof inode);
        if (tree->inodes.failed)
            return GOB_E_MEMORY;
        drop_read(reader);
    }
    return result;
}

int gob_tree_read(const struct gob_types *types, uint32_t type, struct gob_cursor *in,
                  uint64_t max_inodes, int drop, struct gob_tree *tree)
{
    struct reader reader = {.types = types, .in = in, .tree = tree, .max_inodes = max_inodes,
                            .read = drop ? in->at : NULL};
    struct ss_inode root = {0};
    int64_t field = -1;
    *tree = (struct gob_tree){0};
    if (reader.max_inodes > UINT32_MAX)
        reader.max_inodes = UINT32_MAX;
    for (unsigned role = 0; role < ROLES; role++)
        reader.plan[role].type = GOB_NO_TYPE;
    gob_write(&tree->inodes, &root, sizeof root);
    if (tree->inodes.failed)
        return GOB_E_MEMORY;
    int result = use_plan(&reader, type, ROLE_SYSTEM);
    while (!result) {
        uint8_t slot;
        uint32_t below;
        int over;
        result = next_slot(&reader, &reader.plan[ROLE_SYSTEM], &field, &slot, &below, &over);
        if (result || over)
            break;
        switch (slot) {
        case TABLE:
            result = read_table(&reader);
            break;
        case REGULARS:
            result = gob_read_uint(in, &tree->num_regular_inodes);
            break;
        case BYTES:
            result = gob_read_uint(in, &tree->total_data_bytes);
            break;
        case DIRECTORIES:
            result = gob_read_uint(in, &tree->directory_count);
            break;
        case ROOT:
            result = read_inode(&reader, below, GOB_TREE_DIRECTORY, &root);
            break;
        default:
            result = gob_skip(types, below, in);
            break;
        }
    }
    if (result)
        return result;
    if ((root.mode & S_IFMT) == 0)
        root.mode |= S_IFDIR;
    memcpy(tree->inodes.data, &root, sizeof root);
    return gob_tree_link(tree);
}

void gob_tree_free(struct gob_tree *tree)
{
    gob_buffer_free(&tree->inodes);
    gob_buffer_free(&tree->entries);
    gob_buffer_free(&tree->blob);
    gob_buffer_free(&tree->numbers);
}
