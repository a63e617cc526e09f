/* Four CRC-32C side by side; see quick_sum.h. One alone waits for itself: three cycles a word. */
#include "quick_sum.h"

#include <string.h>

#include "crc32c.h"

enum { WORDS = 4 };

static void by_one(uint32_t crc[WORDS], const uint8_t *data, size_t steps)
{
    for (; steps > 0; steps--)
        for (unsigned n = 0; n < WORDS; n++, data += 8)
            crc[n] = ss_crc32c(crc[n], data, 8);
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static void by_sse42(uint32_t crc[WORDS], const uint8_t *data,
                                                       size_t steps)
{
    uint64_t a = crc[0], b = crc[1], c = crc[2], d = crc[3];

    for (; steps > 0; steps--, data += SS_QUICK_SUM_STEP) {
        uint64_t words[WORDS];
        memcpy(words, data, sizeof words);
        a = __builtin_ia32_crc32di(a, words[0]);
        b = __builtin_ia32_crc32di(b, words[1]);
        c = __builtin_ia32_crc32di(c, words[2]);
        d = __builtin_ia32_crc32di(d, words[3]);
    }
    crc[0] = (uint32_t)a;
    crc[1] = (uint32_t)b;
    crc[2] = (uint32_t)c;
    crc[3] = (uint32_t)d;
}

static void run(uint32_t crc[WORDS], const uint8_t *data, size_t steps)
{
    if (__builtin_cpu_supports("sse4.2"))
        by_sse42(crc, data, steps);
    else
        by_one(crc, data, steps);
}

#else

static void run(uint32_t crc[WORDS], const uint8_t *data, size_t steps)
{
    by_one(crc, data, steps);
}

#endif

void ss_quick_sum_start(struct ss_quick_sum *sum)
{
    memset(sum->crc, 0xFF, sizeof sum->crc);
}

void ss_quick_sum_update(struct ss_quick_sum *sum, const void *data, size_t length)
{
    uint8_t last[SS_QUICK_SUM_STEP] = {0};
    size_t whole = length / SS_QUICK_SUM_STEP, rest = length % SS_QUICK_SUM_STEP;

    run(sum->crc, data, whole);
    if (rest > 0) {
        memcpy(last, (const uint8_t *)data + length - rest, rest);
        run(sum->crc, last, 1);
    }
}

void ss_quick_sum_finish(const struct ss_quick_sum *sum, uint8_t out[SS_QUICK_SUM_SIZE])
{
    memcpy(out, sum->crc, SS_QUICK_SUM_SIZE);
}
