/* The programs the init starts: what they are called, where their output goes, whether they are
 * started again when they end. Every child of process 1 is reaped, also those that were orphaned. */
#ifndef INIT_PROCESS_H
#define INIT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

struct container;

struct process {
    const char *name;       /* for the console */
    const char *path;
    const char *const *arguments;   /* NULL behind the last */
    const struct container *container;      /* the program is this one's, in place of the above */
    bool session;           /* its own session with the console as its terminal */
    bool again;             /* started again when it ends */
    bool silent;            /* its end is not worth a line */
    int pid;                /* 0: not running */
    int64_t started_ms;
    int64_t due_ms;         /* when it is to be started; -1: not */
};

/* Starts it now. Returns 0 or a negative errno. */
int process_start(struct process *process);

/* Sends a running one this signal and waits for its end, at most `grace_ms`. */
void process_end(struct process *process, int signal, int signal_fd, int64_t grace_ms);

/* In the child: a fresh start for whatever is executed next, or for a function of this program. */
void process_become_child(bool session);

/* The environment of every program. */
extern const char *const PROCESS_ENVIRONMENT[];

/* Reaps all that have ended; for one of `table` notes it, says so and sets due_ms if it is to come
 * again (a second later if it lived less than a second). Returns how many were reaped. */
int process_reap(struct process *table, unsigned count);

/* Ends every process but this one: SIGTERM, after `grace_ms` SIGKILL, until none is left or another
 * `grace_ms` have gone by. */
void process_end_all(int signal_fd, int64_t grace_ms);

#endif
