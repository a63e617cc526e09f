/* The init's own words on the console: one line each, written in one piece, "smallstack: …". */
#ifndef INIT_CONSOLE_H
#define INIT_CONSOLE_H

/* Prints "smallstack: WORDS" and, unless `result` is 0, " (error N)". */
void console_say(const char *words, long result);
/* The same with the name of what it is about: "smallstack: WORDS NAME". */
void console_say_name(const char *words, const char *name, long result);

#endif
