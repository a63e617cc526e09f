/* The editor's directories: finding a name, adding one, giving one another inode. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext4_csum.h"
#include "ext4_dir.h"
#include "ext4_edit_block.h"
#include "ext4_fields.h"

enum { TYPE_DIR = 2, MAX_DIR_BLOCKS = 1 << 18 };

/* One block of a directory, as it is walked. */
struct walk {
    uint32_t dir, inode_seed;
    uint64_t number; /* of the block */
    uint8_t *block;
};
/* What a visit says: go on, stop here, or a negative errno. */
enum { GO_ON = 0, STOP = 1 };
typedef int (*visit_function)(struct ss_edit *edit, struct walk *walk, uint32_t at,
                              const struct ext4_dirent *entry, void *context);

/* All entries of one block, unused ones too. Index blocks look like blocks without names. */
static int walk_block(struct ss_edit *edit, struct walk *walk, visit_function visit,
                      void *context)
{
    uint32_t at = 0;
    while (at <= EXT4_BLOCK - sizeof(struct ext4_dirent)) {
        struct ext4_dirent entry;
        memcpy(&entry, walk->block + at, sizeof entry);
        if (entry.rec_len < sizeof entry || entry.rec_len % 4 != 0 ||
            entry.rec_len > EXT4_BLOCK - at ||
            sizeof entry + entry.name_len > entry.rec_len)
            return -EUCLEAN;
        int rc = visit(edit, walk, at, &entry, context);
        if (rc != GO_ON)
            return rc;
        at += entry.rec_len;
    }
    return GO_ON;
}

static int walk_directory(struct ss_edit *edit, uint32_t dir, visit_function visit, void *context)
{
    struct ext4_inode *inode;
    struct ss_extents extents = {0};
    struct walk walk = {.dir = dir};
    uint64_t seen = 0;
    int rc = ss_edit_inode(edit, dir, &inode);

    if (rc < 0)
        return rc;
    if (!S_ISDIR(inode->mode))
        return -ENOTDIR;
    walk.inode_seed = ss_ext4_inode_seed(edit->super.checksum_seed, dir, inode->generation);
    rc = ss_edit_extents(edit, dir, inode, &extents);
    for (uint32_t e = 0; rc == GO_ON && e < extents.count; e++)
        for (uint32_t i = 0; rc == GO_ON && i < extents.list[e].length; i++) {
            if (++seen > MAX_DIR_BLOCKS) {
                rc = -EUCLEAN;
                break;
            }
            walk.number = extents.list[e].start + i;
            if ((rc = ss_edit_load(edit, walk.number, &walk.block)) == 0)
                rc = walk_block(edit, &walk, visit, context);
        }
    ss_extents_free(&extents);
    return rc;
}

struct search {
    const uint8_t *name;
    uint32_t length;
    uint32_t ino; /* found; or to be put in */
    uint8_t type;
    bool set;
};

static int find(struct ss_edit *edit, struct walk *walk, uint32_t at,
                const struct ext4_dirent *entry, void *context)
{
    struct search *search = context;
    const uint32_t inode_seed = walk->inode_seed;

    if (entry->inode == 0 || entry->name_len != search->length ||
        memcmp(walk->block + at + sizeof *entry, search->name, search->length) != 0)
        return GO_ON;
    if (search->set) {
        struct ext4_dirent changed = *entry;
        int rc = ss_edit_load_dirty(edit, walk->number, &walk->block);
        if (rc < 0)
            return rc;
        changed.inode = search->ino;
        changed.file_type = search->type;
        memcpy(walk->block + at, &changed, sizeof changed);
        ss_ext4_leaf_csum(walk->block, inode_seed);
    }
    search->ino = entry->inode;
    return STOP;
}

int ss_edit_lookup(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                   uint32_t *ino)
{
    struct search search = {name, length, 0, 0, false};
    int rc = walk_directory(edit, dir, find, &search);
    *ino = rc == STOP ? search.ino : 0;
    return rc < 0 ? rc : 0;
}

int ss_edit_set_name(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                     uint32_t ino, uint8_t type)
{
    struct search search = {name, length, ino, type, true};
    int rc = walk_directory(edit, dir, find, &search);
    return rc == STOP ? 0 : rc < 0 ? rc : -ENOENT;
}

/* --- adding a name where there is room --- */

struct insertion {
    struct ext4_dirent entry;
    const uint8_t *name;
};

static int insert(struct ss_edit *edit, struct walk *walk, uint32_t at,
                  const struct ext4_dirent *entry, void *context)
{
    struct insertion *new = context;
    uint32_t own = entry->inode == 0 ? 0 : EXT4_DIRENT_SIZE(entry->name_len);
    uint32_t need = EXT4_DIRENT_SIZE(new->entry.name_len);

    if (at + entry->rec_len > EXT4_DIR_ROOM || own + need > entry->rec_len)
        return GO_ON; /* the tail with the checksum is no room */
    int rc = ss_edit_load_dirty(edit, walk->number, &walk->block);
    if (rc < 0)
        return rc;
    new->entry.rec_len = (uint16_t)(entry->rec_len - own);
    if (own > 0) {
        struct ext4_dirent shorter = *entry;
        shorter.rec_len = (uint16_t)own;
        memcpy(walk->block + at, &shorter, sizeof shorter);
    }
    memcpy(walk->block + at + own, &new->entry, sizeof new->entry);
    memcpy(walk->block + at + own + sizeof new->entry, new->name, new->entry.name_len);
    ss_ext4_leaf_csum(walk->block, walk->inode_seed);
    return STOP;
}

/* The block of an extent list at logical number `logical`; 0: a hole. */
static uint64_t map(const struct ss_extents *extents, uint32_t logical)
{
    for (uint32_t i = 0; i < extents->count; i++) {
        const struct ss_extent *extent = &extents->list[i];
        if (logical >= extent->logical && logical - extent->logical < extent->length)
            return extent->start + (logical - extent->logical);
    }
    return 0;
}

/* The last entry of an index block whose hash is not above `hash`: where it points. */
static int index_search(const uint8_t *block, uint32_t at, uint32_t limit, uint32_t hash,
                        uint32_t *logical)
{
    uint16_t counts[2];
    struct ext4_dx_entry entry;

    memcpy(counts, block + at, sizeof counts);
    if (counts[0] != limit || counts[1] == 0 || counts[1] > limit)
        return -EUCLEAN;
    memcpy(&entry, block + at, sizeof entry);
    *logical = entry.block;
    for (uint32_t i = 1; i < counts[1]; i++) {
        memcpy(&entry, block + at + i * sizeof entry, sizeof entry);
        if (entry.hash > hash)
            break;
        *logical = entry.block;
    }
    return 0;
}

/* The leaf of an indexed directory that a name belongs in. */
static int find_leaf(struct ss_edit *edit, const struct ss_extents *extents, const uint8_t *name,
                     uint32_t length, struct walk *walk)
{
    struct ext4_dx_root_info info;
    uint32_t hash = ss_dir_hash(edit->super.hash_seed, name, length), logical;
    uint8_t *block;
    uint64_t number = map(extents, 0);
    int rc;

    if (number == 0)
        return -EUCLEAN;
    if ((rc = ss_edit_load(edit, number, &block)) < 0)
        return rc;
    memcpy(&info, block + 24, sizeof info);
    if (info.hash_version != EXT4_HASH_HALF_MD4 || info.info_length != 8 ||
        info.indirect_levels > 1)
        return -EUCLEAN;
    rc = index_search(block, EXT4_DX_ROOT_AT, EXT4_DX_ROOT_LIMIT, hash, &logical);
    for (unsigned level = info.indirect_levels; rc == 0 && level > 0; level--) {
        if ((number = map(extents, logical)) == 0)
            return -EUCLEAN;
        if ((rc = ss_edit_load(edit, number, &block)) == 0)
            rc = index_search(block, EXT4_DX_NODE_AT, EXT4_DX_NODE_LIMIT, hash, &logical);
    }
    if (rc < 0)
        return rc;
    if ((walk->number = map(extents, logical)) == 0)
        return -EUCLEAN;
    return ss_edit_load(edit, walk->number, &walk->block);
}

static int insert_indexed(struct ss_edit *edit, uint32_t dir, const struct ext4_inode *inode,
                          struct insertion *new)
{
    struct ss_extents extents = {0};
    struct walk walk = {.dir = dir};
    int rc = ss_edit_extents(edit, dir, inode, &extents);

    walk.inode_seed = ss_ext4_inode_seed(edit->super.checksum_seed, dir, inode->generation);
    if (rc == 0 && (rc = find_leaf(edit, &extents, new->name, new->entry.name_len, &walk)) == 0)
        rc = walk_block(edit, &walk, insert, new);
    ss_extents_free(&extents);
    return rc;
}

/* --- adding a name by laying the whole directory out anew --- */

struct gathering {
    struct ss_name *list;
    uint8_t *names;
    uint32_t count, room, names_used, names_room, parent;
};

static int gather_one(struct gathering *all, uint32_t ino, uint8_t type, const uint8_t *name,
                      uint8_t length)
{
    if (all->count == all->room) {
        uint32_t room = all->room == 0 ? 256 : all->room * 2;
        struct ss_name *list = realloc(all->list, room * sizeof *list);
        if (list == NULL)
            return -ENOMEM;
        all->list = list;
        all->room = room;
    }
    if (all->names_used + length > all->names_room) {
        uint32_t room = all->names_room == 0 ? 8192 : all->names_room * 2;
        uint8_t *names = realloc(all->names, room);
        if (names == NULL)
            return -ENOMEM;
        all->names = names;
        all->names_room = room;
    }
    memcpy(all->names + all->names_used, name, length);
    all->list[all->count++] = (struct ss_name){all->names_used, ino, 0, length, type};
    all->names_used += length;
    return 0;
}

static int gather(struct ss_edit *edit, struct walk *walk, uint32_t at,
                  const struct ext4_dirent *entry, void *context)
{
    struct gathering *all = context;
    const uint8_t *name = walk->block + at + sizeof *entry;

    (void)edit;
    if (entry->inode == 0 || entry->name_len == 0 || (entry->name_len == 1 && name[0] == '.'))
        return GO_ON;
    if (entry->name_len == 2 && name[0] == '.' && name[1] == '.') {
        all->parent = entry->inode;
        return GO_ON;
    }
    int rc = gather_one(all, entry->inode, entry->file_type, name, entry->name_len);
    return rc < 0 ? rc : GO_ON;
}

/* Writes the blocks of a laid out directory to new places and points the inode at them. */
static int write_directory(struct ss_edit *edit, struct ss_dir *dir)
{
    struct ss_extents extents = {0};
    struct ext4_inode *inode;
    int rc = ss_edit_inode_dirty(edit, dir->ino, &inode);

    if (rc == 0)
        rc = ss_edit_allocate(edit, dir->ino, inode, dir->blocks, &extents);
    for (uint32_t e = 0; rc == 0 && e < extents.count; e++)
        for (uint32_t i = 0; rc == 0 && i < extents.list[e].length; i++) {
            uint8_t *out;
            rc = ss_edit_load_fresh(edit, extents.list[e].start + i, &out);
            if (rc == 0)
                ss_dir_block(dir, extents.list[e].logical + i, out);
        }
    if (rc == 0) {
        uint64_t xattrs = (inode->file_acl_lo | inode->file_acl_hi) != 0;
        ss_inode_sizes(inode, (uint64_t)dir->blocks * EXT4_BLOCK,
                       ss_extents_blocks(&extents) + xattrs);
        inode->flags &= ~(uint32_t)EXT4_INDEX_FL;
        if (dir->blocks > 1)
            inode->flags |= EXT4_INDEX_FL;
        ss_edit_inode_done(edit, dir->ino, inode);
    }
    ss_extents_free(&extents);
    return rc;
}

static int lay_out_anew(struct ss_edit *edit, uint32_t dir, const struct insertion *new)
{
    struct gathering all = {0};
    struct ss_extents old = {0};
    struct ss_dir plan = {0};
    struct ext4_inode *inode;
    int rc = walk_directory(edit, dir, gather, &all);

    if (rc >= 0)
        rc = gather_one(&all, new->entry.inode, new->entry.file_type, new->name,
                        new->entry.name_len);
    if (rc == 0 && (rc = ss_edit_inode(edit, dir, &inode)) == 0)
        rc = ss_edit_extents(edit, dir, inode, &old);
    if (rc == 0) {
        plan.names = all.names;
        plan.list = all.list;
        plan.count = all.count;
        plan.ino = dir;
        plan.parent_ino = all.parent;
        plan.inode_seed =
            ss_ext4_inode_seed(edit->super.checksum_seed, dir, inode->generation);
        memcpy(plan.hash_seed, edit->super.hash_seed, sizeof plan.hash_seed);
        if ((rc = ss_dir_plan(&plan)) == 0 && (rc = write_directory(edit, &plan)) == 0)
            rc = ss_edit_release(edit, &old);
        ss_dir_free(&plan);
    }
    ss_extents_free(&old);
    free(all.list);
    free(all.names);
    return rc;
}

int ss_edit_add_name(struct ss_edit *edit, uint32_t dir, const uint8_t *name, uint32_t length,
                     uint32_t ino, uint8_t type)
{
    struct insertion new = {{ino, 0, (uint8_t)length, type}, name};
    struct ext4_inode *inode;
    int rc;

    if (length == 0 || length > 255)
        return -ENAMETOOLONG;
    if ((rc = ss_edit_inode(edit, dir, &inode)) < 0)
        return rc;
    if ((inode->flags & EXT4_INDEX_FL) != 0)
        rc = insert_indexed(edit, dir, inode, &new);
    else
        rc = walk_directory(edit, dir, insert, &new);
    if (rc == GO_ON)
        return lay_out_anew(edit, dir, &new);
    return rc < 0 ? rc : 0;
}

int ss_edit_add_directory(struct ss_edit *edit, uint32_t dir, const uint8_t *name,
                          uint32_t length, uint32_t *ino)
{
    struct ss_dir plan = {0};
    struct ext4_inode *inode;
    int rc = ss_edit_new_inode(edit, S_IFDIR | 0755, ino, &inode);

    if (rc < 0)
        return rc;
    inode->links_count = 2;
    ss_edit_inode_done(edit, *ino, inode);
    plan.ino = *ino;
    plan.parent_ino = dir;
    plan.inode_seed = ss_ext4_inode_seed(edit->super.checksum_seed, *ino, 0);
    memcpy(plan.hash_seed, edit->super.hash_seed, sizeof plan.hash_seed);
    if ((rc = ss_dir_plan(&plan)) < 0 || (rc = write_directory(edit, &plan)) < 0 ||
        (rc = ss_edit_add_name(edit, dir, name, length, *ino, TYPE_DIR)) < 0 ||
        (rc = ss_edit_inode_dirty(edit, dir, &inode)) < 0)
        return rc;
    /* 1 stands for more than a link count can say (dir_nlink) */
    if (inode->links_count != 1)
        inode->links_count = inode->links_count >= 65000 ? 1 : (uint16_t)(inode->links_count + 1);
    ss_edit_inode_done(edit, dir, inode);
    return 0;
}
