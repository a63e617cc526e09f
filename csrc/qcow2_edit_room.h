/* Inside an edit: free clusters of the file, and the counts of all. See qcow2_edit.h. */
#ifndef SS_QCOW2_EDIT_ROOM_H
#define SS_QCOW2_EDIT_ROOM_H

#include "qcow2_edit.h"

#define SS_EDIT_UNUSED UINT64_MAX /* `host` of a cluster that needs a place */

/* Takes places for all clusters, tables and the L1 table; nothing is written. */
int ss_edit_take(struct ss_qcow2_edit *edit);
/* Takes the room on the disk, and counts what was taken. */
int ss_edit_write_counts(struct ss_qcow2_edit *edit);
int ss_edit_set_count(struct ss_qcow2_edit *edit, uint64_t cluster, uint64_t value);
/* Nothing was switched: what was taken is free again, and the file as long as it was. */
void ss_edit_undo(struct ss_qcow2_edit *edit);

static inline uint64_t ss_div_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

#endif
