/* The init's text building and the agent's line reader: checks that need no input. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "agent.h"
#include "text.h"

static enum agent_word feed(struct agent_lines *lines, const char *text)
{
    enum agent_word word = AGENT_NOTHING;

    for (; *text != 0; text++) {
        enum agent_word now = agent_take(lines, *text);

        if (now != AGENT_NOTHING)
            word = now;
    }
    return word;
}

static void check_text(void)
{
    char buffer[8];
    struct text text = text_in(buffer, sizeof buffer);
    const uint8_t ip[4] = {198, 51, 100, 7};
    char long_buffer[64];
    struct text long_text = text_in(long_buffer, sizeof long_buffer);

    text_add(&text, "abcdefghij");
    assert(strcmp(buffer, "abcdefg") == 0 && text.dropped == 3);
    text_add_number(&long_text, INT64_MIN);
    text_add(&long_text, " ");
    text_add_ipv4(&long_text, ip);
    assert(strcmp(long_buffer, "-9223372036854775808 198.51.100.7") == 0);
    assert(text_begins("HTTP/1.0", "HTTP/1.") && !text_begins("HTT", "HTTP"));
    assert(text_is_word("Content-Length", 14, "content-length"));
    assert(!text_is_word("content", 7, "content-length"));
    assert(!text_is_word("content-length-x", 16, "content-length"));
}

static void check_lines(void)
{
    struct agent_lines lines = {.length = 0};

    assert(feed(&lines, "ping\n") == AGENT_PING);
    assert(feed(&lines, "st") == AGENT_NOTHING);
    assert(feed(&lines, "op\r\n") == AGENT_STOP);
    assert(feed(&lines, "stopx\n") == AGENT_NOTHING);
    assert(feed(&lines, "\n\nreboot\n") == AGENT_REBOOT);
    for (int i = 0; i < 1000; i++)
        assert(agent_take(&lines, 'x') == AGENT_NOTHING);
    assert(feed(&lines, "stop\n") == AGENT_NOTHING);    /* the end of a line that was too long */
    assert(feed(&lines, "stop\n") == AGENT_STOP);
}

int main(void)
{
    check_text();
    check_lines();
    puts("ok");
    return 0;
}
