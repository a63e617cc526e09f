/* What differs between two views, from their tables alone: no data is read.
 *
 * Layers that both have at their bottom are not looked at. Above them one pointer of the L1 tables
 * stands for all that is behind it: only where these differ are L2 tables read, and only where
 * their entries differ is anything looked up. So time follows the tables that changed, not the
 * size of the disk. Places that the tables show to be the same, or zeros on both sides, are left
 * out; what is in different clusters counts as different, whatever is in them.
 */
#ifndef SS_QCOW2_EXTENTS_H
#define SS_QCOW2_EXTENTS_H

#include "qcow2.h"

struct ss_extent {
    uint64_t offset, length;
    uint64_t zero; /* 1: the new disk reads as zeros there */
};

struct ss_extents {
    struct ss_extent *list; /* ascending, not touching unless `zero` changes */
    uint64_t count, room;
    uint64_t bytes;  /* in all of them */
    uint64_t tables; /* L2 tables (or parts of them) read */
};

/* The extents of `new` that differ from `old`; where `old` ends it counts as zeros. Free them with
 * ss_extents_free, also after a failure. Images that both views show must be the same objects. */
int ss_extents_find(struct ss_view *old, struct ss_view *new, struct ss_extents *out);

/* The same of what a bitmap of the topmost image marks. */
int ss_extents_dirty(struct ss_view *view, uint32_t bitmap, struct ss_extents *out);
void ss_extents_free(struct ss_extents *extents);

#endif
