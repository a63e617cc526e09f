/* A container VM's side of the init: its description read, its program begun. */
#ifndef INIT_CONTAINER_RUN_H
#define INIT_CONTAINER_RUN_H

#include "container.h"

/* What a container VM is to run; NULL (said on the console) when its description is of no use. */
const struct container *container_load(void);

/* The name servers in place of the image's own, as far as it has any. */
void container_use_names(void);

/* In the child: becomes the program, as its user. Returns only if it cannot: what was said. */
int container_execute(const struct container *container);

#endif
