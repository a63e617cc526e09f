#include "dhcp_lease.h"

enum {
    FIRST_WAIT_MS = 250,
    LONGEST_WAIT_MS = 16000,
    REFUSED_WAIT_MS = 1000,
    REQUEST_TRIES = 4,
    RENEW_WAIT_MIN_MS = 60000,      /* RFC 2131, 4.4.5 */
};

#define FOREVER UINT32_MAX

/* A fifth up or down, so that guests which started together do not stay together. */
static int64_t jittered(const struct dhcp_client *client, int64_t wait_ms)
{
    uint32_t mixed = (client->query.xid + client->tries) * 2654435761u;

    return wait_ms + wait_ms / 5 * ((int64_t)(mixed >> 16 & 0xff) - 128) / 128;
}

static int64_t backoff(const struct dhcp_client *client)
{
    int64_t wait = FIRST_WAIT_MS;

    for (uint32_t i = 1; i < client->tries && wait < LONGEST_WAIT_MS; i++)
        wait *= 2;
    return jittered(client, wait);
}

static int send(struct dhcp_client *client, int64_t now_ms)
{
    int64_t seconds = (now_ms - client->began_ms) / 1000;

    client->tries++;
    client->query.seconds = (uint16_t)(seconds > 0xffff ? 0xffff : seconds);
    return DHCP_DO_SEND;
}

int dhcp_start(struct dhcp_client *client, const uint8_t mac[6], uint32_t random, int64_t now_ms)
{
    *client = (struct dhcp_client){
        .state = DHCP_SELECTING,
        .began_ms = now_ms,
        .query = {.type = DHCP_DISCOVER, .xid = random, .rapid_commit = true},
    };
    for (int i = 0; i < 6; i++)
        client->mac[i] = client->query.mac[i] = mac[i];
    send(client, now_ms);
    client->deadline_ms = now_ms + backoff(client);
    return DHCP_DO_SEND;
}

/* Starts anew, with another number so that late replies to the old exchange do not count. */
static int restart(struct dhcp_client *client, int64_t now_ms)
{
    uint8_t mac[6];

    for (int i = 0; i < 6; i++)
        mac[i] = client->mac[i];
    return dhcp_start(client, mac, client->query.xid * 1664525u + 1013904223u, now_ms);
}

/* After a NAK: the same, but only in a while, so that a server which always refuses gets no storm. */
static int restart_later(struct dhcp_client *client, int64_t now_ms)
{
    int actions = restart(client, now_ms) & ~DHCP_DO_SEND;

    client->tries = 0;
    client->deadline_ms = now_ms + jittered(client, REFUSED_WAIT_MS);
    return actions;
}

static int request(struct dhcp_client *client, const struct dhcp_reply *offer, int64_t now_ms)
{
    client->state = DHCP_REQUESTING;
    client->tries = 0;
    client->query.type = DHCP_REQUEST;
    client->query.rapid_commit = false;
    for (int i = 0; i < 4; i++) {
        client->query.requested[i] = offer->address[i];
        client->query.server[i] = offer->server[i];
    }
    send(client, now_ms);
    client->deadline_ms = now_ms + backoff(client);
    return DHCP_DO_SEND;
}

static int bind(struct dhcp_client *client, const struct dhcp_reply *ack, int64_t now_ms)
{
    uint32_t lease = ack->lease_seconds == 0 ? FOREVER : ack->lease_seconds;
    uint32_t renew = ack->renew_seconds, rebind = ack->rebind_seconds;

    client->state = DHCP_BOUND;
    client->tries = 0;
    client->lease = *ack;
    client->unicast = false;
    if (lease == FOREVER) {
        client->renew_ms = client->rebind_ms = client->expire_ms = client->deadline_ms = -1;
        return DHCP_DO_APPLY;
    }
    /* RFC 2131, 4.4.5: T1 < T2 < lease, else the defaults 0.5 and 0.875 */
    if (rebind == 0 || rebind >= lease)
        rebind = (uint32_t)((uint64_t)lease * 7 / 8);
    if (renew == 0 || renew >= rebind)
        renew = lease / 2 < rebind ? lease / 2 : rebind;
    client->renew_ms = now_ms + (int64_t)renew * 1000;
    client->rebind_ms = now_ms + (int64_t)rebind * 1000;
    client->expire_ms = now_ms + (int64_t)lease * 1000;
    client->deadline_ms = client->renew_ms;
    return DHCP_DO_APPLY;
}

/* Half of the time that is left before `end_ms`, at least a minute, never beyond it. */
static int64_t next_renewal(int64_t now_ms, int64_t end_ms)
{
    int64_t wait = (end_ms - now_ms) / 2;

    if (wait < RENEW_WAIT_MIN_MS)
        wait = RENEW_WAIT_MIN_MS;
    return now_ms + wait < end_ms ? now_ms + wait : end_ms;
}

static int renew(struct dhcp_client *client, int64_t now_ms)
{
    if (client->state == DHCP_BOUND) {
        client->began_ms = now_ms;
        client->query = (struct dhcp_query){
            .type = DHCP_REQUEST,
            .xid = client->query.xid * 1664525u + 1013904223u,
        };
        for (int i = 0; i < 6; i++)
            client->query.mac[i] = client->mac[i];
        for (int i = 0; i < 4; i++)
            client->query.client[i] = client->lease.address[i];
    }
    if (now_ms >= client->rebind_ms) {
        client->state = DHCP_REBINDING;
        client->deadline_ms = next_renewal(now_ms, client->expire_ms);
    } else {
        client->state = DHCP_RENEWING;
        client->deadline_ms = next_renewal(now_ms, client->rebind_ms);
    }
    client->unicast = client->state == DHCP_RENEWING;
    return send(client, now_ms);
}

int dhcp_timeout(struct dhcp_client *client, int64_t now_ms)
{
    switch (client->state) {
    case DHCP_SELECTING:
        send(client, now_ms);
        client->deadline_ms = now_ms + backoff(client);
        return DHCP_DO_SEND;
    case DHCP_REQUESTING:
        if (client->tries >= REQUEST_TRIES)
            return restart(client, now_ms);
        send(client, now_ms);
        client->deadline_ms = now_ms + backoff(client);
        return DHCP_DO_SEND;
    case DHCP_BOUND:
    case DHCP_RENEWING:
    case DHCP_REBINDING:
        if (now_ms >= client->expire_ms)
            return DHCP_DO_DROP | restart(client, now_ms);
        return renew(client, now_ms);
    case DHCP_IDLE:
    default:
        client->deadline_ms = -1;
        return 0;
    }
}

static bool same_address(const uint8_t left[4], const uint8_t right[4])
{
    return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3];
}

int dhcp_reply(struct dhcp_client *client, const struct dhcp_reply *reply, int64_t now_ms)
{
    switch (client->state) {
    case DHCP_SELECTING:
        if (reply->type == DHCP_OFFER)
            return request(client, reply, now_ms);
        if (reply->type == DHCP_ACK && reply->rapid_commit)
            return bind(client, reply, now_ms);
        return 0;
    case DHCP_REQUESTING:
        if (reply->type == DHCP_ACK && same_address(reply->address, client->query.requested))
            return bind(client, reply, now_ms);
        if (reply->type == DHCP_NAK)
            return restart_later(client, now_ms);
        return 0;
    case DHCP_RENEWING:
    case DHCP_REBINDING:
        if (reply->type == DHCP_NAK)
            return DHCP_DO_DROP | restart_later(client, now_ms);
        if (reply->type == DHCP_ACK && same_address(reply->address, client->lease.address))
            return bind(client, reply, now_ms);
        return 0;
    case DHCP_IDLE:
    case DHCP_BOUND:
    default:
        return 0;
    }
}
