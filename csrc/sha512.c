/* SHA-512 in lanes; see sha512.h. */
#include "sha512.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { BLOCK = 128, MAX_LANES = 8, LENGTH_BYTES = 16 };

static const uint64_t K[80] = {
    0x428a2f98d728ae22u, 0x7137449123ef65cdu, 0xb5c0fbcfec4d3b2fu, 0xe9b5dba58189dbbcu,
    0x3956c25bf348b538u, 0x59f111f1b605d019u, 0x923f82a4af194f9bu, 0xab1c5ed5da6d8118u,
    0xd807aa98a3030242u, 0x12835b0145706fbeu, 0x243185be4ee4b28cu, 0x550c7dc3d5ffb4e2u,
    0x72be5d74f27b896fu, 0x80deb1fe3b1696b1u, 0x9bdc06a725c71235u, 0xc19bf174cf692694u,
    0xe49b69c19ef14ad2u, 0xefbe4786384f25e3u, 0x0fc19dc68b8cd5b5u, 0x240ca1cc77ac9c65u,
    0x2de92c6f592b0275u, 0x4a7484aa6ea6e483u, 0x5cb0a9dcbd41fbd4u, 0x76f988da831153b5u,
    0x983e5152ee66dfabu, 0xa831c66d2db43210u, 0xb00327c898fb213fu, 0xbf597fc7beef0ee4u,
    0xc6e00bf33da88fc2u, 0xd5a79147930aa725u, 0x06ca6351e003826fu, 0x142929670a0e6e70u,
    0x27b70a8546d22ffcu, 0x2e1b21385c26c926u, 0x4d2c6dfc5ac42aedu, 0x53380d139d95b3dfu,
    0x650a73548baf63deu, 0x766a0abb3c77b2a8u, 0x81c2c92e47edaee6u, 0x92722c851482353bu,
    0xa2bfe8a14cf10364u, 0xa81a664bbc423001u, 0xc24b8b70d0f89791u, 0xc76c51a30654be30u,
    0xd192e819d6ef5218u, 0xd69906245565a910u, 0xf40e35855771202au, 0x106aa07032bbd1b8u,
    0x19a4c116b8d2d0c8u, 0x1e376c085141ab53u, 0x2748774cdf8eeb99u, 0x34b0bcb5e19b48a8u,
    0x391c0cb3c5c95a63u, 0x4ed8aa4ae3418acbu, 0x5b9cca4f7763e373u, 0x682e6ff3d6b2b8a3u,
    0x748f82ee5defb2fcu, 0x78a5636f43172f60u, 0x84c87814a1f0ab72u, 0x8cc702081a6439ecu,
    0x90befffa23631e28u, 0xa4506cebde82bde9u, 0xbef9a3f7b2c67915u, 0xc67178f2e372532bu,
    0xca273eceea26619cu, 0xd186b8c721c0c207u, 0xeada7dd6cde0eb1eu, 0xf57d4f7fee6ed178u,
    0x06f067aa72176fbau, 0x0a637dc5a2c898a6u, 0x113f9804bef90daeu, 0x1b710b35131c471bu,
    0x28db77f523047d84u, 0x32caab7b40c72493u, 0x3c9ebe0a15c9bebcu, 0x431d67c49c100d4cu,
    0x4cc5d4becb3e42b6u, 0x597f299cfc657e2au, 0x5fcb6fab3ad6faecu, 0x6c44198c4a475817u,
};
static const uint64_t START[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
};

#define SS_JOIN2(a, b) a##b
#define SS_JOIN(a, b) SS_JOIN2(a, b)

#define LANES 1
#define KERNEL hash_1
#define KERNEL_TARGET
#include "sha512_lanes.h"

#if defined(__x86_64__)
#define LANES 1
#define KERNEL hash_1_bmi2
#define KERNEL_TARGET __attribute__((target("bmi2")))
#include "sha512_lanes.h"

#define LANES 4
#define KERNEL hash_4
#define KERNEL_TARGET __attribute__((target("avx2")))
#include "sha512_lanes.h"

#define LANES 8
#define KERNEL hash_8
#define KERNEL_TARGET __attribute__((target("avx512f,avx512vl,avx512bw")))
#include "sha512_lanes.h"
#endif

unsigned ss_sha512_lanes(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return 8;
    if (__builtin_cpu_supports("avx2"))
        return 4;
#endif
    return 1;
}

/* One message on its way: its whole blocks, then the one or two that its padding makes. */
struct lane {
    struct ss_sha512_message *message; /* NULL: none */
    const uint8_t *data;
    size_t blocks; /* to come from `data` */
    bool padded;   /* nothing comes behind them */
    uint8_t tail[2 * BLOCK];
};

struct lanes {
    unsigned width;
    uint64_t state[8][MAX_LANES];
    struct lane lane[MAX_LANES];
};

/* What follows the last whole block: the rest, a bit, zeros, the length in bits. */
static void pad(struct lane *lane)
{
    size_t rest = lane->message->length % BLOCK;
    size_t end = rest + 1 + LENGTH_BYTES <= BLOCK ? BLOCK : 2 * BLOCK;
    uint64_t bytes = lane->message->before + lane->message->length;
    uint64_t bits = htobe64(bytes << 3), more = htobe64(bytes >> 61);

    if (rest > 0)
        memcpy(lane->tail, lane->message->data + (lane->message->length - rest), rest);
    lane->tail[rest] = 0x80;
    memset(lane->tail + rest + 1, 0, end - rest - 1);
    memcpy(lane->tail + end - 16, &more, sizeof more);
    memcpy(lane->tail + end - 8, &bits, sizeof bits);
    lane->data = lane->tail;
    lane->blocks = end / BLOCK;
    lane->padded = true;
}

static void begin(struct lanes *all, unsigned number, struct ss_sha512_message *message)
{
    struct lane *lane = &all->lane[number];

    for (unsigned i = 0; i < 8; i++)
        all->state[i][number] = message->before > 0 ? message->state[i] : START[i];
    lane->message = message;
    lane->data = message->data;
    lane->blocks = message->length / BLOCK;
    lane->padded = message->more;
    if (lane->blocks == 0 && !lane->padded)
        pad(lane);
}

static void finish(struct lanes *all, unsigned number)
{
    struct lane *lane = &all->lane[number];

    for (unsigned i = 0; i < 8; i++) {
        uint64_t word = htobe64(all->state[i][number]);
        lane->message->state[i] = all->state[i][number];
        memcpy(lane->message->digest + (size_t)i * 8, &word, sizeof word);
    }
    lane->message = NULL;
}

static void hash_alone(struct lanes *all, unsigned number)
{
    struct lane *lane = &all->lane[number];
    uint64_t state[8][MAX_LANES];
    const uint8_t *data[MAX_LANES] = {lane->data};

    for (unsigned i = 0; i < 8; i++)
        state[i][0] = all->state[i][number];
#if defined(__x86_64__)
    if (__builtin_cpu_supports("bmi2"))
        hash_1_bmi2(state, data, lane->blocks);
    else
#endif
        hash_1(state, data, lane->blocks);
    for (unsigned i = 0; i < 8; i++)
        all->state[i][number] = state[i][0];
    lane->data = data[0];
    lane->blocks = 0;
}

/* Every busy lane goes on by as many blocks as all of them have. */
static void hash_together(struct lanes *all)
{
    const uint8_t *data[MAX_LANES], *some = NULL;
    size_t blocks = SIZE_MAX;

    for (unsigned i = 0; i < all->width; i++) {
        struct lane *lane = &all->lane[i];
        if (lane->message != NULL) {
            blocks = lane->blocks < blocks ? lane->blocks : blocks;
            some = lane->data;
        }
    }
    for (unsigned i = 0; i < all->width; i++) /* an idle lane hashes what another does, for nothing */
        data[i] = all->lane[i].message != NULL ? all->lane[i].data : some;
#if defined(__x86_64__)
    if (all->width == 8)
        hash_8(all->state, data, blocks);
    else
        hash_4(all->state, data, blocks);
#endif
    for (unsigned i = 0; i < all->width; i++) {
        all->lane[i].data = data[i];
        all->lane[i].blocks -= all->lane[i].message != NULL ? blocks : 0;
    }
}

static void hash_many(unsigned width, struct ss_sha512_message *messages, size_t count)
{
    struct lanes all = {.width = width};
    size_t next = 0;
    unsigned busy = 0;

    for (;;) {
        for (unsigned i = 0; i < width; i++) {
            struct lane *lane = &all.lane[i];
            if (lane->message != NULL && lane->blocks == 0 && !lane->padded)
                pad(lane);
            if (lane->message != NULL && lane->blocks == 0) {
                finish(&all, i);
                busy--;
            }
            if (lane->message == NULL && next < count) {
                begin(&all, i, &messages[next++]);
                busy++;
            }
        }
        if (busy == 0)
            return;
        if (busy > 1) {
            hash_together(&all);
            continue;
        }
        for (unsigned i = 0; i < width; i++)
            if (all.lane[i].message != NULL)
                hash_alone(&all, i);
    }
}

void ss_sha512_many(struct ss_sha512_message *messages, size_t count)
{
    hash_many(ss_sha512_lanes(), messages, count);
}

int ss_sha512_many_lanes(unsigned lanes, struct ss_sha512_message *messages, size_t count)
{
    if ((lanes != 1 && lanes != 4 && lanes != 8) || lanes > ss_sha512_lanes())
        return -EINVAL;
    hash_many(lanes, messages, count);
    return 0;
}
