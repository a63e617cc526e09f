/* sources: csrc/qcow2_open.c csrc/qcow2_bitmap.c csrc/qcow2_pack.c csrc/qcow2_map.c csrc/qcow2_check.c csrc/qcow2_extents.c */
/* A hostile qcow2 image: opened, mapped, read, counted; every snapshot against the present.
 *
 * Input: the image's bytes. A file that names a backing file gets a raw one of 64 KiB below it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qcow2.h"
#include "qcow2_check.h"
#include "qcow2_extents.h"

enum { RUNS = 2000, PIECE = 70000, BASE = 65536 };

static int image_fd = -1, base_fd = -1;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static uint8_t bytes[BASE];
    (void)argc;
    (void)argv;
    image_fd = memfd_create("image", MFD_CLOEXEC);
    base_fd = memfd_create("base", MFD_CLOEXEC);
    memset(bytes, 0x5a, sizeof bytes);
    if (image_fd < 0 || base_fd < 0 || write(base_fd, bytes, BASE) != BASE)
        abort();
    return 0;
}

/* The runs cover the disk without gap or overlap, and each can be read or fails cleanly. */
static void walk(struct ss_view *view)
{
    static uint8_t out[PIECE];
    uint64_t offset = 0;
    struct ss_run run;

    for (int i = 0; i < RUNS && offset < view->size; i++) {
        int rc = ss_view_map(view, offset, view->size - offset, &run);
        if (rc < 0) {
            if (view->failed == NULL)
                abort();
            offset += 4096;
            continue;
        }
        if (run.offset != offset || run.length == 0 || run.length > view->size - offset ||
            run.layer >= view->count)
            abort();
        if (i < 100)
            ss_view_read(view, offset, out, run.length < PIECE ? run.length : PIECE);
        offset += run.length;
    }
    ss_view_read(view, view->size / 2, out, PIECE);
}

static void differing(struct ss_view *old, struct ss_view *new)
{
    struct ss_extents extents;
    uint64_t end = 0;

    int rc = ss_extents_find(old, new, &extents);
    for (uint64_t i = 0; rc == 0 && i < extents.count; i++) {
        if (extents.list[i].offset < end || extents.list[i].length == 0 ||
            extents.list[i].length > new->size - extents.list[i].offset)
            abort();
        end = extents.list[i].offset + extents.list[i].length;
    }
    ss_extents_free(&extents);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    struct ss_qcow2 image;
    struct ss_layer now[2], then[2];
    struct ss_qcow2_verdict verdict;

    if (length > 1 << 20 || ftruncate(image_fd, 0) < 0 ||
        pwrite(image_fd, data, length, 0) != (ssize_t)length)
        return 0;
    if (ss_qcow2_open(&image, image_fd) < 0)
        return 0;
    uint32_t layers = image.backing_length > 0 ? 2 : 1;
    if (ss_layer_qcow2(&now[0], &image, -1) < 0) {
        ss_qcow2_check(&image, &verdict);
        ss_qcow2_close(&image);
        return 0;
    }
    ss_layer_raw(&now[1], base_fd, BASE);
    struct ss_view present = {now, layers, image.size, NULL};
    walk(&present);
    for (uint32_t i = 0; i < image.snapshot_count && i < 4; i++) {
        if (ss_layer_qcow2(&then[0], &image, i) < 0)
            continue;
        ss_layer_raw(&then[1], base_fd, BASE);
        struct ss_view past = {then, layers, then[0].size, NULL};
        walk(&past);
        differing(&past, &present);
        differing(&present, &past);
    }
    struct ss_view base = {&now[1], 1, BASE, NULL};
    differing(&base, &present);
    for (uint32_t i = 0; i < image.bitmap_count && i < 4; i++) {
        struct ss_run run = {0};
        for (int j = 0; j < 100; j++)
            if (ss_qcow2_dirty(&image, i, run.offset + run.length, &run) <= 0)
                break;
    }
    ss_qcow2_check(&image, &verdict);
    ss_qcow2_close(&image);
    return 0;
}
