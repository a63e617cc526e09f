/* Where the kernel enters (entry.c), and what follows. */
#ifndef INIT_ENTRY_H
#define INIT_ENTRY_H

_Noreturn void init_main(void);

#endif
