#include "text.h"

struct text text_in(char *buffer, size_t size)
{
    struct text text = {.data = buffer, .size = size, .length = 0, .dropped = 0};

    buffer[0] = 0;
    return text;
}

void text_add_bytes(struct text *text, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (text->length + 1 >= text->size) {
            text->dropped += size - i;
            break;
        }
        text->data[text->length++] = data[i];
    }
    text->data[text->length] = 0;
}

void text_add(struct text *text, const char *string)
{
    text_add_bytes(text, string, text_length(string));
}

void text_add_number(struct text *text, int64_t number)
{
    char digits[20];
    size_t first = sizeof digits;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;

    do {
        digits[--first] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0)
        text_add(text, "-");
    text_add_bytes(text, digits + first, sizeof digits - first);
}

void text_add_ipv4(struct text *text, const uint8_t address[4])
{
    for (int i = 0; i < 4; i++) {
        if (i > 0)
            text_add(text, ".");
        text_add_number(text, address[i]);
    }
}

size_t text_length(const char *string)
{
    size_t length = 0;

    while (string[length] != 0)
        length++;
    return length;
}

bool text_equal(const char *left, const char *right)
{
    while (*left != 0 && *left == *right) {
        left++;
        right++;
    }
    return *left == *right;
}

bool text_begins(const char *string, const char *prefix)
{
    while (*prefix != 0)
        if (*string++ != *prefix++)
            return false;
    return true;
}

bool text_is_word(const char *data, size_t length, const char *lower_word)
{
    for (size_t i = 0; i < length; i++) {
        char c = data[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c - 'A' + 'a');
        if (lower_word[i] == 0 || c != lower_word[i])
            return false;
    }
    return lower_word[length] == 0;
}
