#include "process.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/ioctls.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <linux/signalfd.h>
#include <stddef.h>

#include "console.h"
#include "container_run.h"
#include "sys.h"
#include "text.h"

enum { AGAIN_AFTER_MS = 1000 };

const char *const PROCESS_ENVIRONMENT[] = {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "TERM=vt100",
    "USER=root",
    "SHELL=/bin/sh",
    NULL,
};

/* The device behind /dev/console can be a controlling terminal, /dev/console itself cannot. */
static int open_terminal(void)
{
    char path[64];
    char names[64];
    struct text text = text_in(path, sizeof path);
    long length = sys_read_file("/sys/class/tty/console/active", names, sizeof names);
    const char *last = names;

    if (length <= 0)
        return sys_open("/dev/console", O_RDWR, 0);
    for (long i = 0; i < length; i++) {
        if (names[i] == '\n')
            names[i] = 0;
        else if (names[i] == ' ')
            last = names + i + 1;
    }
    text_add(&text, "/dev/");
    text_add(&text, last);
    return sys_open(path, O_RDWR, 0);
}

void process_become_child(bool session)
{
    sys_signal_mask(0);
    if (session) {
        int fd;

        sys_new_session();
        fd = open_terminal();
        if (fd >= 0) {
            sys_ioctl(fd, TIOCSCTTY, NULL);
            sys_dup2(fd, 0);
            sys_dup2(fd, 1);
            sys_dup2(fd, 2);
            if (fd > 2)
                sys_close(fd);
        }
        sys_chdir("/root");
    } else {
        int fd = sys_open("/dev/null", O_RDONLY, 0);

        sys_new_session();
        if (fd >= 0) {
            sys_dup2(fd, 0);
            if (fd > 2)
                sys_close(fd);
        }
        sys_chdir("/");
    }
}

int process_start(struct process *process)
{
    long pid = sys_fork();

    if (pid == 0) {
        int result;

        process_become_child(process->session);
        if (process->container != NULL) {
            container_execute(process->container);
            sys_exit(127);
        }
        result = sys_execute(process->path, process->arguments, PROCESS_ENVIRONMENT);
        console_say_name("cannot execute", process->path, result);
        sys_exit(127);
    }
    process->due_ms = -1;
    if (pid < 0)
        return (int)pid;
    process->pid = (int)pid;
    process->started_ms = sys_uptime_ms();
    return 0;
}

static void say_end(const char *name, int status)
{
    char buffer[128];
    struct text words = text_in(buffer, sizeof buffer);

    text_add(&words, name);
    if ((status & 0x7f) == 0) {
        text_add(&words, " ended with status ");
        text_add_number(&words, status >> 8 & 0xff);
    } else {
        text_add(&words, " was ended by signal ");
        text_add_number(&words, status & 0x7f);
    }
    console_say(buffer, 0);
}

int process_reap(struct process *table, unsigned count)
{
    int reaped = 0, status;
    long pid;

    while ((pid = sys_wait(&status)) > 0) {
        reaped++;
        for (unsigned i = 0; i < count; i++) {
            struct process *process = &table[i];
            int64_t now;

            if (process->pid != pid)
                continue;
            process->pid = 0;
            if (!process->silent)
                say_end(process->name, status);
            if (!process->again)
                break;
            now = sys_uptime_ms();
            process->due_ms = now - process->started_ms < AGAIN_AFTER_MS ? now + AGAIN_AFTER_MS : now;
            break;
        }
    }
    return reaped;
}

static void await_signal(int signal_fd, int64_t wait_ms)
{
    struct pollfd poll = {.fd = signal_fd, .events = POLLIN};
    struct signalfd_siginfo info;

    sys_poll(&poll, 1, wait_ms);
    while (sys_read(signal_fd, &info, sizeof info) > 0)
        continue;
}

void process_end(struct process *process, int signal, int signal_fd, int64_t grace_ms)
{
    int64_t deadline = sys_uptime_ms() + grace_ms, left = grace_ms;

    sys_kill(process->pid, signal);
    for (;;) {
        process_reap(process, 1);
        if (process->pid == 0 || left <= 0)
            break;
        await_signal(signal_fd, left);
        left = deadline - sys_uptime_ms();
    }
}

/* Waits until no child is left. */
static bool drain(int signal_fd, int64_t deadline_ms)
{
    for (;;) {
        int status;
        long pid;
        int64_t left;

        while ((pid = sys_wait(&status)) > 0)
            continue;
        if (pid == -ECHILD)
            return true;
        left = deadline_ms - sys_uptime_ms();
        if (left <= 0)
            return false;
        await_signal(signal_fd, left);
    }
}

void process_end_all(int signal_fd, int64_t grace_ms)
{
    sys_kill(-1, SIGTERM);
    sys_kill(-1, SIGCONT);
    sys_kill(-1, SIGHUP);       /* an interactive shell does not mind SIGTERM */
    if (drain(signal_fd, sys_uptime_ms() + grace_ms))
        return;
    sys_kill(-1, SIGKILL);
    drain(signal_fd, sys_uptime_ms() + grace_ms);
}
