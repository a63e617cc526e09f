/* Changes a qcow2 image in one step: it is the old disk until ss_qcow2_edit_finish, then the new.
 *
 * Nothing that the image uses is written over. Changed clusters, the L2 tables that lead to them
 * and the L1 table are written to free clusters (those that nothing refers to, whatever the counts
 * say; then the end of the file), counted and synced; then one write of the first sector switches
 * the header to the new L1 table and size. After that the old clusters are given back. A cut at any
 * moment leaves the old disk or the new, at worst with clusters counted that nobody uses, which
 * the next edit takes first. What was taken is given back when an edit is closed unfinished.
 *
 * Refused (-ENOTSUP): a dirty or corrupt flag, bitmaps (they would no longer be right), making the
 * disk smaller. The whole image is counted first (qcow2_check.h), and refused with -EUCLEAN when it is damaged.
 */
#ifndef SS_QCOW2_EDIT_H
#define SS_QCOW2_EDIT_H

#include "qcow2_check.h"
#include "qcow2_extents.h"

struct ss_edit_cluster {
    uint64_t guest; /* number of the cluster on the disk */
    uint64_t host;  /* its new place in the file; 0: it becomes zeros */
};

struct ss_qcow2_edit {
    struct ss_qcow2 *image; /* its descriptor can be written */
    struct ss_view *view;   /* the image with what is below it */
    struct ss_qcow2_census census;
    struct ss_edit_cluster *clusters; /* ascending by `guest` */
    uint64_t count, room;
    uint64_t new_size, old_file_size;
    uint64_t *tables; /* new places of L2 tables, in the order of `clusters` */
    uint64_t table_count;
    uint64_t l1_place, l1_size;
    uint64_t *taken; /* clusters of the file, ascending */
    uint64_t taken_count, next_taken;
    uint64_t content_count; /* those of them that hold no counts; they come first */
    uint64_t *refcounts, *old_refcounts; /* the table of counts, in this machine's order */
    uint64_t refcount_entries, old_refcount_entries;
    bool linked;   /* the file has the new blocks of counts */
    bool finished;
};

/* Takes the room and fills clusters that the extents cover in part. `extents` ascend, and are
 * inside `new_size`. */
int ss_qcow2_edit_open(struct ss_qcow2_edit *edit, struct ss_qcow2 *image, struct ss_view *view,
                       const struct ss_extent *extents, uint64_t count, uint64_t new_size);
/* Writes data inside an extent that is not zeros. */
int ss_qcow2_edit_write(struct ss_qcow2_edit *edit, uint64_t offset, const void *data,
                        uint64_t length);
int ss_qcow2_edit_finish(struct ss_qcow2_edit *edit);
void ss_qcow2_edit_close(struct ss_qcow2_edit *edit);

#endif
