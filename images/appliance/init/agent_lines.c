#include "agent.h"
#include "text.h"

enum agent_word agent_take(struct agent_lines *lines, char byte)
{
    size_t length = lines->length;

    if (byte != '\n') {
        if (length >= sizeof lines->line)
            lines->dropping = true;
        else
            lines->line[lines->length++] = byte;
        return AGENT_NOTHING;
    }
    lines->length = 0;
    if (lines->dropping) {
        lines->dropping = false;
        return AGENT_NOTHING;
    }
    if (length > 0 && lines->line[length - 1] == '\r')
        length--;
    if (text_is_word(lines->line, length, "ping"))
        return AGENT_PING;
    if (text_is_word(lines->line, length, "stop"))
        return AGENT_STOP;
    if (text_is_word(lines->line, length, "reboot"))
        return AGENT_REBOOT;
    return AGENT_NOTHING;
}
