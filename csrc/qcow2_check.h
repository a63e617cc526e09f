/* Counts every reference in a qcow2 image and holds them against its reference counts.
 *
 * Time follows the tables of the file: one that many snapshots share is read once. Memory is 14
 * bytes a cluster of the file, of which only what the file uses is touched.
 */
#ifndef SS_QCOW2_CHECK_H
#define SS_QCOW2_CHECK_H

#include "qcow2.h"

struct ss_qcow2_verdict {
    uint64_t corruptions; /* counts too low, places used twice, entries that cannot be */
    uint64_t leaks;       /* clusters counted but not used */
    uint64_t allocated, packed, total; /* guest clusters of the present */
    uint64_t image_end;   /* bytes up to the end of the last cluster in use */
    const char *problem;  /* the first corruption, or NULL */
    uint64_t problem_at;
};

/* Who uses a cluster of the file. */
enum {
    SS_USE_HEADER = 1, SS_USE_L1 = 2, SS_USE_L2 = 4, SS_USE_DATA = 8, SS_USE_REFCOUNTS = 16,
    SS_USE_SNAPSHOTS = 32, SS_USE_BITMAPS = 64, SS_USE_ACTIVE = 128, /* also by the present: an L2 table, a cluster of data */
    SS_USE_PACKED = 256, /* and SS_USE_DATA: compressed clusters */
};

/* What every cluster of the file is used for. Free with ss_qcow2_census_free. */
struct ss_qcow2_census {
    uint64_t clusters;
    uint32_t *refs;    /* references found */
    uint32_t *counts;  /* as the image has them */
    uint32_t *tables;  /* how many L1 entries lead to the L2 table here */
    uint16_t *uses;
};

/* 0 also for a corrupt image: see the verdict. -EFBIG: over 2^31 clusters. */
int ss_qcow2_census(struct ss_qcow2 *image, struct ss_qcow2_census *census,
                    struct ss_qcow2_verdict *verdict);
void ss_qcow2_census_free(struct ss_qcow2_census *census);

int ss_qcow2_check(struct ss_qcow2 *image, struct ss_qcow2_verdict *verdict);

#endif
