/* An HTTP/1.x response, read as it comes in (RFC 9112): the status line and the header lines are
 * taken up, the body's bytes are handed back. No I/O and no allocation; every length is bounded.
 * Made for the answer to an HTTP/1.0 request: a body by Content-Length or up to the connection's
 * end; a chunked one is refused. */
#ifndef INIT_HTTP_RESPONSE_H
#define INIT_HTTP_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HTTP_LINE_MAX = 1024,           /* bytes of one line that are kept; longer ones are an error */
    HTTP_HEADERS_MAX = 16 * 1024,   /* bytes before the body */
};

struct http_response {
    int status;                     /* 100…599, once the first line is in */
    bool in_body;
    bool has_length;
    uint64_t length;                /* of the body, if has_length */
    uint64_t body_seen;             /* bytes of the body so far */
    uint64_t body_max;
    size_t header_bytes;
    size_t line_length;
    char line[HTTP_LINE_MAX];
};

/* Begins; a body of more than `body_max` bytes is an error. */
void http_start(struct http_response *response, uint64_t body_max);

/* Takes `size` bytes. Returns how many of them, at the end of `data`, belong to the body, or a
 * negative errno: -EBADMSG for what is no such response, -E2BIG for too long. */
long http_feed(struct http_response *response, const char *data, size_t size);

/* True when the whole body is known to be in. */
bool http_complete(const struct http_response *response);

/* The connection has ended: 0 if the response is whole, else -EBADMSG. */
int http_finish(const struct http_response *response);

#endif
