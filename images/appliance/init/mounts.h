/* The file systems a program expects, mounted one by one, and taken down at the end. */
#ifndef INIT_MOUNTS_H
#define INIT_MOUNTS_H

#include <stdbool.h>

/* Step 0 … mounts_steps() - 1 make one mount each (the last ones: links, root writable), so that the
 * caller can look after the network in between. A container keeps its own /run and /tmp. What fails
 * is said on the console. */
unsigned mounts_steps(void);
void mounts_make(unsigned step, bool container);
/* Takes down what can be, root read-only, and syncs. Returns 0 if root is read-only now. */
int mounts_end(void);

#endif
