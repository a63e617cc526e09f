/* Reads qcow2 images (QEMU's docs/interop/qcow2.txt): versions 2 and 3, subclusters, zero and
 * compressed clusters (zlib, zstd), internal snapshots, chains of backing files.
 *
 * Nothing in a file is believed: every offset, length and count is checked before it is used, and
 * no table is held that the limits of qcow2_format.h do not bound. What lies beyond the end of the
 * file reads as zeros where it is data (as QEMU has it), and is an error where it is a table.
 * Encrypted images and external data files are refused.
 *
 * No file is opened here: the caller opens the files of a chain, keeps the descriptors open as long
 * as what is made of them, and sees to it that a chain has no loop. Functions return 0 or a
 * negative errno: -EINVAL not qcow2 or an argument out of place; -ENOTSUP a feature that is not
 * supported; -EUCLEAN damaged; -EFBIG beyond a limit; -ENOMEM; -EIO or what reading gave. `problem`
 * of the image then says what it was. An image and what is made of it belong to one thread at a
 * time. Offsets and sizes are bytes.
 */
#ifndef SS_QCOW2_H
#define SS_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ss_qcow2_snapshot {
    uint64_t place; /* of its entry in the table */
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint32_t seconds, nanoseconds;
    uint64_t vm_clock_ns, vm_state_size;
    uint64_t size; /* of the disk when it was taken */
    const char *id, *name; /* not terminated */
    uint16_t id_length, name_length;
    uint64_t *l1; /* in this machine's order, once it was needed */
};

struct ss_qcow2_bitmap {
    uint64_t place; /* of its entry in the directory */
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t flags;
    uint32_t granularity_bits;
    bool usable; /* saved properly, of the known type */
    const char *name; /* not terminated */
    uint16_t name_length;
};

struct ss_qcow2 {
    int fd;
    const char *problem; /* what the last failure was about, or NULL */
    uint64_t problem_at; /* the offset or number it is about */
    uint64_t file_size, size;
    uint64_t cluster_size;
    uint32_t version, cluster_bits, header_length;
    uint32_t l2_bits;      /* log2 of the entries of an L2 table */
    uint32_t entry_size;   /* bytes of an L2 entry: 8, or 16 with subclusters */
    bool extended, zstd;
    uint64_t incompatible, compatible, autoclear;
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t *l1;
    uint64_t refcount_offset;
    uint32_t refcount_clusters, refcount_order;
    uint64_t backing_offset;
    uint32_t backing_length, backing_format_length;
    char backing[1024], backing_format[64];
    uint32_t snapshot_count;
    uint64_t snapshots_offset, snapshots_length;
    struct ss_qcow2_snapshot *snapshots;
    uint8_t *snapshot_table;
    uint32_t bitmap_count;
    uint64_t bitmaps_offset, bitmaps_length;
    uint64_t bitmaps_extension; /* where its data is in the header */
    struct ss_qcow2_bitmap *bitmaps;
    uint8_t *bitmap_directory;
    /* Pieces of L2 tables read last, by their offset, and the compressed cluster unpacked last. */
    uint64_t *slice_keys;
    uint8_t *slices;
    uint8_t *packed, *unpacked;
    uint64_t unpacked_key;
    void *zstd_context;
};

/* `fd` stays the caller's. On failure nothing is kept but `problem`. */
int ss_qcow2_open(struct ss_qcow2 *image, int fd);
void ss_qcow2_close(struct ss_qcow2 *image);

/* How a stretch of a disk reads. */
enum ss_run_kind {
    SS_RUN_HOLE,   /* allocated in no layer, or beyond the end of one: zeros */
    SS_RUN_ZERO,   /* zeros, as a table says */
    SS_RUN_DATA,   /* at `host` of the layer's file */
    SS_RUN_PACKED, /* a compressed cluster; `host` is its descriptor (bits 0 … 61 of the entry) */
};

struct ss_run {
    uint64_t offset, length; /* of the disk */
    uint64_t host;
    uint32_t layer; /* index in the view */
    uint32_t kind;
};

/* One layer of a view: a qcow2 image at its present or at one of its snapshots, or a raw file. */
struct ss_layer {
    struct ss_qcow2 *image; /* NULL: raw */
    int fd;
    uint64_t size, file_size;
    const uint64_t *l1;
    uint32_t l1_size;
};

/* What a guest would see: layers from the top down to the last backing file. */
struct ss_view {
    struct ss_layer *layers; /* the caller's */
    uint32_t count;
    uint64_t size;
    const struct ss_layer *failed; /* where a failure was, or NULL */
};

/* Fills one layer in. `snapshot`: index, or -1 for the present. */
int ss_layer_qcow2(struct ss_layer *layer, struct ss_qcow2 *image, int64_t snapshot);
void ss_layer_raw(struct ss_layer *layer, int fd, uint64_t size);

/* The run at `offset`, as long as what follows is of one piece, but at most `limit` bytes.
 * `offset` < view->size, `limit` > 0. Raw layers count as data all over. */
int ss_view_map(struct ss_view *view, uint64_t offset, uint64_t limit, struct ss_run *run);

/* Reads; what lies beyond the view's end is zeros. */
int ss_view_read(struct ss_view *view, uint64_t offset, void *out, uint64_t length);

/* Does the bitmap have a bit set at or after `offset`? Gives the run of set bits, clipped to the
 * disk: 1, or 0 when there are none. `limit` as above. */
int ss_qcow2_dirty(struct ss_qcow2 *image, uint32_t bitmap, uint64_t offset, struct ss_run *run);

#endif
