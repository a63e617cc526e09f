#include "container.h"

#include <asm/errno.h>

#include "text.h"

#define FIRST "smallstack-container=1"
#define PATH "PATH="

/* Decimal digits and nothing else, at most `most`. */
static bool parse_number(const char *string, uint32_t most, uint32_t *number)
{
    uint64_t value = 0;

    if (*string == 0)
        return false;
    for (; *string != 0; string++) {
        if (*string < '0' || *string > '9')
            return false;
        value = value * 10 + (uint64_t)(*string - '0');
        if (value > most)
            return false;
    }
    *number = (uint32_t)value;
    return true;
}

static bool parse_end(const char *value, enum container_end *end)
{
    if (text_equal(value, "stop"))
        *end = CONTAINER_STOP;
    else if (text_equal(value, "restart"))
        *end = CONTAINER_RESTART;
    else if (text_equal(value, "stay"))
        *end = CONTAINER_STAY;
    else
        return false;
    return true;
}

static const char *value_of(const char *string, const char *key)
{
    return text_begins(string, key) ? string + text_length(key) : NULL;
}

static bool take(struct container *container, const char *string, unsigned *arguments,
                 unsigned *variables)
{
    const char *value;
    uint32_t number;

    if ((value = value_of(string, "argument=")) != NULL) {
        if (*arguments == CONTAINER_ARGUMENTS_MAX)
            return false;
        container->arguments[(*arguments)++] = value;
    } else if ((value = value_of(string, "environment=")) != NULL) {
        if (*variables == CONTAINER_ENVIRONMENT_MAX)
            return false;
        container->environment[(*variables)++] = value;
    } else if ((value = value_of(string, "user=")) != NULL) {
        return parse_number(value, UINT32_MAX - 1, &container->user);
    } else if ((value = value_of(string, "group=")) != NULL) {
        return parse_number(value, UINT32_MAX - 1, &container->group);
    } else if ((value = value_of(string, "more-group=")) != NULL) {
        if (container->groups_count == CONTAINER_GROUPS_MAX)
            return false;
        return parse_number(value, UINT32_MAX - 1, &container->groups[container->groups_count++]);
    } else if ((value = value_of(string, "directory=")) != NULL) {
        container->directory = value;
        return value[0] == '/';
    } else if ((value = value_of(string, "signal=")) != NULL) {
        if (!parse_number(value, 64, &number) || number == 0)
            return false;
        container->stop_signal = (int)number;
    } else if ((value = value_of(string, "at-end=")) != NULL) {
        return parse_end(value, &container->at_end);
    }
    return true;        /* other keys are for others */
}

int container_parse(const char *data, size_t size, struct container *container)
{
    unsigned arguments = 0, variables = 0;
    bool first = true;

    if (size == 0 || size > CONTAINER_SIZE_MAX || data[size - 1] != 0)
        return -EBADMSG;
    container->at_end = CONTAINER_STOP;
    container->stop_signal = 15;
    container->user = container->group = 0;
    container->groups_count = 0;
    container->directory = "/";
    for (const char *string = data; string < data + size; string += text_length(string) + 1) {
        if (first ? !text_equal(string, FIRST) : !take(container, string, &arguments, &variables))
            return -EBADMSG;
        first = false;
    }
    container->arguments[arguments] = NULL;
    container->environment[variables] = NULL;
    return arguments > 0 && container->arguments[0][0] != 0 ? 0 : -EBADMSG;
}

static const char *find_path(const struct container *container)
{
    for (unsigned i = 0; container->environment[i] != NULL; i++)
        if (text_begins(container->environment[i], PATH))
            return container->environment[i] + sizeof PATH - 1;
    return "";
}

bool container_program(const struct container *container, unsigned index, char *buffer,
                       size_t size)
{
    const char *name = container->arguments[0], *path;
    struct text text = text_in(buffer, size);
    size_t length;

    for (const char *at = name; *at != 0; at++)
        if (*at == '/') {
            text_add(&text, name);
            return index == 0 && text.dropped == 0;
        }
    for (path = find_path(container);; path += length + 1) {
        length = 0;
        while (path[length] != 0 && path[length] != ':')
            length++;
        if (index-- == 0)
            break;
        if (path[length] == 0)
            return false;
    }
    if (length > 0) {
        text_add_bytes(&text, path, length);
        text_add(&text, "/");
    }
    text_add(&text, name);
    if (text.dropped > 0)
        buffer[0] = 0;          /* a path that cannot be: the next one may */
    return true;
}
