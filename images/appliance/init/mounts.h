/* The file systems a program expects, mounted one by one, and taken down at the end. */
#ifndef INIT_MOUNTS_H
#define INIT_MOUNTS_H

/* Mounts everything; says on the console what failed and goes on. */
void mounts_make(void);
/* Takes down what can be, root read-only, and syncs. Returns 0 if root is read-only now. */
int mounts_end(void);

#endif
