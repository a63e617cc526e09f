/* DHCP messages of a client (RFC 2131, 2132; option 80 of RFC 4039, option 121 of RFC 3442), with
 * the IPv4 and UDP headers round them, as they stand behind an Ethernet header. Bytes in, bytes
 * out: no I/O, no clock, no allocation. Addresses are four bytes in network order. */
#ifndef INIT_DHCP_PACKET_H
#define INIT_DHCP_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DHCP_DISCOVER = 1,
    DHCP_OFFER = 2,
    DHCP_REQUEST = 3,
    DHCP_DECLINE = 4,
    DHCP_ACK = 5,
    DHCP_NAK = 6,
    DHCP_RELEASE = 7,
};

enum {
    DHCP_HEADERS_SIZE = 28,         /* IPv4 without options, UDP */
    DHCP_MESSAGE_MIN = 300,         /* BOOTP's size: old relays drop less */
    DHCP_PACKET_MAX = 28 + 576,     /* what the builder may need */
    DHCP_RECEIVE_MAX = 1500,        /* what the client says it can take, headers included */
    DHCP_DNS_MAX = 3,
    DHCP_ROUTES_MAX = 16,
    DHCP_NAME_MAX = 64,             /* host name with its 0, as sethostname(2) takes it */
    DHCP_DOMAIN_MAX = 256,
};

struct dhcp_query {
    uint8_t type;                   /* DHCP_DISCOVER or DHCP_REQUEST */
    uint32_t xid;
    uint16_t seconds;               /* since the client began */
    uint8_t mac[6];
    uint8_t client[4];              /* ciaddr: only when renewing or rebinding */
    uint8_t requested[4];           /* option 50; all zero: left out */
    uint8_t server[4];              /* option 54; all zero: left out */
    bool rapid_commit;              /* option 80, in a DISCOVER */
};

struct dhcp_route {
    uint8_t destination[4];
    uint8_t prefix;                 /* bits */
    uint8_t router[4];              /* all zero: on the link */
};

struct dhcp_reply {
    uint8_t type;                   /* DHCP_OFFER, DHCP_ACK or DHCP_NAK */
    bool rapid_commit;
    uint8_t address[4];             /* yiaddr */
    uint8_t server[4];              /* option 54, else all zero */
    uint8_t mask[4];
    uint8_t router[4];
    uint8_t dns[DHCP_DNS_MAX][4];
    uint8_t dns_count;
    struct dhcp_route routes[DHCP_ROUTES_MAX];
    uint8_t routes_count;
    uint16_t mtu;                   /* bytes; 0: not given */
    uint32_t lease_seconds;         /* 0: not given; 0xffffffff: for ever */
    uint32_t renew_seconds;         /* T1 */
    uint32_t rebind_seconds;        /* T2 */
    char host_name[DHCP_NAME_MAX];  /* letters, digits, '-', '.', else empty */
    char domain[DHCP_DOMAIN_MAX];   /* the same */
};

/* Writes the BOOTP message (no headers) to `out`, at least DHCP_PACKET_MAX bytes; returns its size. */
size_t dhcp_build_message(const struct dhcp_query *query, uint8_t *out);

/* The same behind IPv4 and UDP headers from 0.0.0.0:68 to 255.255.255.255:67. */
size_t dhcp_build_packet(const struct dhcp_query *query, uint8_t *out);

/* Reads a BOOTP message for the client `mac` in the exchange `xid`. Returns 0, or -EBADMSG for
 * whatever is not a well-formed answer to it. Malformed optional values are left out. */
int dhcp_parse_message(const uint8_t *data, size_t size, const uint8_t mac[6], uint32_t xid,
                       struct dhcp_reply *reply);

/* The same for an IPv4 packet from a packet socket. The UDP checksum is not looked at: a packet
 * from the same host may arrive with its checksum left to the (virtual) hardware. */
int dhcp_parse_packet(const uint8_t *data, size_t size, const uint8_t mac[6], uint32_t xid,
                      struct dhcp_reply *reply);

#endif
