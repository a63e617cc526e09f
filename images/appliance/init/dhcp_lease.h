/* The client's side of a lease as a state machine (RFC 2131, section 4.4): packets and the time go
 * in, packets to send and changes of the lease come out. It opens no socket and reads no clock.
 *
 *              start                 OFFER                    ACK
 *    (idle) ──────────► SELECTING ──────────► REQUESTING ──────────► BOUND ◄──────────┐
 *                         ▲  │ ACK with rapid commit                  ▲ │ T1          │ ACK
 *                         │  └────────────────────────────────────────┘ ▼             │
 *                         │            NAK, 4 tries                  RENEWING ────────┤
 *                         ├───────────────────────────────────────────  │ T2          │
 *                         │            NAK, lease over                  ▼             │
 *                         └────────────────────────────────────────  REBINDING ───────┘
 *
 * Times are milliseconds on a clock that never goes back. */
#ifndef INIT_DHCP_LEASE_H
#define INIT_DHCP_LEASE_H

#include "dhcp_packet.h"

enum dhcp_state { DHCP_IDLE, DHCP_SELECTING, DHCP_REQUESTING, DHCP_BOUND, DHCP_RENEWING,
                  DHCP_REBINDING };

enum {                          /* what a step asks of its caller, ORed */
    DHCP_DO_SEND = 1,           /* send `query`: by broadcast from 0.0.0.0, or as `unicast` says */
    DHCP_DO_APPLY = 2,          /* `lease` is ours from now on */
    DHCP_DO_DROP = 4,           /* the address is ours no longer */
};

struct dhcp_client {
    enum dhcp_state state;
    uint8_t mac[6];
    uint32_t tries;             /* of this state */
    int64_t began_ms;           /* this exchange */
    int64_t deadline_ms;        /* when dhcp_timeout is due; -1: never */
    int64_t renew_ms, rebind_ms, expire_ms;     /* of the lease; -1: never */
    struct dhcp_query query;    /* the last message */
    bool unicast;               /* `query` goes to lease.server from the leased address */
    struct dhcp_reply lease;    /* valid from BOUND to the next DHCP_DO_DROP */
};

/* Begins (again) with a DISCOVER. `random` becomes the exchange's number. */
int dhcp_start(struct dhcp_client *client, const uint8_t mac[6], uint32_t random, int64_t now_ms);

/* To be called when deadline_ms has come. */
int dhcp_timeout(struct dhcp_client *client, int64_t now_ms);

/* Takes a reply that dhcp_parse_… accepted for this client's mac and xid. */
int dhcp_reply(struct dhcp_client *client, const struct dhcp_reply *reply, int64_t now_ms);

#endif
