#include "http_response.h"

#include <asm/errno.h>

#include "text.h"

void http_start(struct http_response *response, uint64_t body_max)
{
    response->status = 0;
    response->in_body = false;
    response->has_length = false;
    response->length = 0;
    response->body_seen = 0;
    response->body_max = body_max;
    response->header_bytes = 0;
    response->line_length = 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* "HTTP/1.x SSS …" */
static int take_status(struct http_response *response)
{
    const char *line = response->line;

    if (response->line_length < 12 || !text_begins(line, "HTTP/1.") || !is_digit(line[7]) ||
        line[8] != ' ' || !is_digit(line[9]) || !is_digit(line[10]) || !is_digit(line[11]))
        return -EBADMSG;
    if (response->line_length > 12 && line[12] != ' ')
        return -EBADMSG;
    response->status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
    return response->status >= 100 && response->status < 600 ? 0 : -EBADMSG;
}

static int take_length(struct http_response *response, const char *value, size_t size)
{
    uint64_t length = 0;

    if (size == 0)
        return -EBADMSG;
    for (size_t i = 0; i < size; i++) {
        if (!is_digit(value[i]))
            return -EBADMSG;
        if (length > (UINT64_MAX - 9) / 10)
            return -E2BIG;
        length = length * 10 + (uint64_t)(value[i] - '0');
    }
    if (response->has_length && response->length != length)
        return -EBADMSG;
    if (length > response->body_max)
        return -E2BIG;
    response->has_length = true;
    response->length = length;
    return 0;
}

static int take_header(struct http_response *response)
{
    const char *line = response->line;
    size_t name = 0, value, end = response->line_length;

    while (name < end && line[name] != ':')
        name++;
    if (name == 0 || name == end)
        return -EBADMSG;
    value = name + 1;
    while (value < end && (line[value] == ' ' || line[value] == '\t'))
        value++;
    while (end > value && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    if (text_is_word(line, name, "content-length"))
        return take_length(response, line + value, end - value);
    if (text_is_word(line, name, "transfer-encoding"))
        return text_is_word(line + value, end - value, "identity") ? 0 : -EBADMSG;
    return 0;
}

static int take_line(struct http_response *response)
{
    if (response->line_length > 0 && response->line[response->line_length - 1] == '\r')
        response->line_length--;
    response->line[response->line_length] = 0;
    if (response->status == 0)
        return take_status(response);
    if (response->line_length > 0)
        return take_header(response);
    if (response->status >= 200) {
        response->in_body = true;
    } else {            /* an interim response: the real one follows */
        response->status = 0;
        response->has_length = false;
    }
    return 0;
}

long http_feed(struct http_response *response, const char *data, size_t size)
{
    size_t at = 0;
    uint64_t rest;

    while (!response->in_body && at < size) {
        char c = data[at++];

        if (++response->header_bytes > HTTP_HEADERS_MAX)
            return -E2BIG;
        if (c == '\n') {
            int result = take_line(response);
            if (result < 0)
                return result;
            response->line_length = 0;
        } else if (response->line_length + 1 >= HTTP_LINE_MAX) {
            return -E2BIG;
        } else {
            response->line[response->line_length++] = c;
        }
    }
    rest = size - at;
    if (rest > response->body_max - response->body_seen)
        return -E2BIG;
    if (response->has_length && rest > response->length - response->body_seen)
        return -EBADMSG;
    response->body_seen += rest;
    return (long)rest;
}

bool http_complete(const struct http_response *response)
{
    return response->in_body && response->has_length && response->body_seen == response->length;
}

int http_finish(const struct http_response *response)
{
    if (!response->in_body)
        return -EBADMSG;
    if (response->has_length && response->body_seen != response->length)
        return -EBADMSG;
    return 0;
}
