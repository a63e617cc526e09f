/* Process 1 of an appliance. Its order is that of the clock: first a DHCP request goes out, for
 * which nothing but a socket is needed; while its answer is on the way, and after it, come the
 * mounts and everything else. From then on one loop waits for whatever happens: a child's end, a
 * word from the agent, a lease that is to be renewed.
 *
 *   DISCOVER ─► OFFER, REQUEST ─► mounts ─► ACK, "ready" ─► metadata (a child) ─► shell, program ─► …
 *                                                 └──► httpd or a container's program, agent's port
 */
#include <asm/fcntl.h>
#include <asm/ioctls.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <linux/netlink.h>
#include <linux/reboot.h>
#include <linux/signalfd.h>

#include "agent.h"
#include "console.h"
#include "container_run.h"
#include "entry.h"
#include "metadata.h"
#include "mounts.h"
#include "network.h"
#include "process.h"
#include "shutdown.h"
#include "sys.h"
#include "text.h"

#define SIGNAL_BIT(signal) ((uint64_t)1 << ((signal)-1))

enum {
    OFFER_PATIENCE_MS = 40,         /* nothing else is begun before, unless the answer comes */
    SHELL_PATIENCE_MS = 10000,      /* a shell comes up by then, lease or not */
    CONTAINER_GRACE_MS = 3000,      /* for its program to end by the signal that it names */
    NOTICES_GROUP = 1,              /* the kernel's own device events */
};

enum { METADATA, SHELL, HTTPD, PROGRAM, USER_DATA, PROCESSES };

struct machine {
    struct network network;
    int signals;
    int notices;                    /* device events, while the agent's port is being looked for */
    struct agent agent;
    struct process processes[PROCESSES];
    bool started_rest;              /* what follows on the metadata, or on patience */
    const struct container *container;      /* NULL: the machine is none */
};

#define BUSYBOX "/bin/busybox"
#define CONTAINER_SHELL "/bin/sh"
#define IMAGE_PROGRAM "/etc/smallstack/run"

static const char *const SHELL_NAME[] = {"-sh", NULL};     /* a login shell */
static const char *const HTTPD_COMMAND[] = {"httpd", "-f", "-p", "80", "-h", "/var/www", NULL};
static const char *const IMAGE_COMMAND[] = {IMAGE_PROGRAM, NULL};
static const char *const SCRIPT[] = {"sh", METADATA_USER_DATA, NULL};
static const char *const USER_PROGRAM[] = {METADATA_USER_DATA, NULL};

static const struct process SERVICES[PROCESSES] = {
    [METADATA] = {.name = "metadata", .silent = true, .due_ms = -1},
    [SHELL] = {.name = "shell", .path = BUSYBOX, .arguments = SHELL_NAME, .session = true,
               .again = true, .silent = true, .due_ms = SHELL_PATIENCE_MS},
    [HTTPD] = {.name = "httpd", .path = BUSYBOX, .arguments = HTTPD_COMMAND, .again = true,
               .due_ms = -1},
    [PROGRAM] = {.name = IMAGE_PROGRAM, .path = IMAGE_PROGRAM, .arguments = IMAGE_COMMAND,
                 .due_ms = -1},
    [USER_DATA] = {.name = METADATA_USER_DATA, .due_ms = -1},
};

static void start_metadata(struct machine *machine)
{
    long pid = sys_fork();

    if (pid == 0) {
        process_become_child(false);
        sys_exit(metadata_fetch());
    }
    if (pid > 0)
        machine->processes[METADATA].pid = (int)pid;
}

static void say_ready(const struct machine *machine)
{
    char buffer[96];
    struct text words = text_in(buffer, sizeof buffer);

    text_add(&words, "ready ip=");
    text_add_ipv4(&words, machine->network.links[0].client.lease.address);
    text_add(&words, " boot_ms=");
    text_add_number(&words, sys_uptime_ms());
    console_say(buffer, 0);
}

static void look_for_agent(struct machine *machine)
{
    agent_find(&machine->agent);
    if (machine->agent.fd >= 0 && machine->notices >= 0) {
        sys_close(machine->notices);
        machine->notices = -1;
    }
}

/* The host's port can come up late: the events are subscribed to before the first look. */
static void start_agent(struct machine *machine)
{
    struct sockaddr_nl address = {.nl_family = FAMILY_NETLINK, .nl_groups = NOTICES_GROUP};

    machine->notices = sys_socket(FAMILY_NETLINK, SOCKET_RAW | O_CLOEXEC | O_NONBLOCK,
                                  NETLINK_KOBJECT_UEVENT);
    if (machine->notices >= 0)
        sys_bind(machine->notices, &address, sizeof address);
    look_for_agent(machine);
}

static void on_ready(struct machine *machine)
{
    say_ready(machine);
    start_metadata(machine);
    network_write_names(&machine->network);
    if (machine->container != NULL) {
        container_use_names();
        process_start(&machine->processes[PROGRAM]);
    } else {
        process_start(&machine->processes[HTTPD]);
    }
}

/* In a container nothing is taken for granted: a shell only if it has one, no web server. */
static void prepare_container(struct machine *machine)
{
    struct process *program = &machine->processes[PROGRAM], *shell = &machine->processes[SHELL];

    program->name = machine->container->arguments[0];
    program->container = machine->container;
    program->again = machine->container->at_end == CONTAINER_RESTART;
    shell->path = CONTAINER_SHELL;
    if (sys_access(CONTAINER_SHELL, 1) < 0) {
        shell->path = NULL;
        shell->due_ms = -1;
    }
    sys_unlink(METADATA_USER_DATA);     /* its /run is on the disk: this is of an earlier boot */
}

static void start_rest(struct machine *machine)
{
    struct process *user_data = &machine->processes[USER_DATA];

    machine->started_rest = true;
    if (machine->container == NULL && sys_access(IMAGE_PROGRAM, 1) == 0)
        process_start(&machine->processes[PROGRAM]);
    switch (metadata_user_data_kind()) {
    case METADATA_SCRIPT:
        if (machine->container == NULL) {
            user_data->path = BUSYBOX;
            user_data->arguments = SCRIPT;
            process_start(user_data);
            break;
        }
        __attribute__((fallthrough));   /* by the container's own interpreter, if it has it */
    case METADATA_PROGRAM:
        user_data->path = METADATA_USER_DATA;
        user_data->arguments = USER_PROGRAM;
        process_start(user_data);
        break;
    case METADATA_NONE:
        break;
    }
    if (machine->processes[SHELL].pid == 0 && machine->processes[SHELL].path != NULL)
        process_start(&machine->processes[SHELL]);
}

_Noreturn static void leave(struct machine *machine, const char *word)
{
    struct process *program = &machine->processes[PROGRAM];

    agent_say(&machine->agent, word);
    if (machine->container != NULL && program->pid != 0)
        process_end(program, machine->container->stop_signal, machine->signals,
                    CONTAINER_GRACE_MS);
    shutdown_machine(machine->signals);
}

static void on_child_end(struct machine *machine)
{
    const struct process *program = &machine->processes[PROGRAM];
    bool ran = program->pid != 0;

    process_reap(machine->processes, PROCESSES);
    if (ran && program->pid == 0 && machine->container != NULL &&
        machine->container->at_end == CONTAINER_STOP)
        leave(machine, "stopping\n");
}

static void on_signals(struct machine *machine)
{
    struct signalfd_siginfo info;

    while (sys_read(machine->signals, &info, sizeof info) == (long)sizeof info)
        switch (info.ssi_signo) {
        case SIGCHLD:
            on_child_end(machine);
            break;
        case SIGIO:
            agent_check(&machine->agent);
            break;
        case SIGUSR1:           /* busybox halt */
        case SIGUSR2:           /* busybox poweroff */
            leave(machine, "stopping\n");
        case SIGTERM:           /* busybox reboot */
        case SIGINT:
            leave(machine, "rebooting\n");
        default:
            break;
        }
    if (machine->network.ready && !machine->started_rest && machine->processes[METADATA].pid == 0)
        start_rest(machine);
}

static void on_agent(struct machine *machine)
{
    switch (agent_read(&machine->agent)) {
    case AGENT_STOP:
        leave(machine, "stopping\n");
    case AGENT_REBOOT:
        leave(machine, "rebooting\n");
    case AGENT_NOTHING:
    case AGENT_PING:
        break;
    }
}

static void start_due(struct machine *machine)
{
    int64_t now = sys_uptime_ms();

    for (unsigned i = 0; i < PROCESSES; i++) {
        struct process *process = &machine->processes[i];

        if (process->pid == 0 && process->due_ms >= 0 && process->due_ms <= now)
            process_start(process);
    }
}

static int64_t next_deadline(const struct machine *machine)
{
    int64_t deadline = network_deadline(&machine->network);

    for (unsigned i = 0; i < PROCESSES; i++) {
        const struct process *process = &machine->processes[i];

        if (process->pid == 0 && process->due_ms >= 0 &&
            (deadline < 0 || process->due_ms < deadline))
            deadline = process->due_ms;
    }
    return deadline;
}

static void wait_once(struct machine *machine)
{
    struct pollfd fds[3 + NETWORK_LINKS_MAX];
    int64_t deadline = next_deadline(machine), left = -1;
    unsigned count = 3 + machine->network.count;

    fds[0] = (struct pollfd){.fd = machine->signals, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = machine->agent.connected ? machine->agent.fd : -1,
                             .events = POLLIN};
    fds[2] = (struct pollfd){.fd = machine->notices, .events = POLLIN};
    for (unsigned i = 0; i < machine->network.count; i++)
        fds[3 + i] = (struct pollfd){.fd = machine->network.links[i].socket, .events = POLLIN};
    if (deadline >= 0) {
        left = deadline - sys_uptime_ms();
        left = left < 0 ? 0 : left;
    }
    if (sys_poll(fds, count, left) < 0)
        return;
    for (unsigned i = 0; i < machine->network.count; i++)
        if (fds[3 + i].revents != 0 && network_input(&machine->network, i))
            on_ready(machine);
    if (network_due(&machine->network))
        on_ready(machine);
    if (fds[0].revents != 0)
        on_signals(machine);
    if (fds[1].revents & POLLHUP)
        agent_check(&machine->agent);
    else if (fds[1].revents != 0)
        on_agent(machine);
    if (fds[2].revents != 0) {
        char event[2048];

        while (sys_receive(machine->notices, event, sizeof event) > 0)
            continue;
        look_for_agent(machine);
    }
    start_due(machine);
}

_Noreturn void init_main(void)
{
    static struct machine machine;
    const uint64_t signals = SIGNAL_BIT(SIGCHLD) | SIGNAL_BIT(SIGIO) | SIGNAL_BIT(SIGUSR1) |
                             SIGNAL_BIT(SIGUSR2) | SIGNAL_BIT(SIGTERM) | SIGNAL_BIT(SIGINT);
    bool ready, container;

    machine.agent.fd = machine.notices = -1;
    network_start(&machine.network);
    sys_signal_mask(signals);
    machine.signals = sys_signal_fd(signals);
    __builtin_memcpy(machine.processes, SERVICES, sizeof SERVICES);
    ready = network_await(&machine.network, OFFER_PATIENCE_MS);
    container = sys_access(CONTAINER_FILE, 0) == 0;
    for (unsigned i = 0; i < mounts_steps(); i++) {
        mounts_make(i, container);
        ready |= network_poll(&machine.network);
    }
    if (container) {
        machine.container = container_load();
        if (machine.container == NULL)
            leave(&machine, "stopping\n");
        prepare_container(&machine);
    }
    sys_reboot(LINUX_REBOOT_CMD_CAD_OFF);
    link_loopback();
    if (ready)
        on_ready(&machine);
    start_agent(&machine);
    network_start_others(&machine.network);
    for (;;)
        wait_once(&machine);
}
