/* The port to the agent outside: a virtio-serial port by the name org.smallstack.agent.0, lines of
 * text ended by LF. Host to guest: "ping", "stop", "reboot". Guest to host: "ready" (when the host
 * connects), "pong", "stopping", "rebooting". Unknown lines are ignored. */
#ifndef INIT_AGENT_H
#define INIT_AGENT_H

#include <stdbool.h>
#include <stddef.h>

enum agent_word { AGENT_NOTHING, AGENT_PING, AGENT_STOP, AGENT_REBOOT };

enum { AGENT_LINE_MAX = 128 };

/* Lines out of a run of bytes; a longer line than AGENT_LINE_MAX is dropped up to its LF. */
struct agent_lines {
    char line[AGENT_LINE_MAX];
    size_t length;
    bool dropping;
};

/* Takes one byte; returns the word that it completes, if any. */
enum agent_word agent_take(struct agent_lines *lines, char byte);

struct agent {
    int fd;                     /* -1: the port is not there (yet) */
    bool connected;             /* the host's end is open */
    struct agent_lines lines;
};

/* Looks for the port and opens it; signals SIGIO when the host opens or closes its end. */
void agent_find(struct agent *agent);

/* Finds out whether the host's end is open, says "ready" when it has just been opened. */
void agent_check(struct agent *agent);

/* Reads what is there and answers; returns the last AGENT_STOP or AGENT_REBOOT in it. */
enum agent_word agent_read(struct agent *agent);

/* Says a word; what the host does not take at once is lost. */
void agent_say(struct agent *agent, const char *line);

#endif
