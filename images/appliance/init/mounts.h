/* The file systems a program expects, mounted one by one, and taken down at the end. */
#ifndef INIT_MOUNTS_H
#define INIT_MOUNTS_H

/* Step 0 … mounts_steps() - 1 make one mount each (the last ones: links, root writable), so that the
 * caller can look after the network in between. What fails is said on the console. */
unsigned mounts_steps(void);
void mounts_make(unsigned step);
/* Takes down what can be, root read-only, and syncs. Returns 0 if root is read-only now. */
int mounts_end(void);

#endif
