/* A network interface: up, its carrier, packets below IP, address and routes. Functions return 0
 * (or what they say) or a negative errno. Addresses are four bytes in network order. */
#ifndef INIT_LINK_H
#define INIT_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dhcp_packet.h"

struct link {
    char name[16];
    int index;
    int control;            /* an INET socket for ioctls; -1 before the first address */
    uint8_t mac[6];
};

/* Finds interface `name`, sets it up, and returns a non-blocking socket for IPv4 packets below IP.
 * -ENODEV if there is no such interface. */
int link_open(struct link *link, const char *name);

/* Waits until the carrier is there, at most `wait_ms`; 0, -ETIME, or another error. `socket` is any
 * of the interface's. */
int link_wait_carrier(const struct link *link, int socket, int64_t wait_ms);

/* Another socket as link_open returns it. */
int link_packet_socket(const struct link *link);
/* Sends one IPv4 packet by Ethernet broadcast through it. */
int link_broadcast(const struct link *link, int socket, const uint8_t *packet, size_t size);

/* A non-blocking UDP socket on port 68 of this interface, allowed to broadcast. */
int link_dhcp_socket(const struct link *link);
/* Sends to port 67 of `server` through it. */
int link_dhcp_send(int socket, const uint8_t server[4], const uint8_t *message, size_t size);

/* Takes over address, mask, MTU and routes of a lease. The default route and the route to the
 * metadata server are only set if `first`. */
int link_apply(struct link *link, const struct dhcp_reply *lease, bool first);
/* Gives the address up, and with it its routes. */
int link_drop(const struct link *link);

/* The loopback interface with 127.0.0.1/8. */
int link_loopback(void);

#endif
