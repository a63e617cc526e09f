/* The editor's front: what may be edited, identity, and the list of changes. */
#include "ext4_edit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ext4_csum.h"
#include "ext4_edit_block.h"
#include "ext4_layout.h"

enum { FIRST_SLOTS = 256 };

static int check_super(const struct ss_edit *edit, uint64_t length)
{
    const struct ext4_super *super = &edit->super;

    if (super->magic != EXT4_MAGIC)
        return -EOPNOTSUPP;
    if ((edit->flags & SS_EDIT_NO_CHECKSUMS) == 0 && !ss_ext4_super_csum_ok(super))
        return -EUCLEAN;
    if (super->feature_incompat != EXT4_OUR_INCOMPAT || super->feature_ro_compat != EXT4_OUR_RO ||
        super->feature_compat != EXT4_OUR_COMPAT || super->log_block_size != 2 ||
        super->inode_size != EXT4_INODE_SIZE || super->desc_size != EXT4_DESC_SIZE ||
        super->blocks_per_group != EXT4_BLOCKS_PER_GROUP ||
        super->clusters_per_group != EXT4_BLOCKS_PER_GROUP || super->first_data_block != 0 ||
        super->first_ino != EXT4_FIRST_INO || super->state != 1 ||
        super->flags != EXT4_FLAGS_UNSIGNED_HASH)
        return -EOPNOTSUPP;
    if (super->blocks_count_hi != 0 || super->blocks_count_lo < EXT4_INODES_PER_BLOCK ||
        super->blocks_count_lo > length / EXT4_BLOCK || super->inodes_per_group == 0 ||
        super->inodes_per_group > EXT4_BLOCKS_PER_GROUP ||
        super->inodes_per_group % EXT4_INODES_PER_BLOCK != 0)
        return -EUCLEAN;
    return 0;
}

int ss_edit_open(struct ss_edit *edit, int fd, uint64_t offset, uint64_t length, int64_t time,
                 uint32_t flags)
{
    uint8_t *block;
    int rc;

    memset(edit, 0, sizeof *edit);
    edit->fd = fd;
    edit->offset = offset;
    edit->flags = flags;
    edit->time = time;
    edit->slots = FIRST_SLOTS;
    edit->blocks = 1; /* until the super block has told */
    edit->table = calloc(edit->slots, sizeof *edit->table);
    if (edit->table == NULL)
        return -ENOMEM;
    if ((rc = ss_edit_load(edit, 0, &block)) == 0) {
        memcpy(&edit->super, block + EXT4_SUPER_OFFSET, sizeof edit->super);
        rc = check_super(edit, length);
    }
    if (rc < 0) {
        ss_edit_close(edit);
        return rc;
    }
    edit->blocks = edit->super.blocks_count_lo;
    edit->groups =
        (uint32_t)((edit->blocks + EXT4_BLOCKS_PER_GROUP - 1) / EXT4_BLOCKS_PER_GROUP);
    return 0;
}

void ss_edit_close(struct ss_edit *edit)
{
    for (uint32_t i = 0; edit->table != NULL && i < edit->slots; i++)
        free(edit->table[i].data);
    free(edit->table);
    edit->table = NULL;
}

int ss_edit_identity(struct ss_edit *edit, const char label[16], const uint8_t uuid[16])
{
    memcpy(edit->super.volume_name, label, 16);
    memcpy(edit->super.uuid, uuid, 16);
    for (uint32_t group = 1; group < edit->groups; group++) {
        struct ext4_super super;
        uint8_t *block;
        int rc;
        if (!ss_layout_has_super(group))
            continue;
        if ((rc = ss_edit_load_dirty(edit, ss_layout_start(group), &block)) < 0)
            return rc;
        memcpy(&super, block, sizeof super);
        if (super.magic != EXT4_MAGIC)
            return -EUCLEAN;
        memcpy(super.volume_name, label, 16);
        memcpy(super.uuid, uuid, 16);
        ss_ext4_super_csum(&super);
        memcpy(block, &super, sizeof super);
    }
    return 0;
}

static int by_number(const void *left, const void *right)
{
    const struct ss_edit_block *a = left, *b = right;
    return a->number < b->number ? -1 : a->number > b->number;
}

int ss_edit_changes(struct ss_edit *edit, struct ss_edit_block **list, uint32_t *count)
{
    struct ss_edit_block *all;
    uint8_t *block;
    uint32_t used = 0;
    int rc = ss_edit_load_dirty(edit, 0, &block);

    if (rc < 0)
        return rc;
    ss_ext4_super_csum(&edit->super);
    memcpy(block + EXT4_SUPER_OFFSET, &edit->super, sizeof edit->super);
    if ((all = malloc(edit->held * sizeof *all)) == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < edit->slots; i++)
        if (edit->table[i].data != NULL && edit->table[i].dirty)
            all[used++] = edit->table[i];
    qsort(all, used, sizeof *all, by_number);
    *list = all;
    *count = used;
    return 0;
}
