/* Bounded text building and the few string questions the init asks. No allocation: a `struct text`
 * writes into its caller's buffer, keeps a 0 behind the last character and drops what does not fit
 * (`dropped` counts it). */
#ifndef INIT_TEXT_H
#define INIT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
    char *data;
    size_t size;        /* of the buffer, at least 1 */
    size_t length;
    size_t dropped;
};

struct text text_in(char *buffer, size_t size);
void text_add(struct text *text, const char *string);
void text_add_bytes(struct text *text, const char *data, size_t size);
void text_add_number(struct text *text, int64_t number);
/* `address` in network byte order, as it stands in a packet. */
void text_add_ipv4(struct text *text, const uint8_t address[4]);

size_t text_length(const char *string);
bool text_equal(const char *left, const char *right);
/* True if `string` begins with `prefix`. */
bool text_begins(const char *string, const char *prefix);
/* Compares `length` bytes of ASCII with a lower-case word, ignoring case. */
bool text_is_word(const char *data, size_t length, const char *lower_word);

#endif
