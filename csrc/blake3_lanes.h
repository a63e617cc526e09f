/* One compression kernel, included once per number of lanes. No include guard on purpose.
 *
 * Wants LANES (4, 8, 16), KERNEL (the function's name) and KERNEL_TARGET (its attributes). Every
 * lane walks one input of up to 16 blocks of 64 bytes; lanes that end earlier keep their value.
 */

#define VECTOR_BYTES (LANES * 4)
#define ROWS (16 / LANES) /* vectors in one 64-byte block */

typedef uint32_t SS_JOIN(vector, LANES) __attribute__((vector_size(VECTOR_BYTES)));

#define V SS_JOIN(vector, LANES)

#define ROTATE(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
#define MIX(a, b, c, d, x, y)       \
    do {                            \
        a += b + (x);               \
        d = ROTATE(d ^ a, 16);      \
        c += d;                     \
        b = ROTATE(b ^ c, 12);      \
        a += b + (y);               \
        d = ROTATE(d ^ a, 8);       \
        c += d;                     \
        b = ROTATE(b ^ c, 7);       \
    } while (0)
/* The message words of a round are named by the specification's permutation, written out. */
#define ROUND(w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, wa, wb, wc, wd, we, wf) \
    do {                                                                      \
        MIX(s[0], s[4], s[8], s[12], m[w0], m[w1]);                           \
        MIX(s[1], s[5], s[9], s[13], m[w2], m[w3]);                           \
        MIX(s[2], s[6], s[10], s[14], m[w4], m[w5]);                          \
        MIX(s[3], s[7], s[11], s[15], m[w6], m[w7]);                          \
        MIX(s[0], s[5], s[10], s[15], m[w8], m[w9]);                          \
        MIX(s[1], s[6], s[11], s[12], m[wa], m[wb]);                          \
        MIX(s[2], s[7], s[8], s[13], m[wc], m[wd]);                           \
        MIX(s[3], s[4], s[9], s[14], m[we], m[wf]);                           \
    } while (0)

#if LANES == 4
#define LOW32(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH32(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LOW64(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define HIGH64(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#elif LANES == 8
#define LOW32(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH32(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW64(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH64(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define LOW128(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH128(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define LOW32(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH32(a, b) \
    __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW64(a, b) \
    __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH64(a, b) \
    __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
/* of the four 128-bit quarters: 0 and 2 of both, 1 and 3 of both */
#define EVEN128(a, b) \
    __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD128(a, b) \
    __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#endif

KERNEL_TARGET static void KERNEL(const struct lane_input *inputs, unsigned count)
{
    static const uint8_t nothing[64];
    V cv[8], s[16], m[16], row[16];
    uint32_t blocks[LANES], most = 0;
    V counter_low, counter_high;

    for (unsigned i = 0; i < 8; i++)
        cv[i] = (V){0} + IV[i];
    for (unsigned lane = 0; lane < LANES; lane++) {
        const struct lane_input *in = &inputs[lane < count ? lane : 0];
        blocks[lane] = lane < count ? in->blocks : 0;
        counter_low[lane] = (uint32_t)in->counter;
        counter_high[lane] = (uint32_t)(in->counter >> 32);
        if (blocks[lane] > most)
            most = blocks[lane];
    }
    for (uint32_t block = 0; block < most; block++) {
        uint32_t lengths[LANES], flag[LANES], lives[LANES];
        V length, flags, live;
        for (unsigned lane = 0; lane < LANES; lane++) {
            const struct lane_input *in = &inputs[lane < count ? lane : 0];
            const uint8_t *from = block < blocks[lane] ? in->data + (size_t)block * 64 : nothing;
            bool last = block + 1 == blocks[lane];
            if (last && in->last_length < 64)
                from = in->last;
            lives[lane] = block < blocks[lane] ? ~0U : 0;
            lengths[lane] = last ? in->last_length : 64;
            flag[lane] = in->flags | (block == 0 ? in->first_flags : 0) |
                         (last ? in->last_flags : 0);
            /* 16 streams of a few lines each are too many, and too short, to be foreseen */
            __builtin_prefetch(from + AHEAD);
            for (unsigned r = 0; r < ROWS; r++) /* row r of all lanes lies together */
                memcpy(&row[r * LANES + lane], from + r * VECTOR_BYTES, VECTOR_BYTES);
        }
        memcpy(&length, lengths, sizeof length);
        memcpy(&flags, flag, sizeof flags);
        memcpy(&live, lives, sizeof live);
        for (unsigned r = 0; r < ROWS; r++) {
            V *t = &row[r * LANES], *out = &m[r * LANES];
            V quad[LANES];
            for (unsigned k = 0; k < LANES; k += 4) { /* 4 × 4 words inside every 128 bits */
                V a = LOW32(t[k], t[k + 1]), b = HIGH32(t[k], t[k + 1]);
                V c = LOW32(t[k + 2], t[k + 3]), d = HIGH32(t[k + 2], t[k + 3]);
                quad[k] = LOW64(a, c);
                quad[k + 1] = HIGH64(a, c);
                quad[k + 2] = LOW64(b, d);
                quad[k + 3] = HIGH64(b, d);
            }
            for (unsigned c = 0; c < 4; c++) { /* then the 128-bit parts themselves */
#if LANES == 4
                out[c] = quad[c];
#elif LANES == 8
                out[c] = LOW128(quad[c], quad[4 + c]);
                out[4 + c] = HIGH128(quad[c], quad[4 + c]);
#else
                V even_low = EVEN128(quad[c], quad[4 + c]);
                V even_high = EVEN128(quad[8 + c], quad[12 + c]);
                V odd_low = ODD128(quad[c], quad[4 + c]);
                V odd_high = ODD128(quad[8 + c], quad[12 + c]);
                out[c] = EVEN128(even_low, even_high);
                out[4 + c] = EVEN128(odd_low, odd_high);
                out[8 + c] = ODD128(even_low, even_high);
                out[12 + c] = ODD128(odd_low, odd_high);
#endif
            }
        }
        for (unsigned i = 0; i < 8; i++)
            s[i] = cv[i];
        for (unsigned i = 0; i < 4; i++)
            s[8 + i] = (V){0} + IV[i];
        s[12] = counter_low;
        s[13] = counter_high;
        s[14] = length;
        s[15] = flags;
        ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
        ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
        ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
        ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
        ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
        ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
        for (unsigned i = 0; i < 8; i++)
            cv[i] = ((s[i] ^ s[8 + i]) & live) | (cv[i] & ~live);
    }
    for (unsigned lane = 0; lane < count && lane < LANES; lane++)
        for (unsigned i = 0; i < 8; i++) {
            uint32_t word = cv[i][lane];
            memcpy(inputs[lane].out + i * 4, &word, 4);
        }
}

#undef VECTOR_BYTES
#undef ROWS
#undef V
#undef ROTATE
#undef MIX
#undef ROUND
#undef LOW32
#undef HIGH32
#undef LOW64
#undef HIGH64
#undef LOW128
#undef HIGH128
#undef EVEN128
#undef ODD128
#undef LANES
#undef KERNEL
#undef KERNEL_TARGET
