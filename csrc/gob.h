/* gob on the wire: numbers, type definitions, and where a value ends.
 *
 * Format: the documentation of Go's encoding/gob. A stream is messages, each a length and that many
 * bytes; a message starts with a type id, negative for a definition of that type. A value that
 * holds an interface may stop in the middle of its message for the definition of the concrete
 * type, and go on in the next message; struct gob_scan finds its end without decoding it.
 *
 * Nothing here allocates except struct gob_buffer. Input is hostile: every length is checked
 * against what is there. Functions return 0 or a negative enum gob_error unless they say otherwise.
 */
#ifndef SS_GOB_H
#define SS_GOB_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum gob_error {
    GOB_E_SHORT = -1,   /* the message ends inside a value */
    GOB_E_NUMBER = -2,  /* a number of more than 8 bytes */
    GOB_E_DEPTH = -3,   /* nested too deeply */
    GOB_E_TYPE = -4,    /* a type id that was not defined */
    GOB_E_FIELD = -5,   /* a field number beyond the structure */
    GOB_E_LENGTH = -6,  /* a count or length that cannot be */
    GOB_E_DEFINE = -7,  /* a type definition that makes no sense */
    GOB_E_VALUE = -8,   /* a value of the wrong type or out of range */
    GOB_E_LIMIT = -9,   /* more elements, types or bytes than allowed */
    GOB_E_MEMORY = -10, /* no memory */
    GOB_E_NAME = -11,   /* an interface value of a type nobody registered */
    GOB_E_TREE = -12    /* a file-system tree that is not one: see struct ss_tree_problem */
};

enum gob_kind {
    GOB_NONE = 0,
    GOB_BOOL = 1, /* 1 … 8 are also the ids of these types */
    GOB_INT = 2,
    GOB_UINT = 3,
    GOB_FLOAT = 4,
    GOB_BYTES = 5,
    GOB_STRING = 6,
    GOB_COMPLEX = 7,
    GOB_INTERFACE = 8,
    GOB_ARRAY = 9,
    GOB_SLICE = 10,
    GOB_STRUCT = 11,
    GOB_MAP = 12,
    GOB_OPAQUE = 13 /* bytes of the type's own making, such as a time */
};

#define GOB_BUILTINS 9u         /* gob_types.type[0 … 8] are these */
#define GOB_FIRST_USER_ID 64    /* ids below are the language's own */
#define GOB_NO_TYPE UINT32_MAX

struct gob_cursor {
    const uint8_t *at, *end;
};

struct gob_field {
    const uint8_t *name; /* in the definition's bytes */
    uint32_t name_len;
    uint32_t type;       /* index, after gob_types_resolve */
    int64_t id;
};

struct gob_type {
    int64_t id;
    int64_t elem_id, key_id;
    uint64_t length;     /* of an array */
    struct gob_field *fields;
    uint32_t field_count;
    uint32_t elem, key;  /* indexes, after gob_types_resolve */
    uint32_t kind;       /* enum gob_kind */
};

struct gob_types {
    struct gob_type *type; /* the builtins, then what was defined, in that order */
    uint32_t *by_id;       /* indexes of the defined ones, ordered by id */
    uint32_t count;
    int any_interface;     /* whether any of them can hold an interface */
};

struct gob_frame {
    uint64_t left;  /* elements still to come */
    int64_t field;  /* structure: the last field's number */
    uint32_t type;
    uint32_t stage; /* interface: 0 name, 1 type id */
};

#define GOB_MAX_DEPTH 64

struct gob_scan {
    struct gob_frame frame[GOB_MAX_DEPTH];
    uint32_t depth, max_depth;
    uint64_t max_count;
};

/* What gob_scan_run says besides an error. */
enum gob_scan_result {
    GOB_SCAN_DONE = 0,   /* the value is over; the cursor stands behind it */
    GOB_SCAN_MORE = 1,   /* the message is used up where a type id has to come */
    GOB_SCAN_DEFINE = 2  /* at the cursor stands a definition, starting with its negative id */
};

#define GOB_DROP_AT_ONCE (1u << 20) /* bytes: less is not worth a system call */

/* Bytes that grow; failed is set when memory ran out, and what was written is then useless. */
struct gob_buffer {
    uint8_t *data;
    size_t len, cap;
    int failed;
};

static inline int gob_read_uint(struct gob_cursor *in, uint64_t *value)
{
    if (in->at >= in->end)
        return GOB_E_SHORT;
    uint8_t first = *in->at++;
    if (first <= 0x7f) {
        *value = first;
        return 0;
    }
    unsigned count = 256u - first;
    if (count > 8)
        return GOB_E_NUMBER;
    if ((size_t)(in->end - in->at) < count)
        return GOB_E_SHORT;
    uint64_t number = 0;
    for (unsigned i = 0; i < count; i++)
        number = number << 8 | in->at[i];
    in->at += count;
    *value = number;
    return 0;
}

static inline int gob_read_int(struct gob_cursor *in, int64_t *value)
{
    uint64_t bits = 0;
    int result = gob_read_uint(in, &bits);
    *value = (int64_t)(bits & 1 ? ~(bits >> 1) : bits >> 1);
    return result;
}

/* A length and that many bytes. */
static inline int gob_read_bytes(struct gob_cursor *in, const uint8_t **data, uint64_t *length)
{
    int result = gob_read_uint(in, length);
    if (result)
        return result;
    if (*length > (uint64_t)(in->end - in->at))
        return GOB_E_SHORT;
    *data = in->at;
    in->at += *length;
    return 0;
}

/* One definition, from just behind its id. fields has room for *field_count, which is updated;
 * names point into the input. Nothing is resolved yet. */
int gob_read_type(struct gob_cursor *in, int64_t id, struct gob_type *type,
                  struct gob_field *fields, uint32_t *field_count);

/* Turns ids into indexes; unknown ones become GOB_NO_TYPE. Fails on an id defined twice. */
int gob_types_resolve(struct gob_types *types);

/* The index of an id, or GOB_NO_TYPE. */
uint32_t gob_types_find(const struct gob_types *types, int64_t id);

/* Starts on a value of a type, just behind the id of its message. */
int gob_scan_start(struct gob_scan *scan, const struct gob_types *types, uint32_t type,
                   struct gob_cursor *in);

/* Goes on as far as the message goes: enum gob_scan_result, or an error. After GOB_SCAN_DEFINE the
 * caller reads the definition, skips the length that follows it unless the message is over, and
 * calls again, with the types resolved anew; after GOB_SCAN_MORE it calls with the next message. */
int gob_scan_run(struct gob_scan *scan, const struct gob_types *types, struct gob_cursor *in);

/* Steps over one value (no definitions inside). */
int gob_skip(const struct gob_types *types, uint32_t type, struct gob_cursor *in);

static inline void gob_buffer_free(struct gob_buffer *out)
{
    free(out->data);
    *out = (struct gob_buffer){0};
}

static inline int gob_buffer_reserve(struct gob_buffer *out, size_t more)
{
    if (out->failed)
        return GOB_E_MEMORY;
    size_t want = out->len + more;
    size_t cap = out->cap < 512 ? 512 : out->cap;
    while (cap < want && cap <= SIZE_MAX / 2)
        cap *= 2;
    uint8_t *data = want < out->len || cap < want ? NULL : realloc(out->data, cap);
    if (!data) {
        out->failed = 1;
        out->len = out->cap; /* nothing more is written */
        return GOB_E_MEMORY;
    }
    out->data = data;
    out->cap = cap;
    return 0;
}

static inline void gob_write(struct gob_buffer *out, const void *data, size_t length)
{
    if (out->cap - out->len < length && gob_buffer_reserve(out, length))
        return;
    if (length)
        memcpy(out->data + out->len, data, length);
    out->len += length;
}

/* Memory that is not read again: its whole pages are given back, what was in them is lost. So a
 * large value need not be there in two forms at a time. */
void gob_drop(const void *from, const void *to);

/* Copies, dropping the source as it goes; the places do not overlap. */
void gob_move(void *to, const void *from, size_t length);

/* gob_write, dropping the source as it goes. */
void gob_write_moved(struct gob_buffer *out, const void *data, size_t length);

static inline void gob_write_uint(struct gob_buffer *out, uint64_t value)
{
    uint8_t bytes[9];
    if (out->cap - out->len < sizeof bytes && gob_buffer_reserve(out, sizeof bytes))
        return;
    if (value <= 0x7f) {
        out->data[out->len++] = (uint8_t)value;
        return;
    }
    unsigned count = (unsigned)(71 - __builtin_clzll(value)) / 8;
    out->data[out->len++] = (uint8_t)(256u - count);
    for (unsigned i = count; i-- > 0;)
        out->data[out->len++] = (uint8_t)(value >> (8 * i));
}

static inline void gob_write_int(struct gob_buffer *out, int64_t value)
{
    uint64_t bits = (uint64_t)value << 1;
    gob_write_uint(out, value < 0 ? ~bits : bits);
}

static inline void gob_write_bytes(struct gob_buffer *out, const void *data, size_t length)
{
    gob_write_uint(out, length);
    gob_write(out, data, length);
}

/* n bytes as n unsigned integers, as arrays of small numbers are sent. */
static inline void gob_write_byte_array(struct gob_buffer *out, const uint8_t *data, size_t count)
{
    if (out->cap - out->len < 2 * count && gob_buffer_reserve(out, 2 * count))
        return;
    uint8_t *at = out->data + out->len;
    for (size_t i = 0; i < count; i++) { /* without a branch: every second byte of a digest is large */
        *at = 0xff;
        at += data[i] >> 7;
        *at++ = data[i];
    }
    out->len = (size_t)(at - out->data);
}

/* The reverse, without the count. */
static inline int gob_read_byte_array(struct gob_cursor *in, uint8_t *data, size_t count)
{
    if ((size_t)(in->end - in->at) / 2 >= count) { /* the usual case: no checks on the way */
        const uint8_t *at = in->at;
        unsigned large = 0, other = 0; /* whether a value of more than 0x7f comes next; what is longer */
        for (size_t i = 0; i < count; i += large ^ 1) { /* as above, without a branch */
            data[i] = *at++;
            large = (data[i] >> 7) & (large ^ 1);
            other |= large & (data[i] != 0xff);
        }
        if (!other) {
            in->at = at;
            return 0;
        }
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t value;
        int result = gob_read_uint(in, &value);
        if (result)
            return result;
        if (value > 0xff)
            return GOB_E_VALUE;
        data[i] = (uint8_t)value;
    }
    return 0;
}

#endif
