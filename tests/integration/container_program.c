/* The only file of a container: says who and where it is, serves port 8080 until it is told "end N"
 * or gets the signal that its image names, and ends. */
#include <arpa/inet.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_quit(int number)
{
    (void)number;
    static const char words[] = "program: told to quit\n";
    write(1, words, sizeof words - 1);
    _exit(0);
}

int main(int argc, char **argv, char **environment)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    gid_t groups[8];
    char buffer[256];
    FILE *again = fopen("/dev/stdout", "w");

    signal(SIGQUIT, on_quit);
    printf("program: %d arguments, last %s\n", argc, argv[argc - 1]);
    printf("program: in %s as %d:%d", getcwd(buffer, sizeof buffer), getuid(), getgid());
    for (int i = 0, count = getgroups(8, groups); i < count; i++)
        printf(" +%d", groups[i]);
    printf("\n");
    for (; *environment != NULL; environment++)
        printf("program: %s\n", *environment);
    printf("program: /dev/stdout %s\n", again != NULL ? "opens" : "does not open");
    fflush(stdout);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0)
        return 9;
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        ssize_t got = read(connection, buffer, sizeof buffer - 1);

        buffer[got > 0 ? got : 0] = 0;
        if (strncmp(buffer, "end ", 4) == 0)
            return atoi(buffer + 4);
        close(connection);
    }
}
