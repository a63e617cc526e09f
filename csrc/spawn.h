/* Start a detached, unprivileged process, as fast as vfork does.
 *
 * The child shares the parent's memory until it execs (clone with CLONE_VM | CLONE_VFORK), so the
 * cost does not grow with the parent. Before exec it, in this order: leaves the session and the
 * parent's signal mask and handlers behind, is in its control group, moves its descriptors in place
 * and closes every other one, sets its limits, writes "<pid> <start time>\n" into a record (so that a parent killed at
 * any moment leaves no process that nobody can find), empties its capability bounding set, takes
 * its groups, group and user, drops every capability and sets NoNewPrivs.
 *
 * The caller owns all memory and all descriptors. No globals; thread-safe, but two calls at the
 * same time from one process leave it non-dumpable at worst (see the .c file).
 */
#ifndef SS_SPAWN_H
#define SS_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SS_SPAWN_FIRST_FD 3
#define SS_SPAWN_MAX_FDS 256

enum ss_spawn_stage {
    SS_SPAWN_CLONE,       /* no process was made */
    SS_SPAWN_SESSION,
    SS_SPAWN_GROUP,       /* it could not be put into its control group */
    SS_SPAWN_DESCRIPTORS,
    SS_SPAWN_LIMITS,
    SS_SPAWN_RECORD,
    SS_SPAWN_IDENTITY,    /* groups, gid, uid, capabilities, NoNewPrivs */
    SS_SPAWN_DIRECTORY,
    SS_SPAWN_EXEC
};

struct ss_spawn {
    const char *path;         /* the program, absolute: there is no search */
    char *const *argv;        /* NULL-terminated */
    char *const *envp;        /* NULL-terminated */
    const char *directory;    /* working directory, entered with the new identity */
    const int *fds;           /* fds[i] becomes descriptor 3 + i */
    size_t fd_count;          /* at most SS_SPAWN_MAX_FDS */
    int output_fd;            /* becomes descriptors 1 and 2; descriptor 0 is /dev/null */
    int record_fd;            /* where pid and start time are written; -1: nowhere */
    int group_fd;             /* directory of a control group (cgroups(7)); -1: the caller's own */
    const char *group_file;   /* the file in it that takes a "0" of the child; NULL: cgroup v2,
                               * where the process is made inside (clone3(2)) */
    int change_identity;      /* 0: keep the caller's uid, gid and groups */
    uid_t uid;
    gid_t gid;
    const gid_t *groups;      /* supplementary groups */
    size_t group_count;
    uint64_t open_files;      /* RLIMIT_NOFILE, soft and hard; core files are always off */
};

/* 0, or a negative errno with *stage telling what failed. On success *pid is a child of the
 * caller that runs the program (the exec has succeeded), and *pidfd is a close-on-exec pidfd
 * that the caller owns. On failure no process is left. Blocks until the exec, about 1 ms. */
int ss_spawn(const struct ss_spawn *request, pid_t *pid, int *pidfd, enum ss_spawn_stage *stage);

#endif
