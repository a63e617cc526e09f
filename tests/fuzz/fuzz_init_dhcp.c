/* sources: images/appliance/init/dhcp_packet.c images/appliance/init/dhcp_lease.c images/appliance/init/http_response.c images/appliance/init/agent_lines.c images/appliance/init/container.c images/appliance/init/text.c */
/* What the appliance's init reads from outside. The first byte says what the rest is: DHCP messages
 * to a client in whatever state the earlier ones put it, an IPv4 packet, an HTTP response in pieces,
 * the agent's lines, or (255) a container's description. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../images/appliance/init/agent.h"
#include "../../images/appliance/init/container.h"
#include "../../images/appliance/init/dhcp_lease.h"
#include "../../images/appliance/init/dhcp_packet.h"
#include "../../images/appliance/init/http_response.h"

enum { HEADER = 240 };

static const uint8_t MAC[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

static void check_reply(const struct dhcp_reply *reply)
{
    if (strnlen(reply->host_name, DHCP_NAME_MAX) == DHCP_NAME_MAX ||
        strnlen(reply->domain, DHCP_DOMAIN_MAX) == DHCP_DOMAIN_MAX)
        abort();
    if (reply->dns_count > DHCP_DNS_MAX || reply->routes_count > DHCP_ROUTES_MAX)
        abort();
    for (unsigned i = 0; i < reply->routes_count; i++)
        if (reply->routes[i].prefix > 32)
            abort();
}

/* Each record: two bytes of length, one that says how much later, options behind a right header. */
static void run_client(const uint8_t *data, size_t size)
{
    struct dhcp_client client;
    int64_t now = 1000;

    dhcp_start(&client, MAC, 0x12345678, now);
    while (size >= 3) {
        size_t length = (size_t)data[0] | (size_t)(data[1] & 3) << 8;
        uint8_t message[HEADER + 1024] = {2, 1, 6};
        struct dhcp_reply reply;
        uint8_t out[DHCP_PACKET_MAX];

        now += (int64_t)1 << (data[2] & 31);
        data += 3;
        size -= 3;
        if (length > size)
            length = size;
        for (int i = 0; i < 4; i++)
            message[4 + i] = (uint8_t)(client.query.xid >> (24 - 8 * i));
        memcpy(message + 28, MAC, 6);
        memcpy(message + 16, "\xc6\x33\x64\x07", 4);
        memcpy(message + 236, "\x63\x82\x53\x63", 4);
        memcpy(message + HEADER, data, length);
        data += length;
        size -= length;
        if (client.deadline_ms >= 0 && client.deadline_ms <= now)
            dhcp_timeout(&client, now);
        if (dhcp_parse_message(message, HEADER + length, MAC, client.query.xid, &reply) == 0) {
            check_reply(&reply);
            dhcp_reply(&client, &reply, now);
        }
        if (client.deadline_ms >= 0 && client.deadline_ms < now && client.state == DHCP_SELECTING)
            abort();
        if (dhcp_build_packet(&client.query, out) > sizeof out)
            abort();
    }
}

/* The first byte is the size of the pieces. */
static void run_http(const uint8_t *data, size_t size)
{
    struct http_response response;
    size_t piece, body = 0;

    if (size == 0)
        return;
    piece = (size_t)data[0] + 1;
    data++;
    size--;
    http_start(&response, 4096);
    while (size > 0) {
        size_t now = piece < size ? piece : size;
        char *copy = malloc(now);
        long got;

        memcpy(copy, data, now);
        got = http_feed(&response, copy, now);
        free(copy);
        if (got < 0)
            return;
        body += (size_t)got;
        if ((size_t)got > now || body > 4096)
            abort();
        data += now;
        size -= now;
    }
    http_finish(&response);
}

static void run_container(const uint8_t *data, size_t size)
{
    static struct container container;
    char *copy = malloc(size > 0 ? size : 1);
    char path[64];

    if (copy == NULL)
        abort();
    memcpy(copy, data, size);
    if (container_parse(copy, size, &container) == 0) {
        for (unsigned i = 0; container_program(&container, i, path, sizeof path); i++)
            if (strnlen(path, sizeof path) == sizeof path)
                abort();
        for (unsigned i = 0; container.environment[i] != NULL; i++)
            if (strlen(container.environment[i]) > size)
                abort();
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dhcp_reply reply;
    struct agent_lines lines = {.length = 0};

    if (size == 0)
        return 0;
    if (data[0] == 255) {
        run_container(data + 1, size - 1);
        return 0;
    }
    switch (data[0] % 5) {
    case 0:
        if (dhcp_parse_packet(data + 1, size - 1, MAC, 0x12345678, &reply) == 0)
            check_reply(&reply);
        break;
    case 1:
        if (dhcp_parse_message(data + 1, size - 1, MAC, 0x12345678, &reply) == 0)
            check_reply(&reply);
        break;
    case 2:
        run_client(data + 1, size - 1);
        break;
    case 3:
        run_http(data + 1, size - 1);
        break;
    default:
        for (size_t i = 1; i < size; i++)
            agent_take(&lines, (char)data[i]);
        break;
    }
    return 0;
}
