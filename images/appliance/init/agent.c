#include "agent.h"

#include <asm/fcntl.h>
#include <asm/poll.h>

#include "sys.h"
#include "text.h"

#define PORTS "/sys/class/virtio-ports"
#define PORT_NAME "org.smallstack.agent.0"

struct entry {                  /* linux_dirent64 */
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

static bool is_ours(const char *device)
{
    char path[96], name[64];
    struct text text = text_in(path, sizeof path);
    long length;

    text_add(&text, PORTS "/");
    text_add(&text, device);
    text_add(&text, "/name");
    length = sys_read_file(path, name, sizeof name);
    while (length > 0 && name[length - 1] == '\n')
        name[--length] = 0;
    return length > 0 && text_equal(name, PORT_NAME);
}

static int open_port(const char *device)
{
    char path[64];
    struct text text = text_in(path, sizeof path);
    int fd;

    text_add(&text, "/dev/");
    text_add(&text, device);
    fd = sys_open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd >= 0) {
        sys_control(fd, F_SETOWN, 1);
        sys_control(fd, F_SETFL, O_RDWR | O_NONBLOCK | FASYNC);
    }
    return fd;
}

void agent_find(struct agent *agent)
{
    char entries[1024] __attribute__((aligned(8)));
    int directory;
    long size;

    if (agent->fd >= 0)
        return;
    directory = sys_open(PORTS, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (directory < 0)
        return;
    while (agent->fd < 0 && (size = sys_list(directory, entries, sizeof entries)) > 0)
        for (long at = 0; at < size && agent->fd < 0;) {
            const struct entry *entry = (const struct entry *)(entries + at);

            if (entry->name[0] != '.' && is_ours(entry->name))
                agent->fd = open_port(entry->name);
            at += entry->size;
        }
    sys_close(directory);
    agent_check(agent);
}

void agent_check(struct agent *agent)
{
    struct pollfd poll = {.fd = agent->fd, .events = POLLIN};
    bool connected;

    if (agent->fd < 0)
        return;
    connected = sys_poll(&poll, 1, 0) >= 0 && (poll.revents & POLLHUP) == 0;
    if (connected && !agent->connected)
        agent_say(agent, "ready\n");
    agent->connected = connected;
}

enum agent_word agent_read(struct agent *agent)
{
    enum agent_word result = AGENT_NOTHING;
    char buffer[256];
    long got;

    while ((got = sys_read(agent->fd, buffer, sizeof buffer)) > 0)
        for (long i = 0; i < got; i++) {
            enum agent_word word = agent_take(&agent->lines, buffer[i]);

            if (word == AGENT_PING)
                agent_say(agent, "pong\n");
            else if (word != AGENT_NOTHING)
                result = word;
        }
    if (got == 0)               /* the host has closed its end */
        agent->connected = false;
    return result;
}

void agent_say(struct agent *agent, const char *line)
{
    if (agent->fd >= 0)
        sys_write(agent->fd, line, text_length(line));
}
