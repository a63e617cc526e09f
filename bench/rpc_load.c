/*
 * The load of `./dev bench rpc`: N connections that call one method, each as soon as it can.
 *
 *   rpc_load call PORT CONNECTIONS SECONDS PATH CERT KEY METHOD REQUEST gob|json
 *   rpc_load echo PORT CONNECTIONS SECONDS -    CERT KEY -      BYTES   echo
 *   rpc_load idle PORT CONNECTIONS 0       PATH CERT KEY -      -       -
 *
 * PATH is what to CONNECT to; CERT and KEY in PEM, or "-" for a plain connection. A call is what a
 * client of this protocol does: the method line, wait for the line feed, the request (the contents
 * of a file), wait for the line feed and the reply; two round trips. Every reply must be the first
 * one's bytes again. An echo is one round trip of the file's bytes, inside TLS from the first byte.
 *
 * Prints one line of JSON: calls, seconds, and the time of a call in microseconds (p50, p99). A call
 * also prints the first reply as hexadecimal digits. Idle connections are announced by a line
 * "ready", then held until standard input ends. What goes wrong is one line and exit status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 18, MAX_SAMPLES = 1 << 21, MAX_EVENTS = 64 };

enum coder { GOB, JSON, ECHO };

enum state { WAIT_ACCEPT, WAIT_REPLY };

struct peer {
    int fd;
    SSL *tls;
    enum state state;
    uint64_t begun_ns;
    size_t length;
    uint8_t *buffer;
};

struct load {
    enum coder coder;
    char method[256];
    size_t method_length;
    uint8_t *request;
    size_t request_length;
    uint8_t *expected;
    size_t expected_length;
    uint32_t *samples_us;
    size_t samples;
    uint64_t calls;
};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("rpc_load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void send_all(struct peer *peer, const void *data, size_t length)
{
    /* A request fits into any socket's buffer: what cannot be written at once is an error. */
    if (peer->tls != NULL) {
        if (SSL_write(peer->tls, data, (int)length) != (int)length) {
            fail("a request was not taken");
        }
    } else if (send(peer->fd, data, length, MSG_NOSIGNAL) != (ssize_t)length) {
        fail("a request was not taken: %s", strerror(errno));
    }
}

/* Appends what is there; 0 when there is nothing more for now. */
static size_t receive(struct peer *peer)
{
    size_t room = ROOM - peer->length;
    ssize_t got;
    if (room == 0) {
        fail("a reply of over %d bytes", ROOM);
    }
    if (peer->tls != NULL) {
        got = SSL_read(peer->tls, peer->buffer + peer->length, (int)room);
        if (got <= 0) {
            if (SSL_get_error(peer->tls, (int)got) == SSL_ERROR_WANT_READ) {
                return 0;
            }
            fail("the server ended TLS: %s", ERR_reason_error_string(ERR_peek_last_error()));
        }
    } else {
        got = recv(peer->fd, peer->buffer + peer->length, room, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
            return 0;
        }
        if (got <= 0) {
            fail("the server closed the connection");
        }
    }
    peer->length += (size_t)got;
    return (size_t)got;
}

/* The unsigned integer of gob at *at, which moves on; 0 when it is not all there. */
static int gob_uint(const uint8_t *data, size_t length, size_t *at, uint64_t *value)
{
    uint8_t first;
    size_t count;
    if (*at >= length) {
        return 0;
    }
    first = data[*at];
    if (first < 0x80) {
        *value = first;
        *at += 1;
        return 1;
    }
    count = (size_t)256 - first;
    if (count > 8 || *at + 1 + count > length) {
        return 0;
    }
    *value = 0;
    for (size_t i = 0; i < count; i++) {
        *value = *value << 8 | data[*at + 1 + i];
    }
    *at += 1 + count;
    return 1;
}

/* Whether line feed and value are complete. Types have negative ids, odd in gob's integers. */
static int reply_complete(const struct load *load, const struct peer *peer)
{
    size_t at = 1;
    if (load->coder == ECHO) {
        return peer->length >= load->request_length;
    }
    if (peer->length == 0) {
        return 0;
    }
    if (peer->buffer[0] != '\n') {
        fail("refused: %.*s", (int)(peer->length < 200 ? peer->length : 200), peer->buffer);
    }
    if (load->coder == JSON) {
        return peer->length > 1 && peer->buffer[peer->length - 1] == '\n';
    }
    for (;;) {
        uint64_t size, id;
        size_t body;
        if (!gob_uint(peer->buffer, peer->length, &at, &size) || size > peer->length - at) {
            return 0;
        }
        body = at;
        if (!gob_uint(peer->buffer, peer->length, &body, &id)) {
            fail("a reply that is not gob");
        }
        at += size;
        if ((id & 1) == 0) {
            return 1;
        }
    }
}

static void begin_call(const struct load *load, struct peer *peer)
{
    peer->begun_ns = now_ns();
    peer->length = 0;
    if (load->coder == ECHO) {
        peer->state = WAIT_REPLY;
        send_all(peer, load->request, load->request_length);
    } else {
        peer->state = WAIT_ACCEPT;
        send_all(peer, load->method, load->method_length);
    }
}

static void end_call(struct load *load, struct peer *peer)
{
    uint64_t took = now_ns() - peer->begun_ns;
    if (load->expected == NULL) {
        load->expected_length = peer->length;
        load->expected = malloc(peer->length);
        if (load->expected == NULL) {
            fail("no memory");
        }
        memcpy(load->expected, peer->buffer, peer->length);
    } else if (peer->length != load->expected_length ||
               memcmp(peer->buffer, load->expected, peer->length) != 0) {
        fail("a reply is not what the first one was");
    }
    load->calls++;
    if (load->samples < MAX_SAMPLES) {
        load->samples_us[load->samples++] = (uint32_t)(took / 1000);
    }
}

static void serve(struct load *load, struct peer *peer)
{
    while (receive(peer) > 0) {
        if (peer->state == WAIT_ACCEPT) {
            if (peer->buffer[0] != '\n' || peer->length != 1) {
                fail("refused: %.*s", (int)(peer->length < 200 ? peer->length : 200), peer->buffer);
            }
            peer->length = 0;
            peer->state = WAIT_REPLY;
            send_all(peer, load->request, load->request_length);
        } else if (reply_complete(load, peer)) {
            end_call(load, peer);
            begin_call(load, peer);
        }
        if (peer->tls != NULL ? SSL_pending(peer->tls) == 0 : 1) {
            return; /* the next event tells of more */
        }
    }
}

static void connect_peer(struct peer *peer, uint16_t port, const char *path, SSL_CTX *context)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&where, sizeof(where)) != 0) {
        fail("cannot connect: %s", strerror(errno));
    }
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (strcmp(path, "-") != 0) {
        static const char wanted[] = "HTTP/1.0 200 Connected to Go SRPC\n\n";
        char line[256], answer[sizeof(wanted)];
        int length = snprintf(line, sizeof(line), "CONNECT %s HTTP/1.0\n\n", path);
        size_t got = 0;
        if (send(peer->fd, line, (size_t)length, MSG_NOSIGNAL) != length) {
            fail("CONNECT was not taken");
        }
        while (got < sizeof(wanted) - 1) {
            ssize_t more = recv(peer->fd, answer + got, sizeof(wanted) - 1 - got, 0);
            if (more <= 0) {
                fail("CONNECT was not answered");
            }
            got += (size_t)more;
        }
        if (memcmp(answer, wanted, got) != 0) {
            fail("CONNECT was refused: %.*s", (int)got, answer);
        }
    }
    if (context != NULL) {
        peer->tls = SSL_new(context);
        if (peer->tls == NULL || SSL_set_fd(peer->tls, peer->fd) != 1 ||
            SSL_connect(peer->tls) != 1) {
            fail("no TLS: %s", ERR_reason_error_string(ERR_peek_last_error()));
        }
    }
}

static SSL_CTX *tls_context(const char *certificate, const char *key)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1) {
        fail("cannot use %s and %s", certificate, key);
    }
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    return context;
}

static void read_request(struct load *load, const char *file)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t got;
    load->request = malloc(ROOM);
    got = fd < 0 || load->request == NULL ? -1 : read(fd, load->request, ROOM);
    if (got <= 0) {
        fail("cannot read %s", file);
    }
    close(fd);
    load->request_length = (size_t)got;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void run(struct load *load, struct peer *peers, size_t count, double seconds)
{
    struct epoll_event events[MAX_EVENTS];
    int poll = epoll_create1(EPOLL_CLOEXEC);
    uint64_t begin, end, now;
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &peers[i]};
        fcntl(peers[i].fd, F_SETFL, fcntl(peers[i].fd, F_GETFL) | O_NONBLOCK);
        if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, peers[i].fd, &event) != 0) {
            fail("epoll: %s", strerror(errno));
        }
    }
    begin = now_ns();
    end = begin + (uint64_t)(seconds * 1e9);
    for (size_t i = 0; i < count; i++) {
        begin_call(load, &peers[i]);
    }
    do {
        int ready = epoll_wait(poll, events, MAX_EVENTS, 10000);
        if (ready <= 0) {
            fail("no answer in 10 s");
        }
        for (int i = 0; i < ready; i++) {
            serve(load, events[i].data.ptr);
        }
        now = now_ns();
    } while (now < end);
    if (load->samples == 0) {
        fail("not one call was answered");
    }
    qsort(load->samples_us, load->samples, sizeof(uint32_t), by_size);
    printf("{\"calls\": %llu, \"seconds\": %.6f, \"p50_us\": %u, \"p99_us\": %u}\n",
           (unsigned long long)load->calls, (double)(now - begin) / 1e9,
           load->samples_us[load->samples / 2], load->samples_us[load->samples * 99 / 100]);
}

int main(int argc, char **argv)
{
    struct load load = {.coder = ECHO};
    struct rlimit limit;
    struct peer *peers;
    SSL_CTX *context;
    size_t count;
    uint16_t port;
    int idle;
    if (argc != 11) {
        fail("ten words: see the source");
    }
    idle = strcmp(argv[1], "idle") == 0;
    port = (uint16_t)strtoul(argv[2], NULL, 10);
    count = strtoul(argv[3], NULL, 10);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    context = strcmp(argv[6], "-") != 0 ? tls_context(argv[6], argv[7]) : NULL;
    peers = calloc(count, sizeof(*peers));
    load.samples_us = calloc(MAX_SAMPLES, sizeof(uint32_t));
    if (count == 0 || peers == NULL || load.samples_us == NULL) {
        fail("no memory");
    }
    for (size_t i = 0; i < count; i++) {
        connect_peer(&peers[i], port, argv[5], context);
    }
    if (idle) {
        char byte;
        puts("ready");
        fflush(stdout);
        while (read(STDIN_FILENO, &byte, 1) > 0) {
        }
        return 0;
    }
    load.coder = strcmp(argv[10], "gob") == 0 ? GOB : strcmp(argv[10], "json") == 0 ? JSON : ECHO;
    load.method_length =
        (size_t)snprintf(load.method, sizeof(load.method), "%.250s\n", argv[8]);
    read_request(&load, argv[9]);
    for (size_t i = 0; i < count; i++) {
        peers[i].buffer = malloc(ROOM);
        if (peers[i].buffer == NULL) {
            fail("no memory");
        }
    }
    run(&load, peers, count, strtod(argv[4], NULL));
    for (size_t i = 0; load.coder != ECHO && i < load.expected_length; i++) {
        printf("%02x", load.expected[i]);
    }
    putchar('\n');
    return 0;
}
