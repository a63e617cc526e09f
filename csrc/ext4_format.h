/* ext4's on-disk records, as the kernel documents them (Documentation/filesystems/ext4), for the
 * one shape that is written here: 4 KiB blocks, 256-byte inodes, 64-byte group descriptors,
 * extents, metadata checksums with a seed of their own. All little-endian.
 */
#ifndef SS_EXT4_FORMAT_H
#define SS_EXT4_FORMAT_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian hosts"
#endif

#define EXT4_BLOCK 4096u
#define EXT4_BLOCKS_PER_GROUP 32768u
#define EXT4_INODE_SIZE 256u
#define EXT4_INODES_PER_BLOCK 16u
#define EXT4_DESC_SIZE 64u
#define EXT4_DESCS_PER_BLOCK 64u
#define EXT4_MAGIC 0xEF53
#define EXT4_SUPER_OFFSET 1024u

enum { EXT4_ROOT_INO = 2, EXT4_JOURNAL_INO = 8, EXT4_FIRST_INO = 11 };

enum { /* s_feature_compat */
    EXT4_COMPAT_HAS_JOURNAL = 0x4,
    EXT4_COMPAT_EXT_ATTR = 0x8,
    EXT4_COMPAT_DIR_INDEX = 0x20
};
enum { /* s_feature_incompat */
    EXT4_INCOMPAT_FILETYPE = 0x2,
    EXT4_INCOMPAT_RECOVER = 0x4,
    EXT4_INCOMPAT_EXTENTS = 0x40,
    EXT4_INCOMPAT_64BIT = 0x80,
    EXT4_INCOMPAT_FLEX_BG = 0x200,
    EXT4_INCOMPAT_CSUM_SEED = 0x2000
};
enum { /* s_feature_ro_compat */
    EXT4_RO_SPARSE_SUPER = 0x1,
    EXT4_RO_LARGE_FILE = 0x2,
    EXT4_RO_HUGE_FILE = 0x8,
    EXT4_RO_DIR_NLINK = 0x20,
    EXT4_RO_EXTRA_ISIZE = 0x40,
    EXT4_RO_METADATA_CSUM = 0x400
};
#define EXT4_OUR_COMPAT (EXT4_COMPAT_HAS_JOURNAL | EXT4_COMPAT_EXT_ATTR | EXT4_COMPAT_DIR_INDEX)
#define EXT4_OUR_INCOMPAT                                                                      \
    (EXT4_INCOMPAT_FILETYPE | EXT4_INCOMPAT_EXTENTS | EXT4_INCOMPAT_64BIT |                    \
     EXT4_INCOMPAT_FLEX_BG | EXT4_INCOMPAT_CSUM_SEED)
#define EXT4_OUR_RO                                                                            \
    (EXT4_RO_SPARSE_SUPER | EXT4_RO_LARGE_FILE | EXT4_RO_HUGE_FILE | EXT4_RO_DIR_NLINK |       \
     EXT4_RO_EXTRA_ISIZE | EXT4_RO_METADATA_CSUM)

enum { EXT4_BG_INODE_UNINIT = 1, EXT4_BG_BLOCK_UNINIT = 2, EXT4_BG_INODE_ZEROED = 4 };
enum { EXT4_FLAGS_SIGNED_HASH = 1, EXT4_FLAGS_UNSIGNED_HASH = 2 }; /* s_flags */
enum { EXT4_INDEX_FL = 0x1000, EXT4_EXTENTS_FL = 0x80000 };        /* i_flags */
enum { EXT4_HASH_HALF_MD4 = 1 };

struct ext4_super {
    uint32_t inodes_count, blocks_count_lo, r_blocks_count_lo, free_blocks_count_lo;
    uint32_t free_inodes_count, first_data_block, log_block_size, log_cluster_size;
    uint32_t blocks_per_group, clusters_per_group, inodes_per_group, mtime;
    uint32_t wtime;
    uint16_t mnt_count, max_mnt_count, magic, state, errors, minor_rev_level;
    uint32_t lastcheck, checkinterval, creator_os, rev_level;
    uint16_t def_resuid, def_resgid;
    uint32_t first_ino;
    uint16_t inode_size, block_group_nr;
    uint32_t feature_compat, feature_incompat, feature_ro_compat;
    uint8_t uuid[16];
    char volume_name[16];
    char last_mounted[64];
    uint32_t algorithm_usage_bitmap;
    uint8_t prealloc_blocks, prealloc_dir_blocks;
    uint16_t reserved_gdt_blocks;
    uint8_t journal_uuid[16];
    uint32_t journal_inum, journal_dev, last_orphan;
    uint32_t hash_seed[4];
    uint8_t def_hash_version, jnl_backup_type;
    uint16_t desc_size;
    uint32_t default_mount_opts, first_meta_bg, mkfs_time;
    uint32_t jnl_blocks[17];
    uint32_t blocks_count_hi, r_blocks_count_hi, free_blocks_count_hi;
    uint16_t min_extra_isize, want_extra_isize;
    uint32_t flags;
    uint16_t raid_stride, mmp_interval;
    uint64_t mmp_block;
    uint32_t raid_stripe_width;
    uint8_t log_groups_per_flex, checksum_type;
    uint16_t reserved_pad;
    uint64_t kbytes_written;
    uint32_t unused_snapshot[5];
    uint32_t unused_errors[27];
    uint8_t mount_opts[64];
    uint32_t usr_quota_inum, grp_quota_inum, overhead_clusters, backup_bgs[2];
    uint8_t encrypt_algos[4], encrypt_pw_salt[16];
    uint32_t lpf_ino, prj_quota_inum, checksum_seed;
    uint32_t reserved[98];
    uint32_t checksum;
};
_Static_assert(sizeof(struct ext4_super) == 1024, "super block");
_Static_assert(__builtin_offsetof(struct ext4_super, jnl_blocks) == 0x10C, "super block");
_Static_assert(__builtin_offsetof(struct ext4_super, mount_opts) == 0x200, "super block");
_Static_assert(__builtin_offsetof(struct ext4_super, checksum_seed) == 0x270, "super block");

struct ext4_desc {
    uint32_t block_bitmap_lo, inode_bitmap_lo, inode_table_lo;
    uint16_t free_blocks_lo, free_inodes_lo, used_dirs_lo, flags;
    uint32_t exclude_bitmap_lo;
    uint16_t block_bitmap_csum_lo, inode_bitmap_csum_lo, itable_unused_lo, checksum;
    uint32_t block_bitmap_hi, inode_bitmap_hi, inode_table_hi;
    uint16_t free_blocks_hi, free_inodes_hi, used_dirs_hi, itable_unused_hi;
    uint32_t exclude_bitmap_hi;
    uint16_t block_bitmap_csum_hi, inode_bitmap_csum_hi;
    uint32_t reserved;
};
_Static_assert(sizeof(struct ext4_desc) == EXT4_DESC_SIZE, "group descriptor");

struct ext4_inode {
    uint16_t mode, uid_lo;
    uint32_t size_lo, atime, ctime, mtime, dtime;
    uint16_t gid_lo, links_count;
    uint32_t blocks_lo, flags, version;
    uint32_t block[15];
    uint32_t generation, file_acl_lo, size_hi, obsolete_faddr;
    uint16_t blocks_hi, file_acl_hi, uid_hi, gid_hi, checksum_lo, reserved;
    uint16_t extra_isize, checksum_hi;
    uint32_t ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra, version_hi, projid;
    uint8_t xattrs[96];
};
_Static_assert(sizeof(struct ext4_inode) == EXT4_INODE_SIZE, "inode");
enum { EXT4_EXTRA_ISIZE = 32 };

#define EXT4_EXTENT_MAGIC 0xF30A
#define EXT4_EXTENT_MAX_LEN 32768u
#define EXT4_EXTENTS_IN_INODE 4u
#define EXT4_EXTENTS_IN_BLOCK 340u /* (4096 - header - checksum) / 12 */
struct ext4_extent_header {
    uint16_t magic, entries, max, depth;
    uint32_t generation;
};
struct ext4_extent {
    uint32_t block;
    uint16_t len, start_hi;
    uint32_t start_lo;
};
struct ext4_extent_idx {
    uint32_t block, leaf_lo;
    uint16_t leaf_hi, unused;
};
_Static_assert(sizeof(struct ext4_extent) == 12 && sizeof(struct ext4_extent_idx) == 12, "extent");

struct ext4_dirent { /* 8 bytes, then the name, padded to 4 */
    uint32_t inode;
    uint16_t rec_len;
    uint8_t name_len, file_type;
};
struct ext4_dirent_tail {
    uint32_t zero;
    uint16_t rec_len; /* 12 */
    uint8_t zero_len, type; /* 0xDE */
    uint32_t checksum;
};
#define EXT4_DIR_TAIL 12u
#define EXT4_DIR_ROOM (EXT4_BLOCK - EXT4_DIR_TAIL)
#define EXT4_DIRENT_SIZE(name_len) ((8u + (name_len) + 3u) & ~3u)

struct ext4_dx_entry {
    uint32_t hash, block; /* the first entry's hash holds u16 limit, u16 count */
};
struct ext4_dx_root_info { /* at byte 24 of block 0 */
    uint32_t reserved;
    uint8_t hash_version, info_length, indirect_levels, unused_flags;
};
#define EXT4_DX_ROOT_AT 32u
#define EXT4_DX_NODE_AT 8u
#define EXT4_DX_ROOT_LIMIT 507u /* (4096 - 32 - 8 of checksum) / 8 */
#define EXT4_DX_NODE_LIMIT 510u /* (4096 - 8 - 8) / 8 */

#define EXT4_XATTR_MAGIC 0xEA020000u
struct ext4_xattr_header { /* of a block */
    uint32_t magic, refcount, blocks, hash, checksum, reserved[3];
};
struct ext4_xattr_entry {
    uint8_t name_len, name_index;
    uint16_t value_offs;
    uint32_t value_inum, value_size, hash;
};
_Static_assert(sizeof(struct ext4_xattr_entry) == 16, "xattr entry");

#define JBD2_MAGIC 0xC03B3998u
struct jbd2_super { /* big-endian */
    uint32_t magic, blocktype, sequence0;
    uint32_t blocksize, maxlen, first, sequence, start, error;
    uint32_t feature_compat, feature_incompat, feature_ro_compat;
    uint8_t uuid[16];
    uint32_t nr_users;
};

#endif
