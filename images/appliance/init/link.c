#include "link.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/poll.h>
#include <asm/socket.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/netlink.h>
#include <linux/route.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#include "sys.h"

static const uint8_t METADATA_SERVER[4] = {169, 254, 169, 254};
static const uint8_t ANY[4] = {0, 0, 0, 0};

static void set_name(struct ifreq *request, const char *name)
{
    for (size_t i = 0; i < sizeof *request; i++)
        ((char *)request)[i] = 0;
    for (size_t i = 0; i + 1 < IFNAMSIZ && name[i] != 0; i++)
        request->ifr_name[i] = name[i];
}

static void set_address(struct sockaddr *address, const uint8_t ip[4])
{
    struct sockaddr_in in = {.sin_family = FAMILY_INET};

    for (int i = 0; i < 4; i++)
        ((uint8_t *)&in.sin_addr)[i] = ip[i];
    __builtin_memcpy(address, &in, sizeof in);
}

static int set_up(int socket, const char *name)
{
    struct ifreq request;

    set_name(&request, name);
    request.ifr_flags = IFF_UP | IFF_BROADCAST | IFF_MULTICAST;
    return sys_ioctl(socket, SIOCSIFFLAGS, &request);
}

/* Protocol 0: nothing is received before link_bind. */
static int new_packet_socket(void)
{
    return sys_socket(FAMILY_PACKET, SOCKET_DATAGRAM | O_CLOEXEC | O_NONBLOCK, 0);
}

static int bind_packet_socket(const struct link *link, int socket)
{
    struct sockaddr_ll address = {
        .sll_family = FAMILY_PACKET,
        .sll_protocol = __builtin_bswap16(ETH_P_IP),
        .sll_ifindex = link->index,
    };

    return sys_bind(socket, &address, sizeof address);
}

/* All that is asked goes through the packet socket: an INET socket is not needed before there is an
 * address, and this is on the way to the DHCP request. */
int link_open(struct link *link, const char *name)
{
    struct ifreq request;
    int result, socket = new_packet_socket();

    if (socket < 0)
        return socket;
    set_name(&request, name);
    __builtin_memcpy(link->name, request.ifr_name, sizeof link->name);
    link->control = -1;
    result = set_up(socket, name);
    if (result == 0)
        result = sys_ioctl(socket, SIOCGIFHWADDR, &request);
    if (result == 0) {
        for (int i = 0; i < 6; i++)
            link->mac[i] = (uint8_t)request.ifr_hwaddr.sa_data[i];
        result = sys_ioctl(socket, SIOCGIFINDEX, &request);
    }
    if (result == 0) {
        link->index = request.ifr_ifindex;
        result = bind_packet_socket(link, socket);
    }
    if (result < 0) {
        sys_close(socket);
        return result;
    }
    return socket;
}

/* Asked this way (and not by IFF_RUNNING) the kernel first brings its own view up to date: with the
 * answer 1 the transmit queue is attached as well, and what is sent now is not dropped. */
static int has_carrier(const struct link *link, int socket)
{
    struct ethtool_value value = {.cmd = ETHTOOL_GLINK};
    struct ifreq request;
    int result;

    set_name(&request, link->name);
    request.ifr_data = (void *)&value;
    result = sys_ioctl(socket, SIOCETHTOOL, &request);
    return result < 0 ? result : value.data != 0;
}

int link_wait_carrier(const struct link *link, int socket, int64_t wait_ms)
{
    struct sockaddr_nl address = {.nl_family = FAMILY_NETLINK, .nl_groups = RTMGRP_LINK};
    char event[4096];
    int64_t deadline;
    int result, notices;

    if (has_carrier(link, socket) == 1)
        return 0;
    /* First the subscription, then the question: nothing falls between them. */
    notices = sys_socket(FAMILY_NETLINK, SOCKET_RAW | O_CLOEXEC | O_NONBLOCK, NETLINK_ROUTE);
    if (notices < 0)
        return notices;
    result = sys_bind(notices, &address, sizeof address);
    deadline = sys_uptime_ms() + wait_ms;
    while (result == 0 && (result = has_carrier(link, socket)) == 0) {
        struct pollfd poll = {.fd = notices, .events = POLLIN};
        int64_t left = deadline - sys_uptime_ms();

        if (left <= 0)
            result = -ETIME;
        else
            result = sys_poll(&poll, 1, left);
        if (result < 0)
            break;
        while (sys_receive(notices, event, sizeof event) > 0)
            continue;
        result = 0;
    }
    sys_close(notices);
    return result < 0 ? result : 0;
}

int link_packet_socket(const struct link *link)
{
    int result, socket = new_packet_socket();

    if (socket < 0)
        return socket;
    result = bind_packet_socket(link, socket);
    if (result < 0) {
        sys_close(socket);
        return result;
    }
    return socket;
}

int link_broadcast(const struct link *link, int socket, const uint8_t *packet, size_t size)
{
    struct sockaddr_ll address = {
        .sll_family = FAMILY_PACKET,
        .sll_protocol = __builtin_bswap16(ETH_P_IP),
        .sll_ifindex = link->index,
        .sll_halen = 6,
        .sll_addr = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
    };
    long result = sys_send_to(socket, packet, size, &address, sizeof address);

    return result < 0 ? (int)result : 0;
}

int link_dhcp_socket(const struct link *link)
{
    struct sockaddr_in address = {.sin_family = FAMILY_INET, .sin_port = __builtin_bswap16(68)};
    int on = 1, result;
    int fd = sys_socket(FAMILY_INET, SOCKET_DATAGRAM | O_CLOEXEC | O_NONBLOCK, 0);

    if (fd < 0)
        return fd;
    result = sys_set_option(fd, SOL_SOCKET, SO_BINDTODEVICE, link->name, sizeof link->name);
    if (result == 0)
        result = sys_set_option(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
    if (result == 0)
        result = sys_set_option(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (result == 0)
        result = sys_bind(fd, &address, sizeof address);
    if (result < 0) {
        sys_close(fd);
        return result;
    }
    return fd;
}

int link_dhcp_send(int socket, const uint8_t server[4], const uint8_t *message, size_t size)
{
    struct sockaddr_in address = {.sin_family = FAMILY_INET, .sin_port = __builtin_bswap16(67)};
    long result;

    for (int i = 0; i < 4; i++)
        ((uint8_t *)&address.sin_addr)[i] = server[i];
    result = sys_send_to(socket, message, size, &address, sizeof address);
    return result < 0 ? (int)result : 0;
}

static int set_ip(const struct link *link, unsigned long request_code, const uint8_t ip[4])
{
    struct ifreq request;

    set_name(&request, link->name);
    set_address(&request.ifr_addr, ip);
    return sys_ioctl(link->control, request_code, &request);
}

static int add_route(const struct link *link, const uint8_t destination[4], unsigned prefix,
                     const uint8_t router[4])
{
    char name[16];
    struct rtentry route = {.rt_flags = RTF_UP};
    uint8_t mask[4];
    int result;

    for (unsigned i = 0; i < 4; i++) {
        unsigned bits = prefix > i * 8 ? prefix - i * 8 : 0;
        mask[i] = bits >= 8 ? 0xff : (uint8_t)(0xff00 >> bits);
    }
    set_address(&route.rt_dst, destination);
    set_address(&route.rt_genmask, mask);
    if (router[0] != 0) {
        set_address(&route.rt_gateway, router);
        route.rt_flags |= RTF_GATEWAY;
    }
    if (prefix == 32)
        route.rt_flags |= RTF_HOST;
    __builtin_memcpy(name, link->name, sizeof name);
    route.rt_dev = name;
    result = sys_ioctl(link->control, SIOCADDRT, &route);
    return result == -EEXIST ? 0 : result;
}

/* The mask of the address's class, for a server that gives none. */
static void default_mask(const uint8_t address[4], uint8_t mask[4])
{
    mask[0] = 0xff;
    mask[1] = address[0] >= 128 ? 0xff : 0;
    mask[2] = address[0] >= 192 ? 0xff : 0;
    mask[3] = 0;
}

int link_apply(struct link *link, const struct dhcp_reply *lease, bool first)
{
    uint8_t mask[4];
    int result, failed = 0;

    if (link->control < 0)
        link->control = sys_socket(FAMILY_INET, SOCKET_DATAGRAM | O_CLOEXEC, 0);
    if (link->control < 0)
        return link->control;
    __builtin_memcpy(mask, lease->mask, sizeof mask);
    if (mask[0] == 0)
        default_mask(lease->address, mask);
    result = set_ip(link, SIOCSIFADDR, lease->address);
    if (result == 0)
        result = set_ip(link, SIOCSIFNETMASK, mask);
    if (result < 0)
        return result;
    if (lease->mtu != 0) {
        struct ifreq request;

        set_name(&request, link->name);
        request.ifr_mtu = lease->mtu;
        failed = sys_ioctl(link->control, SIOCSIFMTU, &request);
    }
    /* RFC 3442: with classless routes the router option does not count. */
    for (unsigned i = 0; i < lease->routes_count; i++) {
        const struct dhcp_route *route = &lease->routes[i];

        if (route->prefix == 0 && !first)
            continue;
        result = add_route(link, route->destination, route->prefix, route->router);
        failed = failed != 0 ? failed : result;
    }
    if (!first)
        return failed;
    if (lease->routes_count == 0 && lease->router[0] != 0) {
        if (mask[3] == 0xff)        /* a /32: the router is not in the subnet */
            add_route(link, lease->router, 32, ANY);
        result = add_route(link, ANY, 0, lease->router);
        failed = failed != 0 ? failed : result;
    }
    result = add_route(link, METADATA_SERVER, 32, ANY);
    return failed != 0 ? failed : result;
}

int link_drop(const struct link *link)
{
    return set_ip(link, SIOCSIFADDR, ANY);
}

int link_loopback(void)
{
    static const uint8_t address[4] = {127, 0, 0, 1};
    struct link link = {.name = "lo"};
    int result;

    link.control = sys_socket(FAMILY_INET, SOCKET_DATAGRAM | O_CLOEXEC, 0);
    if (link.control < 0)
        return link.control;
    result = set_ip(&link, SIOCSIFADDR, address);
    if (result == 0)
        result = set_up(link.control, link.name);
    sys_close(link.control);
    return result;
}
