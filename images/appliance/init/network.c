#include "network.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/poll.h>

#include "console.h"
#include "sys.h"
#include "text.h"

enum { CARRIER_WAIT_MS = 2000 };

static const uint8_t BROADCAST[4] = {255, 255, 255, 255};

static void close_socket(struct network_link *link)
{
    if (link->socket >= 0)
        sys_close(link->socket);
    link->socket = -1;
}

static int need_socket(struct network_link *link, bool udp)
{
    if (link->socket >= 0 && link->socket_is_udp == udp)
        return 0;
    close_socket(link);
    link->socket = udp ? link_dhcp_socket(&link->link) : link_packet_socket(&link->link);
    link->socket_is_udp = udp;
    return link->socket < 0 ? link->socket : 0;
}

static void send_query(struct network_link *link)
{
    const struct dhcp_client *client = &link->client;
    bool udp = client->state == DHCP_RENEWING || client->state == DHCP_REBINDING;
    uint8_t packet[DHCP_PACKET_MAX];
    int result = need_socket(link, udp);

    if (result == 0 && udp)
        result = link_dhcp_send(link->socket, client->unicast ? client->lease.server : BROADCAST,
                                packet, dhcp_build_message(&client->query, packet));
    else if (result == 0)
        result = link_broadcast(&link->link, link->socket, packet,
                                dhcp_build_packet(&client->query, packet));
    if (result < 0)
        console_say_name("cannot send a DHCP request on", link->link.name, result);
}

static bool act(struct network *network, struct network_link *link, int actions)
{
    bool became_ready = false;

    if (actions & DHCP_DO_DROP)
        link_drop(&link->link);
    if (actions & DHCP_DO_APPLY) {
        int result = link_apply(&link->link, &link->client.lease, link->first);

        if (result < 0)
            console_say_name("cannot take over the lease on", link->link.name, result);
        close_socket(link);
        became_ready = link->first && !network->ready;
        if (became_ready)
            network->ready = true;
    }
    if (actions & DHCP_DO_SEND)
        send_query(link);
    return became_ready;
}

static void start_link(struct network *network, const char *name)
{
    struct network_link *link = &network->links[network->count];
    int result;

    link->socket = link_open(&link->link, name);
    if (link->socket < 0) {
        if (link->socket != -ENODEV || network->count == 0)
            console_say_name("cannot set up", name, link->socket);
        return;
    }
    link->socket_is_udp = false;
    link->first = network->count == 0;
    network->count++;
    result = link_wait_carrier(&link->link, link->socket, CARRIER_WAIT_MS);
    if (result < 0)
        console_say_name("no carrier on", name, result);
    act(network, link,
        dhcp_start(&link->client, link->link.mac, sys_weak_random(), sys_uptime_ms()));
}

void network_start(struct network *network)
{
    network->count = 0;
    network->ready = false;
    start_link(network, "eth0");
}

void network_start_others(struct network *network)
{
    char name[] = "eth0";

    while (network->count > 0 && network->count < NETWORK_LINKS_MAX) {
        unsigned before = network->count;

        name[3] = (char)('0' + before);
        start_link(network, name);
        if (network->count == before)
            break;
    }
}

bool network_input(struct network *network, unsigned index)
{
    struct network_link *link = &network->links[index];
    struct dhcp_client *client = &link->client;
    bool became_ready = false;
    uint8_t packet[2048];
    long got;

    /* Acting may close the socket, or open another. */
    while (link->socket >= 0 && (got = sys_receive(link->socket, packet, sizeof packet)) > 0) {
        struct dhcp_reply reply;
        int result = link->socket_is_udp
                         ? dhcp_parse_message(packet, (size_t)got, client->mac, client->query.xid,
                                              &reply)
                         : dhcp_parse_packet(packet, (size_t)got, client->mac, client->query.xid,
                                             &reply);

        if (result == 0)
            became_ready |= act(network, link, dhcp_reply(client, &reply, sys_uptime_ms()));
    }
    return became_ready;
}

bool network_poll(struct network *network)
{
    bool became_ready = false;

    for (unsigned i = 0; i < network->count; i++)
        became_ready |= network_input(network, i);
    return became_ready;
}

bool network_await(struct network *network, int64_t wait_ms)
{
    const struct network_link *link = &network->links[0];
    int64_t deadline = sys_uptime_ms() + wait_ms, left = wait_ms;

    while (network->count > 0 && link->client.state == DHCP_SELECTING && left > 0) {
        struct pollfd poll = {.fd = link->socket, .events = POLLIN};

        if (sys_poll(&poll, 1, left) > 0 && network_input(network, 0))
            return true;
        left = deadline - sys_uptime_ms();
    }
    return false;
}

bool network_due(struct network *network)
{
    int64_t now = sys_uptime_ms();
    bool became_ready = false;

    for (unsigned i = 0; i < network->count; i++) {
        struct dhcp_client *client = &network->links[i].client;

        if (client->deadline_ms >= 0 && client->deadline_ms <= now)
            became_ready |= act(network, &network->links[i], dhcp_timeout(client, now));
    }
    return became_ready;
}

int64_t network_deadline(const struct network *network)
{
    int64_t deadline = -1;

    for (unsigned i = 0; i < network->count; i++) {
        int64_t due = network->links[i].client.deadline_ms;

        if (due >= 0 && (deadline < 0 || due < deadline))
            deadline = due;
    }
    return deadline;
}

void network_write_names(const struct network *network)
{
    const struct dhcp_reply *lease = &network->links[0].client.lease;
    char buffer[512];
    struct text text = text_in(buffer, sizeof buffer);
    int fd;

    if (lease->host_name[0] != 0)
        sys_set_hostname(lease->host_name, text_length(lease->host_name));
    if (lease->domain[0] != 0) {
        text_add(&text, "search ");
        text_add(&text, lease->domain);
        text_add(&text, "\n");
    }
    for (unsigned i = 0; i < lease->dns_count; i++) {
        text_add(&text, "nameserver ");
        text_add_ipv4(&text, lease->dns[i]);
        text_add(&text, "\n");
    }
    fd = sys_open("/run/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    sys_write_all(fd, buffer, text.length);
    sys_close(fd);
}
