#define _GNU_SOURCE /* qsort_r */
#include "gob.h"

#include <sys/mman.h>
#include <unistd.h>

/* ---- memory that is done with --------------------------------------------------------------- */

void gob_drop(const void *from, const void *to)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)from + page - 1) & ~(page - 1);
    uintptr_t end = (uintptr_t)to & ~(page - 1);
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED); /* or it stays until it is freed */
}

void gob_move(void *to, const void *from, size_t length)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    while (length > 0) {
        size_t part = length < GOB_DROP_AT_ONCE ? length : GOB_DROP_AT_ONCE;
        memcpy(out, in, part);
        if (part == GOB_DROP_AT_ONCE)
            gob_drop(in, in + part);
        out += part;
        in += part;
        length -= part;
    }
}

void gob_write_moved(struct gob_buffer *out, const void *data, size_t length)
{
    if (out->cap - out->len < length && gob_buffer_reserve(out, length))
        return;
    gob_move(out->data + out->len, data, length);
    out->len += length;
}

/* ---- type definitions ----------------------------------------------------------------------- */

/* The next field of a structure: its number in *field, or 0 at its end. Numbers from 1 to last. */
static int next_field(struct gob_cursor *in, uint64_t *field, uint64_t last)
{
    uint64_t delta;
    int result = gob_read_uint(in, &delta);
    if (result)
        return result;
    if (delta == 0) {
        *field = 0;
        return 0;
    }
    if (delta > last - *field)
        return GOB_E_DEFINE;
    *field += delta;
    return 0;
}

/* CommonType: a name and an id, neither of them needed. */
static int skip_common(struct gob_cursor *in)
{
    uint64_t field = 0, length;
    int64_t id;
    const uint8_t *name;
    for (;;) {
        int result = next_field(in, &field, 2);
        if (!result && field == 1)
            result = gob_read_bytes(in, &name, &length);
        else if (!result && field == 2)
            result = gob_read_int(in, &id);
        if (result || field == 0)
            return result;
    }
}

static int read_field(struct gob_cursor *in, struct gob_field *out)
{
    uint64_t field = 0, length = 0;
    *out = (struct gob_field){.type = GOB_NO_TYPE};
    for (;;) {
        int result = next_field(in, &field, 2);
        if (!result && field == 1)
            result = gob_read_bytes(in, &out->name, &length);
        else if (!result && field == 2)
            result = gob_read_int(in, &out->id);
        if (result)
            return result;
        if (field == 0)
            break;
    }
    if (length == 0 || length > 1024)
        return GOB_E_DEFINE;
    out->name_len = (uint32_t)length;
    return 0;
}

static int read_fields(struct gob_cursor *in, struct gob_type *type, struct gob_field *fields,
                       uint32_t room)
{
    uint64_t count;
    int result = gob_read_uint(in, &count);
    if (result)
        return result;
    if (count > (uint64_t)(in->end - in->at))
        return GOB_E_SHORT;
    if (count > room)
        return GOB_E_LIMIT;
    for (uint64_t i = 0; i < count && !result; i++)
        result = read_field(in, &fields[i]);
    type->field_count = (uint32_t)count;
    return result;
}

/* The body of one of the seven kinds of definition; which is its field number in WireType. */
static int read_body(struct gob_cursor *in, uint64_t which, struct gob_type *type,
                     struct gob_field *fields, uint32_t room)
{
    static const uint8_t kinds[8] = {GOB_NONE,   GOB_ARRAY,  GOB_SLICE,  GOB_STRUCT,
                                     GOB_MAP,    GOB_OPAQUE, GOB_OPAQUE, GOB_OPAQUE};
    static const uint8_t last[8] = {0, 3, 2, 2, 3, 1, 1, 1};
    uint64_t field = 0;
    type->kind = kinds[which];
    for (;;) {
        int64_t length;
        int result = next_field(in, &field, last[which]);
        if (result || field == 0)
            return result;
        if (field == 1) {
            result = skip_common(in);
        } else if (which == 3) {
            result = read_fields(in, type, fields, room);
        } else if (which == 4 && field == 2) {
            result = gob_read_int(in, &type->key_id);
        } else if (which == 1 && field == 3) {
            result = gob_read_int(in, &length);
            if (!result && length < 0)
                result = GOB_E_DEFINE;
            type->length = (uint64_t)length;
        } else {
            result = gob_read_int(in, &type->elem_id);
        }
        if (result)
            return result;
    }
}

int gob_read_type(struct gob_cursor *in, int64_t id, struct gob_type *type,
                  struct gob_field *fields, uint32_t *field_count)
{
    uint64_t which = 0;
    *type = (struct gob_type){.id = id, .elem = GOB_NO_TYPE, .key = GOB_NO_TYPE};
    if (id < GOB_FIRST_USER_ID || id > INT32_MAX)
        return GOB_E_DEFINE;
    for (;;) {
        uint64_t before = which;
        int result = next_field(in, &which, 7);
        if (result)
            return result;
        if (which == 0)
            break;
        if (before)
            return GOB_E_DEFINE; /* two kinds at once */
        result = read_body(in, which, type, fields, *field_count);
        if (result)
            return result;
    }
    if (type->kind == GOB_NONE)
        return GOB_E_DEFINE;
    *field_count = type->field_count;
    return 0;
}

static int by_id(const void *left, const void *right, void *types)
{
    const struct gob_type *type = types;
    int64_t a = type[*(const uint32_t *)left].id, b = type[*(const uint32_t *)right].id;
    return (a > b) - (a < b);
}

uint32_t gob_types_find(const struct gob_types *types, int64_t id)
{
    if (id > 0 && id < (int64_t)GOB_BUILTINS)
        return (uint32_t)id;
    uint32_t low = 0, high = types->count - GOB_BUILTINS;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int64_t found = types->type[types->by_id[middle]].id;
        if (found == id)
            return types->by_id[middle];
        if (found < id)
            low = middle + 1;
        else
            high = middle;
    }
    return GOB_NO_TYPE;
}

int gob_types_resolve(struct gob_types *types)
{
    uint32_t defined = types->count - GOB_BUILTINS;
    types->any_interface = 0;
    for (uint32_t i = 0; i < GOB_BUILTINS; i++)
        types->type[i] = (struct gob_type){
            .id = i, .kind = i, .elem = GOB_NO_TYPE, .key = GOB_NO_TYPE};
    for (uint32_t i = 0; i < defined; i++)
        types->by_id[i] = GOB_BUILTINS + i;
    qsort_r(types->by_id, defined, sizeof *types->by_id, by_id, types->type);
    for (uint32_t i = 1; i < defined; i++)
        if (types->type[types->by_id[i]].id == types->type[types->by_id[i - 1]].id)
            return GOB_E_DEFINE;
    for (uint32_t i = GOB_BUILTINS; i < types->count; i++) {
        struct gob_type *type = &types->type[i];
        type->elem = gob_types_find(types, type->elem_id);
        type->key = gob_types_find(types, type->key_id);
        if (type->elem == GOB_INTERFACE || type->key == GOB_INTERFACE)
            types->any_interface = 1;
        for (uint32_t f = 0; f < type->field_count; f++) {
            type->fields[f].type = gob_types_find(types, type->fields[f].id);
            if (type->fields[f].type == GOB_INTERFACE)
                types->any_interface = 1;
        }
    }
    return 0;
}

/* ---- where a value ends --------------------------------------------------------------------- */

static int skip_uints(struct gob_cursor *in, uint64_t count)
{
    const uint8_t *at = in->at, *end = in->end;
    if (count > 1 && (uint64_t)(end - at) / 2 >= count) { /* as gob_read_byte_array */
        unsigned large = 0, other = 0;
        for (uint64_t i = 0; i < count; i += large ^ 1) {
            uint8_t byte = *at++;
            large = (unsigned)(byte >> 7) & (large ^ 1);
            other |= large & (byte != 0xff);
        }
        if (!other) {
            in->at = at;
            return 0;
        }
        at = in->at;
    }
    while (count--) {
        if (at >= end)
            return GOB_E_SHORT;
        uint8_t first = *at++;
        if (first <= 0x7f)
            continue;
        unsigned bytes = 256u - first;
        if (bytes > 8)
            return GOB_E_NUMBER;
        if ((size_t)(end - at) < bytes)
            return GOB_E_SHORT;
        at += bytes;
    }
    in->at = at;
    return 0;
}

/* Steps over a scalar, or pushes a frame for anything else. */
static int enter(struct gob_scan *scan, const struct gob_types *types, uint32_t index,
                 struct gob_cursor *in)
{
    if (index == GOB_NO_TYPE || index >= types->count)
        return GOB_E_TYPE;
    const struct gob_type *type = &types->type[index];
    const uint8_t *data;
    uint64_t count = 0;
    int result;
    switch (type->kind) {
    case GOB_BOOL:
    case GOB_INT:
    case GOB_UINT:
    case GOB_FLOAT:
        return skip_uints(in, 1);
    case GOB_COMPLEX:
        return skip_uints(in, 2);
    case GOB_BYTES:
    case GOB_STRING:
    case GOB_OPAQUE:
        return gob_read_bytes(in, &data, &count);
    case GOB_ARRAY:
    case GOB_SLICE:
    case GOB_MAP:
        result = gob_read_uint(in, &count);
        if (result)
            return result;
        if (count > scan->max_count)
            return GOB_E_LIMIT;
        if (type->kind == GOB_ARRAY && count != type->length)
            return GOB_E_LENGTH;
        if (type->kind == GOB_MAP)
            count *= 2;
        else if (type->elem >= GOB_BOOL && type->elem <= GOB_FLOAT)
            return skip_uints(in, count);
        break;
    case GOB_STRUCT:
    case GOB_INTERFACE:
        break;
    default:
        return GOB_E_TYPE;
    }
    if (scan->depth >= scan->max_depth)
        return GOB_E_DEPTH;
    scan->frame[scan->depth++] = (struct gob_frame){.left = count, .field = -1, .type = index};
    return 0;
}

/* An interface value's name and type id; then its frame gives way to the value's own. */
static int scan_interface(struct gob_scan *scan, const struct gob_types *types,
                          struct gob_cursor *in)
{
    struct gob_frame *frame = &scan->frame[scan->depth - 1];
    const uint8_t *name;
    uint64_t length;
    int64_t id;
    int result;
    if (frame->stage == 0) {
        result = gob_read_bytes(in, &name, &length);
        if (result)
            return result;
        if (length == 0) {
            scan->depth--;
            return GOB_SCAN_DONE;
        }
        if (length > 1024)
            return GOB_E_LENGTH;
        frame->stage = 1;
    }
    if (in->at == in->end)
        return GOB_SCAN_MORE;
    const uint8_t *before = in->at;
    result = gob_read_int(in, &id);
    if (result)
        return result;
    if (id < 0) {
        in->at = before;
        return GOB_SCAN_DEFINE;
    }
    uint32_t index = gob_types_find(types, id);
    if (index == GOB_NO_TYPE)
        return GOB_E_TYPE;
    result = gob_read_uint(in, &length);
    if (result)
        return result;
    if (types->type[index].kind != GOB_STRUCT) {
        uint64_t delta;
        result = gob_read_uint(in, &delta);
        if (result)
            return result;
        if (delta)
            return GOB_E_VALUE;
    }
    scan->depth--;
    return enter(scan, types, index, in);
}

int gob_scan_start(struct gob_scan *scan, const struct gob_types *types, uint32_t type,
                   struct gob_cursor *in)
{
    scan->depth = 0;
    if (type == GOB_NO_TYPE || type >= types->count)
        return GOB_E_TYPE;
    if (types->type[type].kind != GOB_STRUCT) {
        uint64_t delta;
        int result = gob_read_uint(in, &delta);
        if (result)
            return result;
        if (delta)
            return GOB_E_VALUE;
    }
    return enter(scan, types, type, in);
}

int gob_scan_run(struct gob_scan *scan, const struct gob_types *types, struct gob_cursor *in)
{
    while (scan->depth) {
        struct gob_frame *frame = &scan->frame[scan->depth - 1];
        const struct gob_type *type = &types->type[frame->type];
        uint64_t delta;
        int result = 0;
        switch (type->kind) {
        case GOB_STRUCT:
            result = gob_read_uint(in, &delta);
            if (result)
                return result;
            if (delta == 0) {
                scan->depth--;
                break;
            }
            if (delta > (uint64_t)((int64_t)type->field_count - 1 - frame->field))
                return GOB_E_FIELD;
            frame->field += (int64_t)delta;
            result = enter(scan, types, type->fields[frame->field].type, in);
            break;
        case GOB_INTERFACE:
            result = scan_interface(scan, types, in);
            break;
        case GOB_MAP:
            if (frame->left == 0) {
                scan->depth--;
                break;
            }
            frame->left--;
            result = enter(scan, types, frame->left & 1 ? type->key : type->elem, in);
            break;
        default:
            if (frame->left == 0) {
                scan->depth--;
                break;
            }
            frame->left--;
            result = enter(scan, types, type->elem, in);
            break;
        }
        if (result)
            return result;
    }
    return GOB_SCAN_DONE;
}

int gob_skip(const struct gob_types *types, uint32_t type, struct gob_cursor *in)
{
    struct gob_scan scan = {.max_depth = GOB_MAX_DEPTH, .max_count = UINT32_MAX};
    int result = enter(&scan, types, type, in);
    if (result == 0)
        result = gob_scan_run(&scan, types, in);
    return result > 0 ? GOB_E_TYPE : result;
}
