/* Reads a container's description from standard input and prints what the init makes of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "container.h"

int main(void)
{
    static char whole[CONTAINER_SIZE_MAX + 2];
    static struct container container;
    size_t size = fread(whole, 1, sizeof whole, stdin);
    char *data = malloc(size > 0 ? size : 1);       /* its end is where the sanitizer sees it */
    char path[64];
    int result;

    if (data == NULL)
        return 1;
    memcpy(data, whole, size);
    result = container_parse(data, size, &container);
    if (result < 0) {
        printf("error %d\n", -result);
        free(data);
        return 0;
    }
    printf("end %d signal %d user %u group %u directory %s\n", (int)container.at_end,
           container.stop_signal, container.user, container.group, container.directory);
    for (unsigned i = 0; i < container.groups_count; i++)
        printf("more %u\n", container.groups[i]);
    for (unsigned i = 0; container.arguments[i] != NULL; i++)
        printf("argument %s\n", container.arguments[i]);
    for (unsigned i = 0; container.environment[i] != NULL; i++)
        printf("environment %s\n", container.environment[i]);
    for (unsigned i = 0; container_program(&container, i, path, sizeof path); i++)
        printf("path %s\n", path);
    free(data);
    return 0;
}
