/* The hash of dir_index: half MD4 (Documentation/filesystems/ext4, "Hash Tree Directories"). */
#include "ext4_dir.h"

static uint32_t rotate(uint32_t value, unsigned bits)
{
    return value << bits | value >> (32 - bits);
}

/* One 32-byte piece of the name: MD4's first two rounds and its third, on half the words each. */
static void transform(uint32_t state[4], const uint32_t words[8])
{
    static const uint8_t ORDER[3][8] = {
        {0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}};
    static const uint8_t SHIFT[3][4] = {{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}};
    static const uint32_t ADD[3] = {0, 0x5A827999, 0x6ED9EBA1};
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];

    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < 8; i++) {
            uint32_t mixed;
            if (round == 0)
                mixed = d ^ (b & (c ^ d));
            else if (round == 1)
                mixed = (b & c) + ((b ^ c) & d);
            else
                mixed = b ^ c ^ d;
            uint32_t turned = rotate(a + mixed + words[ORDER[round][i]] + ADD[round],
                                     SHIFT[round][i % 4]);
            a = d;
            d = c;
            c = b;
            b = turned;
        }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

/* 32 bytes of a name as eight words, big-endian, padded with the length that is left. */
static void words_of(const uint8_t *name, uint32_t length, uint32_t words[8])
{
    uint32_t pad = (length | length << 8);
    pad |= pad << 16;
    uint32_t take = length < 32 ? length : 32, value = pad;
    unsigned filled = 0;

    for (uint32_t i = 0; i < take; i++) {
        value = name[i] + (value << 8);
        if (i % 4 == 3) {
            words[filled++] = value;
            value = pad;
        }
    }
    if (filled < 8)
        words[filled++] = value;
    while (filled < 8)
        words[filled++] = pad;
}

uint32_t ss_dir_hash(const uint32_t seed[4], const uint8_t *name, uint32_t length)
{
    uint32_t state[4] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476}, words[8];

    if ((seed[0] | seed[1] | seed[2] | seed[3]) != 0)
        for (unsigned i = 0; i < 4; i++)
            state[i] = seed[i];
    for (;;) {
        words_of(name, length, words);
        transform(state, words);
        if (length <= 32)
            break;
        name += 32;
        length -= 32;
    }
    uint32_t hash = state[1] & ~1U;
    return hash == 0xFFFFFFFE ? 0xFFFFFFFC : hash; /* the largest means end of directory */
}
