#include "console.h"

#include "sys.h"
#include "text.h"

void console_say_name(const char *words, const char *name, long result)
{
    char buffer[256];
    struct text line = text_in(buffer, sizeof buffer - 1);

    text_add(&line, "smallstack: ");
    text_add(&line, words);
    if (name[0] != 0) {
        text_add(&line, " ");
        text_add(&line, name);
    }
    if (result != 0) {
        text_add(&line, " (error ");
        text_add_number(&line, -result);
        text_add(&line, ")");
    }
    buffer[line.length] = '\n';
    sys_write_all(1, buffer, line.length + 1);
}

void console_say(const char *words, long result)
{
    console_say_name(words, "", result);
}
