/* The guest's interfaces eth0, eth1, …, each with a DHCP client of its own. eth0 is the first: its
 * lease gives the default route, the name servers and the host name. */
#ifndef INIT_NETWORK_H
#define INIT_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#include "dhcp_lease.h"
#include "link.h"

enum { NETWORK_LINKS_MAX = 6 };

struct network_link {
    struct link link;
    struct dhcp_client client;
    int socket;                 /* packet or UDP, as the client's state needs; -1: none */
    bool socket_is_udp;
    bool first;
};

struct network {
    struct network_link links[NETWORK_LINKS_MAX];
    unsigned count;
    bool ready;                 /* the first link has had a lease */
};

/* Brings eth0 up and sends its DISCOVER at once. Nothing need be mounted. */
void network_start(struct network *network);
/* The other interfaces, once the first one's exchange is under way. */
void network_start_others(struct network *network);

/* Waits until the first link's server has answered (the REQUEST is out then, or the lease is there),
 * at most `wait_ms`. */
bool network_await(struct network *network, int64_t wait_ms);
/* Takes what has come in, without waiting. Both return true as network_input does. */
bool network_poll(struct network *network);

/* Takes what came in on a link's socket, and does what is due. Returns true if the first link has
 * just got its first lease. */
bool network_input(struct network *network, unsigned index);
bool network_due(struct network *network);
/* When network_due has to be called, on sys_uptime_ms's clock; -1: never. */
int64_t network_deadline(const struct network *network);

/* Writes what the first lease says to /run/resolv.conf and sets the host name. */
void network_write_names(const struct network *network);

#endif
