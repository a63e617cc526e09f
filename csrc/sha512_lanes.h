/* One SHA-512 kernel, included once per number of lanes. No include guard on purpose.
 *
 * Wants LANES (1, 2, 4, 8), KERNEL (the function's name) and KERNEL_TARGET (its attributes). Lane l
 * hashes `blocks` blocks of 128 bytes from data[l] on into state[0 … 7][l]; data[l] moves on.
 */

#if LANES == 1
#define V uint64_t
#else
typedef uint64_t SS_JOIN(words, LANES) __attribute__((vector_size(LANES * 8)));
#define V SS_JOIN(words, LANES)
#endif

#define ROTATE(x, n) (((x) >> (n)) | ((x) << (64 - (n))))
#if LANES == 8 /* one instruction each, which a compiler does not always see */
#define OF3(a, b, c, table) \
    ((V)_mm512_ternarylogic_epi64((__m512i)(a), (__m512i)(b), (__m512i)(c), table))
#define CHOOSE(e, f, g) OF3(e, f, g, 0xCA)
#define MAJORITY(a, b, c) OF3(a, b, c, 0xE8)
#else
#define CHOOSE(e, f, g) ((((f) ^ (g)) & (e)) ^ (g))
#define MAJORITY(a, b, c) (((a) & (b)) | (((a) | (b)) & (c)))
#endif
#define SUM0(x) (ROTATE(x, 28) ^ ROTATE(x, 34) ^ ROTATE(x, 39))
#define SUM1(x) (ROTATE(x, 14) ^ ROTATE(x, 18) ^ ROTATE(x, 41))
#define SIGMA0(x) (ROTATE(x, 1) ^ ROTATE(x, 8) ^ ((x) >> 7))
#define SIGMA1(x) (ROTATE(x, 19) ^ ROTATE(x, 61) ^ ((x) >> 6))
#define ROUND(a, b, c, d, e, f, g, h, word)                          \
    do {                                                             \
        V t = (h + K[round] + (word)) + CHOOSE(e, f, g) + SUM1(e);   \
        d += t;                                                      \
        h = t + SUM0(a) + MAJORITY(a, b, c);                         \
        round++;                                                     \
    } while (0)
/* Word i of a later round, from those of the rounds before it. */
#define NEXT(i) \
    (w[i] += SIGMA1(w[((i) + 14) & 15]) + w[((i) + 9) & 15] + SIGMA0(w[((i) + 1) & 15]))
#define EIGHT(word, at)                                \
    do {                                               \
        ROUND(a, b, c, d, e, f, g, h, word((at)));     \
        ROUND(h, a, b, c, d, e, f, g, word((at) + 1)); \
        ROUND(g, h, a, b, c, d, e, f, word((at) + 2)); \
        ROUND(f, g, h, a, b, c, d, e, word((at) + 3)); \
        ROUND(e, f, g, h, a, b, c, d, word((at) + 4)); \
        ROUND(d, e, f, g, h, a, b, c, word((at) + 5)); \
        ROUND(c, d, e, f, g, h, a, b, word((at) + 6)); \
        ROUND(b, c, d, e, f, g, h, a, word((at) + 7)); \
    } while (0)
#define FIRST(i) w[i]

#if LANES == 8
#define LOW64(a, b) __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define HIGH64(a, b) __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
/* of the four 128-bit quarters: 0 and 2 of both, 1 and 3 of both */
#define EVEN128(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13)
#define ODD128(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15)

/* Eight words of every lane, from byte `at` of its block on: w[i] has word i of all lanes. */
KERNEL_TARGET static inline void load_words(const uint8_t *const data[MAX_LANES], size_t at, V w[8])
{
    const __m512i swap = _mm512_set4_epi32(0x08090a0b, 0x0c0d0e0f, 0x00010203, 0x04050607);
    V row[8], low[4], high[4];

    for (unsigned lane = 0; lane < 8; lane++)
        row[lane] = (V)_mm512_shuffle_epi8(_mm512_loadu_si512(data[lane] + at), swap);
    for (unsigned i = 0; i < 4; i++) {
        low[i] = LOW64(row[2 * i], row[2 * i + 1]);
        high[i] = HIGH64(row[2 * i], row[2 * i + 1]);
    }
    w[0] = EVEN128(EVEN128(low[0], low[1]), EVEN128(low[2], low[3]));
    w[4] = ODD128(EVEN128(low[0], low[1]), EVEN128(low[2], low[3]));
    w[2] = EVEN128(ODD128(low[0], low[1]), ODD128(low[2], low[3]));
    w[6] = ODD128(ODD128(low[0], low[1]), ODD128(low[2], low[3]));
    w[1] = EVEN128(EVEN128(high[0], high[1]), EVEN128(high[2], high[3]));
    w[5] = ODD128(EVEN128(high[0], high[1]), EVEN128(high[2], high[3]));
    w[3] = EVEN128(ODD128(high[0], high[1]), ODD128(high[2], high[3]));
    w[7] = ODD128(ODD128(high[0], high[1]), ODD128(high[2], high[3]));
}
#endif

KERNEL_TARGET static void KERNEL(uint64_t state[8][MAX_LANES], const uint8_t *data[MAX_LANES],
                                 size_t blocks)
{
    V s[8];

    for (unsigned i = 0; i < 8; i++)
        memcpy(&s[i], state[i], sizeof s[i]);
    for (; blocks > 0; blocks--) {
        V w[16], a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
        unsigned round = 0;

#if LANES == 8
        load_words(data, 0, w);
        load_words(data, BLOCK / 2, w + 8);
#else
        uint64_t words[16][LANES] __attribute__((aligned(64)));
        for (unsigned lane = 0; lane < LANES; lane++)
            for (unsigned i = 0; i < 16; i++) {
                uint64_t word;
                memcpy(&word, data[lane] + (size_t)i * 8, sizeof word);
                words[i][lane] = be64toh(word);
            }
        memcpy(w, words, sizeof w);
#endif
        for (unsigned lane = 0; lane < LANES; lane++)
            data[lane] += BLOCK;
        EIGHT(FIRST, 0);
        EIGHT(FIRST, 8);
        for (unsigned pass = 1; pass < 5; pass++) {
            EIGHT(NEXT, 0);
            EIGHT(NEXT, 8);
        }
        s[0] += a;
        s[1] += b;
        s[2] += c;
        s[3] += d;
        s[4] += e;
        s[5] += f;
        s[6] += g;
        s[7] += h;
    }
    for (unsigned i = 0; i < 8; i++)
        memcpy(state[i], &s[i], sizeof s[i]);
}

#undef V
#undef ROTATE
#undef CHOOSE
#undef MAJORITY
#undef OF3
#undef LOW64
#undef HIGH64
#undef EVEN128
#undef ODD128
#undef SUM0
#undef SUM1
#undef SIGMA0
#undef SIGMA1
#undef ROUND
#undef NEXT
#undef EIGHT
#undef FIRST
#undef LANES
#undef KERNEL
#undef KERNEL_TARGET
