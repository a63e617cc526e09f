/* sources: csrc/gob.c csrc/gob_tree_read.c csrc/gob_tree_link.c csrc/gob_tree_write.c csrc/tree_check.c */
/* gob streams through the C layer alone: definitions, the search for a value's end, and
 * file-system trees, which are checked, written and read again. */
#include "gob_tree.h"

#include <stdio.h>

#define MAX_TYPES 64
#define MAX_FIELDS 1024

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "broken: %s\n", what);
        abort();
    }
}

struct stream {
    struct gob_type type[GOB_BUILTINS + MAX_TYPES];
    uint32_t by_id[MAX_TYPES];
    struct gob_field field[MAX_FIELDS];
    uint32_t fields;
    struct gob_types types;
};

/* A definition at the cursor, its negative id first. */
static int define(struct stream *stream, struct gob_cursor *in)
{
    int64_t id;
    if (stream->types.count == GOB_BUILTINS + MAX_TYPES || gob_read_int(in, &id))
        return -1;
    struct gob_type *type = &stream->type[stream->types.count];
    uint32_t room = MAX_FIELDS - stream->fields;
    struct gob_field *fields = &stream->field[stream->fields];
    if (id >= 0 || id < -INT32_MAX || gob_read_type(in, -id, type, fields, &room))
        return -1;
    type->fields = fields;
    stream->fields += room;
    stream->types.count++;
    return gob_types_resolve(&stream->types);
}

/* Reads, checks, writes and reads again. */
static void try_tree(const struct gob_types *types, uint32_t index, const uint8_t *data,
                     size_t size)
{
    struct gob_cursor in = {data, data + size};
    struct gob_tree tree, again;
    if (gob_tree_read(types, index, &in, 4096, 0, &tree)) {
        gob_tree_free(&tree);
        return;
    }
    struct ss_inode *inodes = (struct ss_inode *)tree.inodes.data;
    struct ss_entry *entries = (struct ss_entry *)tree.entries.data;
    uint32_t count = (uint32_t)(tree.inodes.len / sizeof *inodes);
    uint32_t names = (uint32_t)(tree.entries.len / sizeof *entries);
    must(in.at <= in.end, "the cursor stays inside");
    if (ss_tree_finish(inodes, &count, entries, &names, tree.blob.data, tree.blob.len,
                       &tree.problem) == 0) {
        struct gob_tree_announcement kinds[GOB_TREE_KINDS] = {0};
        struct gob_buffer message = {0}, done = {0};
        for (int kind = 0; kind < GOB_TREE_KINDS; kind++)
            kinds[kind].id = 70 + kind;
        must(gob_tree_write(inodes, count, entries, tree.blob.data, 1, 2, 3, kinds, &message,
                            &done) == 0,
             "a checked tree can be written");
        must(done.len == 0, "nothing is announced twice");
        uint64_t usage = ss_tree_usage(inodes, count), regular, bytes, directories;
        ss_tree_totals(inodes, count, &regular, &bytes, &directories);
        must(directories >= 1 && (usage || count == directories || count >= 1), "sums");
        struct ss_tree_problem problem;
        must(ss_tree_finish(inodes, &count, entries, &names, tree.blob.data, tree.blob.len,
                            &problem) == 0,
             "checking twice changes nothing");
        gob_buffer_free(&message);
        gob_buffer_free(&done);
    } else {
        must(tree.problem.fault != SS_TREE_OK, "a refusal has a reason");
    }
    gob_tree_free(&tree);
    in = (struct gob_cursor){data, data + size};
    int result = gob_tree_read(types, index, &in, 1, 0, &again);
    must(result != 0 || again.inodes.len == sizeof *inodes, "the limit holds");
    gob_tree_free(&again);
}

/* A whole value, its definitions taken out. */
static void try_value(const struct gob_types *types, uint32_t index, const uint8_t *data,
                      size_t size)
{
    struct gob_cursor in = {data, data + size};
    if (types->type[index].kind != GOB_STRUCT)
        return;
    must(gob_skip(types, index, &in) == 0 && in.at == in.end, "what was scanned can be skipped");
    for (uint32_t i = GOB_BUILTINS; i < types->count; i++)
        if (types->type[i].kind == GOB_STRUCT && i == index)
            try_tree(types, i, data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct stream stream;
    static struct gob_scan scan;
    struct gob_cursor in = {data, data + size};
    struct gob_buffer flat = {0};
    uint32_t wanted = GOB_NO_TYPE;
    int inside = 0;
    stream.fields = 0;
    stream.types = (struct gob_types){stream.type, stream.by_id, GOB_BUILTINS, 0};
    gob_types_resolve(&stream.types);
    while (in.at < in.end) {
        uint64_t length;
        if (gob_read_uint(&in, &length) || length == 0 || length > (uint64_t)(in.end - in.at))
            break;
        struct gob_cursor message = {in.at, in.at + length};
        const uint8_t *begin = in.at;
        in.at += length;
        if (!inside) {
            int64_t id;
            if (gob_read_int(&message, &id))
                break;
            if (id < 0) {
                message.at = begin;
                if (define(&stream, &message) || message.at != message.end)
                    break;
                continue;
            }
            wanted = gob_types_find(&stream.types, id);
            begin = message.at;
            scan.max_depth = 32;
            scan.max_count = 1 << 20;
            flat.len = 0;
            if (gob_scan_start(&scan, &stream.types, wanted, &message))
                break;
            inside = 1;
        }
        int result;
        while ((result = gob_scan_run(&scan, &stream.types, &message)) == GOB_SCAN_DEFINE) {
            uint64_t skipped;
            gob_write(&flat, begin, (size_t)(message.at - begin));
            if (define(&stream, &message) ||
                (message.at != message.end && gob_read_uint(&message, &skipped)))
                goto over;
            begin = message.at;
        }
        if (result < 0)
            break;
        must(message.at <= message.end, "the scanner stays inside");
        gob_write(&flat, begin, (size_t)(message.at - begin));
        if (result == GOB_SCAN_DONE) {
            inside = 0;
            try_value(&stream.types, wanted, flat.data, flat.len);
        }
    }
over:
    gob_buffer_free(&flat);
    return 0;
}
