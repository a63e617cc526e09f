/* The init's HTTP response reader, driven from a test: the first argument is the greatest body, each
 * further one a run of bytes in hexadecimal digits. Prints STATUS COMPLETE FINISH BODY, or an error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http_response.h"

int main(int count, char **arguments)
{
    static struct http_response response;
    char *body = malloc(1 << 20);
    size_t body_size = 0;

    http_start(&response, strtoull(arguments[1], NULL, 10));
    for (int i = 2; i < count; i++) {
        size_t size = strlen(arguments[i]) / 2;
        char *data = malloc(size == 0 ? 1 : size);
        long got;

        for (size_t at = 0; at < size; at++) {
            unsigned value = 0;

            sscanf(arguments[i] + 2 * at, "%2x", &value);
            data[at] = (char)value;
        }
        got = http_feed(&response, data, size);
        if (got < 0) {
            printf("error %ld\n", -got);
            free(data);
            free(body);
            return 0;
        }
        memcpy(body + body_size, data + size - (size_t)got, (size_t)got);
        body_size += (size_t)got;
        free(data);
    }
    printf("%d %d %d ", response.status, http_complete(&response), -http_finish(&response));
    fwrite(body, 1, body_size, stdout);
    free(body);
    return 0;
}
