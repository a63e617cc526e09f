/* The init's DHCP code, driven from a test. Reads one command a line, answers each with one line
 * of words; bytes travel as hexadecimal digits.
 *
 *   parse MAC XID HEX       a BOOTP message        packet MAC XID HEX    with IPv4 and UDP headers
 *   start MAC RANDOM NOW    timeout NOW            reply NOW HEX         the state machine
 *   query                   the message it wants sent, behind IPv4 and UDP headers
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dhcp_lease.h"
#include "dhcp_packet.h"

static uint8_t *from_hex(const char *text, size_t *size)
{
    size_t length = strlen(text) / 2;
    uint8_t *bytes = malloc(length + 1);    /* exact but for one: ASan sees a read behind the end */

    bytes = realloc(bytes, length == 0 ? 1 : length);
    for (size_t i = 0; i < length; i++) {
        unsigned value = 0;

        sscanf(text + 2 * i, "%2x", &value);
        bytes[i] = (uint8_t)value;
    }
    *size = length;
    return bytes;
}

static void print_ip(const char *name, const uint8_t ip[4])
{
    printf(" %s=%u.%u.%u.%u", name, ip[0], ip[1], ip[2], ip[3]);
}

static void print_reply(int result, const struct dhcp_reply *reply)
{
    if (result < 0) {
        printf("error %d\n", -result);
        return;
    }
    printf("ok type=%u rapid=%d", reply->type, reply->rapid_commit);
    print_ip("address", reply->address);
    print_ip("server", reply->server);
    print_ip("mask", reply->mask);
    print_ip("router", reply->router);
    for (unsigned i = 0; i < reply->dns_count; i++)
        print_ip("dns", reply->dns[i]);
    for (unsigned i = 0; i < reply->routes_count; i++) {
        print_ip("route", reply->routes[i].destination);
        printf("/%u", reply->routes[i].prefix);
        print_ip("via", reply->routes[i].router);
    }
    printf(" mtu=%u lease=%u renew=%u rebind=%u host=%s domain=%s\n", reply->mtu,
           reply->lease_seconds, reply->renew_seconds, reply->rebind_seconds, reply->host_name,
           reply->domain);
}

static void print_client(int actions, const struct dhcp_client *client)
{
    static const char *const names[] = {"idle",  "selecting", "requesting",
                                        "bound", "renewing",  "rebinding"};

    printf("%s%s%s%s deadline=%lld xid=%08x unicast=%d\n", names[client->state],
           actions & DHCP_DO_SEND ? " send" : "", actions & DHCP_DO_APPLY ? " apply" : "",
           actions & DHCP_DO_DROP ? " drop" : "", (long long)client->deadline_ms, client->query.xid,
           client->unicast);
}

int main(void)
{
    static char line[1 << 17], word[16], mac_text[32], hex[1 << 16];
    struct dhcp_client client = {0};
    struct dhcp_reply reply;
    unsigned number;
    long long now;
    size_t size, mac_size;

    while (fgets(line, sizeof line, stdin) != NULL) {
        uint8_t *bytes = NULL, *mac = NULL;

        hex[0] = 0;
        sscanf(line, "%15s", word);
        if (strcmp(word, "parse") == 0 || strcmp(word, "packet") == 0) {
            sscanf(line, "%*s %31s %x %65535s", mac_text, &number, hex);
            mac = from_hex(mac_text, &mac_size);
            bytes = from_hex(hex, &size);
            print_reply(strcmp(word, "parse") == 0
                            ? dhcp_parse_message(bytes, size, mac, number, &reply)
                            : dhcp_parse_packet(bytes, size, mac, number, &reply),
                        &reply);
        } else if (strcmp(word, "start") == 0) {
            sscanf(line, "%*s %31s %x %lld", mac_text, &number, &now);
            mac = from_hex(mac_text, &mac_size);
            print_client(dhcp_start(&client, mac, number, now), &client);
        } else if (strcmp(word, "timeout") == 0) {
            sscanf(line, "%*s %lld", &now);
            print_client(dhcp_timeout(&client, now), &client);
        } else if (strcmp(word, "reply") == 0) {
            int result;

            sscanf(line, "%*s %lld %65535s", &now, hex);
            bytes = from_hex(hex, &size);
            result = dhcp_parse_message(bytes, size, client.mac, client.query.xid, &reply);
            if (result < 0)
                printf("error %d\n", -result);
            else
                print_client(dhcp_reply(&client, &reply, now), &client);
        } else if (strcmp(word, "query") == 0) {
            uint8_t out[DHCP_PACKET_MAX];

            size = dhcp_build_packet(&client.query, out);
            for (size_t i = 0; i < size; i++)
                printf("%02x", out[i]);
            printf("\n");
        } else {
            return 2;
        }
        free(bytes);
        free(mac);
        fflush(stdout);
    }
    return 0;
}
