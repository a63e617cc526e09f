#include "metadata.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/poll.h>
#include <asm/socket.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include "console.h"
#include "http_response.h"
#include "sys.h"
#include "text.h"

enum {
    TRIES = 4,
    REQUEST_LIMIT_MS = 5000,            /* connecting, or silence of the server */
    DOCUMENT_MAX = 64 * 1024,
    USER_DATA_MAX = 256 * 1024 * 1024,  /* a program may be in it; /run bounds it as well */
};

/* Where a body goes: a file, or a buffer. */
struct sink {
    int fd;                 /* -1: the buffer */
    char *data;
    size_t room, length;
};

static int take(struct sink *sink, const char *data, size_t size)
{
    if (sink->fd >= 0)
        return sys_write_all(sink->fd, data, size);
    if (size > sink->room - sink->length)
        return -E2BIG;
    __builtin_memcpy(sink->data + sink->length, data, size);
    sink->length += size;
    return 0;
}

/* Empties the sink for another try: what a cut transfer left must not come before the next. */
static int empty(struct sink *sink)
{
    sink->length = 0;
    if (sink->fd < 0)
        return 0;
    if (SYS3(__NR_lseek, sink->fd, 0, 0) < 0)
        return -EIO;
    return (int)SYS2(__NR_ftruncate, sink->fd, 0);
}

static int wait_for(int fd, short events)
{
    struct pollfd poll = {.fd = fd, .events = events};
    int result;

    do
        result = sys_poll(&poll, 1, REQUEST_LIMIT_MS);
    while (result == -EINTR);
    if (result < 0)
        return result;
    return result == 0 ? -ETIME : 0;
}

static int connect_to_server(void)
{
    struct sockaddr_in server = {.sin_family = FAMILY_INET, .sin_port = __builtin_bswap16(80)};
    static const uint8_t address[4] = {169, 254, 169, 254};
    int fd = sys_socket(FAMILY_INET, SOCKET_STREAM | O_CLOEXEC | O_NONBLOCK, 0);
    int result, error = 0, size = sizeof error;

    if (fd < 0)
        return fd;
    __builtin_memcpy(&server.sin_addr, address, 4);
    result = sys_connect(fd, &server, sizeof server);
    if (result == -EINPROGRESS) {
        result = wait_for(fd, POLLOUT);
        if (result == 0)
            result = sys_get_option(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (result == 0)
            result = -error;
    }
    if (result < 0) {
        sys_close(fd);
        return result;
    }
    return fd;
}

static int exchange(int fd, const char *path, uint64_t body_max, struct sink *sink)
{
    static struct http_response response;
    static char buffer[32 * 1024];
    struct text request = text_in(buffer, sizeof buffer);
    int result;

    text_add(&request, "GET ");
    text_add(&request, path);
    text_add(&request, " HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n");
    result = sys_write_all(fd, buffer, request.length);
    http_start(&response, body_max);
    while (result == 0 && !http_complete(&response)) {
        long got = sys_read(fd, buffer, sizeof buffer);

        if (got == -EAGAIN || got == -EINTR) {
            result = wait_for(fd, POLLIN);
        } else if (got < 0) {
            result = (int)got;
        } else if (got == 0) {
            result = http_finish(&response);
            break;
        } else {
            long body = http_feed(&response, buffer, (size_t)got);

            if (body < 0)
                result = (int)body;
            else if (body > 0 && response.status == 200)
                result = take(sink, buffer + got - body, (size_t)body);
        }
    }
    return result < 0 ? result : response.status;
}

/* One GET. Returns the HTTP status or a negative errno; only a 200's body reaches the sink. */
static int get(const char *path, uint64_t body_max, struct sink *sink)
{
    int status = -EIO;

    for (int i = 0; i < TRIES; i++) {
        int fd = connect_to_server();

        if (fd >= 0) {
            status = empty(sink);
            if (status == 0)
                status = exchange(fd, path, body_max, sink);
            sys_close(fd);
            if (status >= 0 || status == -E2BIG || status == -ENOSPC)
                return status;
        } else {
            status = fd;
        }
        if (status == -ECONNREFUSED || status == -ENETUNREACH || status == -EHOSTUNREACH) {
            struct pollfd nothing = {.fd = -1};

            sys_poll(&nothing, 1, 250 << i);    /* the server may be about to come */
        }
    }
    return status;
}

static void fetch_user_data(void)
{
    struct sink sink = {
        .fd = sys_open(METADATA_USER_DATA "~", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755),
    };
    int result = sink.fd;

    if (sink.fd >= 0) {
        result = get("/latest/user-data", USER_DATA_MAX, &sink);
        sys_close(sink.fd);
    }
    if (result == 200) {
        result = (int)SYS4(__NR_renameat2, -100, METADATA_USER_DATA "~", -100, METADATA_USER_DATA);
        if (result == 0)
            return;
    }
    sys_unlink(METADATA_USER_DATA "~");
    if (result != 404)
        console_say("no user data", result);
}

static int print_document(void)
{
    static const char begin[] = "smallstack: identity-begin\n", end[] = "smallstack: identity-end\n";
    static char page[sizeof begin + DOCUMENT_MAX + 1 + sizeof end];
    struct sink sink = {.fd = -1, .data = page + sizeof begin - 1, .room = DOCUMENT_MAX};
    struct text text;
    int status = get("/latest/dynamic/instance-identity/document", DOCUMENT_MAX, &sink);

    if (status != 200) {
        console_say("no identity document", status);
        return 1;
    }
    __builtin_memcpy(page, begin, sizeof begin - 1);
    text = (struct text){
        .data = page,
        .size = sizeof page,
        .length = sizeof begin - 1 + sink.length,
    };
    if (sink.length > 0 && page[text.length - 1] != '\n')
        text_add(&text, "\n");
    text_add(&text, end);
    sys_write_all(1, page, text.length);    /* in one piece: no other output gets between */
    return 0;
}

int metadata_fetch(void)
{
    fetch_user_data();
    return print_document();
}

enum metadata_kind metadata_user_data_kind(void)
{
    char head[5];
    long got = sys_read_file(METADATA_USER_DATA, head, sizeof head);

    if (got >= 4 && head[0] == 0x7f && head[1] == 'E' && head[2] == 'L' && head[3] == 'F')
        return METADATA_PROGRAM;
    if (got >= 2 && head[0] == '#' && head[1] == '!')
        return METADATA_SCRIPT;
    return METADATA_NONE;
}
