/* Copies a qcow2 image without what it does not need: clusters that nobody uses, and clusters of
 * zeros that a table can say instead. Snapshots, bitmaps, compressed clusters, subclusters and the
 * backing file's name stay; reference counts are made anew. The clusters keep their order.
 *
 * A damaged or dirty image is refused (-EUCLEAN, -ENOTSUP). Reads every data cluster once to see
 * zeros and once to copy; in memory 18 bytes a cluster of the file.
 */
#ifndef SS_QCOW2_COMPACT_H
#define SS_QCOW2_COMPACT_H

#include "qcow2.h"

/* `fd`: an empty file. */
int ss_qcow2_compact(struct ss_qcow2 *image, int fd);

#endif
