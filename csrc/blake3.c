/* BLAKE3 over vector lanes: chunks and parents are the same kind of work, see blake3_lanes.h. */
#include "blake3.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian hosts"
#endif

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };
enum { MAX_LANES = 16, SUBTREE_CHUNKS = 256 };
enum { AHEAD = 128 }; /* bytes of a lane that are fetched early */

static const uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

/* What one lane walks: a chunk (up to 16 blocks) or a parent (one block of two values). */
struct lane_input {
    const uint8_t *data;
    uint8_t *out; /* 32 bytes; may be where the data came from */
    uint64_t counter;
    uint32_t blocks, last_length;
    uint32_t flags, first_flags, last_flags;
    uint8_t last[64]; /* the last block when it is short, padded with zeros */
};

#define SS_JOIN2(a, b) a##b
#define SS_JOIN(a, b) SS_JOIN2(a, b)

#define LANES 4
#define KERNEL compress_4
#define KERNEL_TARGET
#include "blake3_lanes.h"

#if defined(__x86_64__)
#define LANES 8
#define KERNEL compress_8
#define KERNEL_TARGET __attribute__((target("avx2")))
#include "blake3_lanes.h"

#define LANES 16
#define KERNEL compress_16
#define KERNEL_TARGET __attribute__((target("avx512f,avx512vl,avx512bw")))
#include "blake3_lanes.h"
#endif

unsigned ss_blake3_lanes(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return 16;
    if (__builtin_cpu_supports("avx2"))
        return 8;
#endif
    return 4;
}

/* Up to `lanes` inputs wait here until the kernel can take them together. */
struct batch {
    unsigned lanes, count;
    struct lane_input input[MAX_LANES];
};

static void run(struct batch *batch)
{
    if (batch->count == 0)
        return;
#if defined(__x86_64__)
    if (batch->lanes == 16 && batch->count > 8)
        compress_16(batch->input, batch->count);
    else if (batch->lanes >= 8 && batch->count > 4) {
        compress_8(batch->input, batch->count);
    } else
#endif
        for (unsigned done = 0; done < batch->count; done += 4)
            compress_4(batch->input + done, batch->count - done);
    batch->count = 0;
}

static struct lane_input *next_input(struct batch *batch)
{
    if (batch->count == batch->lanes)
        run(batch);
    return &batch->input[batch->count++];
}

static void add_chunk(struct batch *batch, const uint8_t *data, size_t length, uint64_t counter,
                      uint32_t root, uint8_t *out)
{
    struct lane_input *in = next_input(batch);
    uint32_t blocks = length == 0 ? 1 : (uint32_t)((length + 63) / 64);
    uint32_t last = (uint32_t)(length - (size_t)(blocks - 1) * 64);

    in->data = data;
    in->out = out;
    in->counter = counter;
    in->blocks = blocks;
    in->last_length = last;
    in->flags = 0;
    in->first_flags = CHUNK_START;
    in->last_flags = CHUNK_END | root;
    if (last < 64) {
        if (last > 0)
            memcpy(in->last, data + (size_t)(blocks - 1) * 64, last);
        memset(in->last + last, 0, 64 - last);
    }
}

static void add_parent(struct batch *batch, const uint8_t *children, uint32_t root, uint8_t *out)
{
    struct lane_input *in = next_input(batch);
    in->data = children;
    in->out = out;
    in->counter = 0;
    in->blocks = 1;
    in->last_length = 64;
    in->flags = PARENT;
    in->first_flags = 0;
    in->last_flags = root;
}

/* Joins `count` values in `values` pairwise until `stop` are left; an odd one moves up unchanged.
 * The value of a parent goes where its left child was, and is moved down before the next level. */
static size_t join(struct batch *batch, uint8_t (*values)[SS_BLAKE3_SIZE], size_t count,
                   uint32_t root)
{
    size_t pairs = count / 2;
    uint32_t flag = count == 2 ? root : 0;
    for (size_t i = 0; i < pairs; i++)
        add_parent(batch, values[2 * i], flag, values[2 * i]);
    run(batch);
    for (size_t i = 1; i < (count + 1) / 2; i++)
        memcpy(values[i], values[2 * i], SS_BLAKE3_SIZE);
    return (count + 1) / 2;
}

static void start(struct ss_blake3 *state)
{
    state->chunks = 0;
    state->tail_length = 0;
    state->depth = 0;
}

void ss_blake3_start(struct ss_blake3 *state)
{
    start(state);
}

/* Puts the value of a subtree of 2^level chunks on the stack, joining what it completes. Only
 * called when more input is known to follow, so nothing joined here is the root. */
static void push(struct ss_blake3 *state, struct batch *batch, const uint8_t *value,
                 unsigned level)
{
    uint8_t pair[64];
    uint64_t total = (state->chunks >> level) + 1;

    state->chunks += (uint64_t)1 << level;
    memcpy(pair + 32, value, 32);
    for (; (total & 1) == 0; total >>= 1) {
        state->depth--;
        memcpy(pair, state->stack[state->depth], 32);
        add_parent(batch, pair, 0, pair + 32);
        run(batch);
    }
    memcpy(state->stack[state->depth++], pair + 32, 32);
}

/* With `more` the end of `data` is not that of the message. */
static void update(struct ss_blake3 *state, struct batch *batch, const uint8_t *data,
                   size_t length, bool more)
{
    uint8_t values[SUBTREE_CHUNKS][SS_BLAKE3_SIZE];

    if (length == 0)
        return;
    if (state->tail_length > 0) {
        size_t take = SS_BLAKE3_CHUNK - state->tail_length;
        if (take > length)
            take = length;
        memcpy(state->tail + state->tail_length, data, take);
        state->tail_length += (uint32_t)take;
        data += take;
        length -= take;
        if (length == 0)
            return;
        add_chunk(batch, state->tail, SS_BLAKE3_CHUNK, state->chunks, 0, values[0]);
        run(batch);
        push(state, batch, values[0], 0);
        state->tail_length = 0;
    }
    /* The last chunk of a message stays in the tail: it may be the root's. */
    while (length > SS_BLAKE3_CHUNK || (more && length == SS_BLAKE3_CHUNK)) {
        unsigned level = 0;
        size_t count = 1;
        while (count < SUBTREE_CHUNKS && (state->chunks & (2 * count - 1)) == 0 &&
               (length > 2 * count * SS_BLAKE3_CHUNK ||
                (more && length == 2 * count * SS_BLAKE3_CHUNK))) {
            count *= 2;
            level++;
        }
        for (size_t i = 0; i < count; i++)
            add_chunk(batch, data + i * SS_BLAKE3_CHUNK, SS_BLAKE3_CHUNK, state->chunks + i, 0,
                      values[i]);
        run(batch);
        for (size_t left = count; left > 1;)
            left = join(batch, values, left, 0);
        push(state, batch, values[0], level);
        data += count * SS_BLAKE3_CHUNK;
        length -= count * SS_BLAKE3_CHUNK;
    }
    memcpy(state->tail, data, length);
    state->tail_length = (uint32_t)length;
}

void ss_blake3_more(struct ss_blake3 *state, const void *data, size_t length)
{
    struct batch batch;
    batch.lanes = ss_blake3_lanes();
    batch.count = 0;
    update(state, &batch, data, length, true);
}

void ss_blake3_update(struct ss_blake3 *state, const void *data, size_t length)
{
    struct batch batch;
    batch.lanes = ss_blake3_lanes();
    batch.count = 0;
    update(state, &batch, data, length, false);
}

static void finish(const struct ss_blake3 *state, struct batch *batch,
                   uint8_t digest[SS_BLAKE3_SIZE])
{
    uint8_t pair[64];
    uint32_t depth = state->depth;

    add_chunk(batch, state->tail, state->tail_length, state->chunks, depth == 0 ? ROOT : 0,
              pair + 32);
    run(batch);
    while (depth > 0) {
        depth--;
        memcpy(pair, state->stack[depth], 32);
        add_parent(batch, pair, depth == 0 ? ROOT : 0, pair + 32);
        run(batch);
    }
    memcpy(digest, pair + 32, SS_BLAKE3_SIZE);
}

void ss_blake3_finish(const struct ss_blake3 *state, uint8_t digest[SS_BLAKE3_SIZE])
{
    struct batch batch;
    batch.lanes = ss_blake3_lanes();
    batch.count = 0;
    finish(state, &batch, digest);
}

int ss_blake3_digest_lanes(unsigned lanes, const void *data, size_t length,
                           uint8_t digest[SS_BLAKE3_SIZE])
{
    struct batch batch;
    struct ss_blake3 state;

    if ((lanes != 4 && lanes != 8 && lanes != 16) || lanes > ss_blake3_lanes())
        return -EINVAL;
    batch.lanes = lanes;
    batch.count = 0;
    start(&state);
    update(&state, &batch, data, length, false);
    finish(&state, &batch, digest);
    return 0;
}

static size_t chunks_of(const struct ss_blake3_message *message)
{
    return message->length == 0 ? 1 : (message->length - 1) / SS_BLAKE3_CHUNK + 1;
}

/* The chunks of messages, those that are whole or those that are short: a lane with a short one
 * would wait for the others. `values` has a place for every chunk. */
static void add_chunks(struct batch *batch, struct ss_blake3_message *messages, size_t count,
                       bool whole, uint8_t (*values)[SS_BLAKE3_SIZE])
{
    size_t used = 0;

    for (size_t k = 0; k < count; k++) {
        struct ss_blake3_message *message = &messages[k];
        size_t full = message->length / SS_BLAKE3_CHUNK, rest = message->length % SS_BLAKE3_CHUNK;
        size_t chunks = chunks_of(message);
        uint8_t *only = chunks == 1 ? message->digest : NULL;

        for (size_t i = 0; whole && i < full; i++)
            add_chunk(batch, message->data + i * SS_BLAKE3_CHUNK, SS_BLAKE3_CHUNK, i,
                      only != NULL ? ROOT : 0, only != NULL ? only : values[used + i]);
        if (!whole && full < chunks)
            add_chunk(batch, message->data + full * SS_BLAKE3_CHUNK, rest, full,
                      only != NULL ? ROOT : 0, only != NULL ? only : values[used + full]);
        used += chunks;
    }
    run(batch);
}

/* One level of the trees over the chunks of messages: nodes are `width` chunks wide. */
static void join_level(struct batch *batch, struct ss_blake3_message *messages, size_t count,
                       size_t width, uint8_t (*values)[SS_BLAKE3_SIZE])
{
    size_t at = 0;

    for (size_t k = 0; k < count; k++) {
        size_t chunks = chunks_of(&messages[k]);
        size_t nodes = (chunks + width - 1) / width;
        for (size_t i = 0; i + 1 < nodes; i += 2) {
            /* Node i stays at values[at + i * width]; its pair is brought beside it, into the
             * place behind it, which no other node of this level uses. */
            uint8_t *left = values[at + i * width];
            if (width > 1)
                memcpy(left + SS_BLAKE3_SIZE, values[at + (i + 1) * width], SS_BLAKE3_SIZE);
            add_parent(batch, left, nodes == 2 ? ROOT : 0,
                       nodes == 2 ? messages[k].digest : left);
        }
        at += chunks;
    }
    run(batch);
}

void ss_blake3_small(struct ss_blake3_message *messages, size_t count)
{
    enum { ROOM = SS_BLAKE3_SMALL / SS_BLAKE3_CHUNK };
    uint8_t values[ROOM][SS_BLAKE3_SIZE];
    struct batch batch;

    batch.lanes = ss_blake3_lanes();
    batch.count = 0;
    for (size_t first = 0, end = 0; first < count; first = end) {
        /* As many messages as `values` holds: first all their chunks, then level by level. */
        size_t used = 0, most = 0;
        for (; end < count; end++) {
            size_t chunks = chunks_of(&messages[end]);
            if (used + chunks > ROOM)
                break;
            used += chunks;
            most = chunks > most ? chunks : most;
        }
        add_chunks(&batch, messages + first, end - first, true, values);
        add_chunks(&batch, messages + first, end - first, false, values);
        for (size_t width = 1; width < most; width *= 2)
            join_level(&batch, messages + first, end - first, width, values);
    }
}
