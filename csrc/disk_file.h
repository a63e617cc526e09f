/* Room and zeros in a raw file or block device. Functions return 0 or a negative errno. */
#ifndef SS_DISK_FILE_H
#define SS_DISK_FILE_H

#include <stdint.h>

#include "qcow2_extents.h"

/* Takes the room for all extents that are not zeros, without changing what the file reads as or
 * its size: all of it, or on a failure (-ENOSPC) none. Where the file system or device knows no
 * such thing, does nothing. */
int ss_file_reserve(int fd, const struct ss_extent *extents, uint64_t count);

/* Makes a stretch read as zeros: a hole if there can be one, else zeros are written. */
int ss_file_zero(int fd, uint64_t offset, uint64_t length);

#endif
