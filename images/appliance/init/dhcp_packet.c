#include "dhcp_packet.h"

#include <asm/errno.h>

enum {
    OP_REQUEST = 1,
    OP_REPLY = 2,
    HEADER_SIZE = 236,      /* fixed part of BOOTP */
    FILE_OFFSET = 108,
    FILE_SIZE = 128,
    NAME_OFFSET = 44,
    NAME_SIZE = 64,
    OPTIONS_OFFSET = 240,   /* behind the magic cookie */
    PORT_SERVER = 67,
    PORT_CLIENT = 68,
    PROTOCOL_UDP = 17,
};

enum {
    OPTION_PAD = 0,
    OPTION_MASK = 1,
    OPTION_ROUTER = 3,
    OPTION_DNS = 6,
    OPTION_HOST_NAME = 12,
    OPTION_DOMAIN = 15,
    OPTION_MTU = 26,
    OPTION_REQUESTED = 50,
    OPTION_LEASE = 51,
    OPTION_OVERLOAD = 52,
    OPTION_TYPE = 53,
    OPTION_SERVER = 54,
    OPTION_PARAMETERS = 55,
    OPTION_MAX_SIZE = 57,
    OPTION_T1 = 58,
    OPTION_T2 = 59,
    OPTION_RAPID_COMMIT = 80,
    OPTION_ROUTES = 121,
    OPTION_END = 255,
};

static const uint8_t COOKIE[4] = {99, 130, 83, 99};

static const uint8_t PARAMETERS[] = {
    OPTION_MASK, OPTION_ROUTES, OPTION_ROUTER, OPTION_DNS,  OPTION_HOST_NAME, OPTION_DOMAIN,
    OPTION_MTU,  OPTION_LEASE,  OPTION_SERVER, OPTION_T1,   OPTION_T2,
};

static void put16(uint8_t *out, uint32_t value)
{
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
}

static void put32(uint8_t *out, uint32_t value)
{
    put16(out, value >> 16);
    put16(out + 2, value);
}

static uint16_t get16(const uint8_t *in)
{
    return (uint16_t)(in[0] << 8 | in[1]);
}

static uint32_t get32(const uint8_t *in)
{
    return (uint32_t)get16(in) << 16 | get16(in + 2);
}

static void copy(uint8_t *to, const uint8_t *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = from[i];
}

static bool same(const uint8_t *left, const uint8_t *right, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (left[i] != right[i])
            return false;
    return true;
}

static bool is_zero(const uint8_t address[4])
{
    return (address[0] | address[1] | address[2] | address[3]) == 0;
}

/* RFC 1071, over an even or odd number of bytes; 0 over a header that carries its own sum. */
static uint16_t checksum(const uint8_t *data, size_t size, uint32_t sum)
{
    for (; size > 1; data += 2, size -= 2)
        sum += get16(data);
    if (size == 1)
        sum += (uint32_t)data[0] << 8;
    while (sum >> 16 != 0)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static uint8_t *add_option(uint8_t *out, uint8_t code, const uint8_t *value, uint8_t size)
{
    *out++ = code;
    *out++ = size;
    copy(out, value, size);
    return out + size;
}

size_t dhcp_build_message(const struct dhcp_query *query, uint8_t *out)
{
    uint8_t *next = out;
    uint8_t size[2];

    for (size_t i = 0; i < DHCP_MESSAGE_MIN; i++)
        out[i] = 0;
    out[0] = OP_REQUEST;
    out[1] = 1;             /* Ethernet */
    out[2] = 6;
    put32(out + 4, query->xid);
    put16(out + 8, query->seconds);
    copy(out + 12, query->client, 4);
    copy(out + 28, query->mac, 6);
    copy(out + HEADER_SIZE, COOKIE, 4);
    next = add_option(out + OPTIONS_OFFSET, OPTION_TYPE, &query->type, 1);
    if (!is_zero(query->requested))
        next = add_option(next, OPTION_REQUESTED, query->requested, 4);
    if (!is_zero(query->server))
        next = add_option(next, OPTION_SERVER, query->server, 4);
    if (query->rapid_commit)
        next = add_option(next, OPTION_RAPID_COMMIT, NULL, 0);
    put16(size, DHCP_RECEIVE_MAX);
    next = add_option(next, OPTION_MAX_SIZE, size, 2);
    next = add_option(next, OPTION_PARAMETERS, PARAMETERS, sizeof PARAMETERS);
    *next++ = OPTION_END;
    return next - out < DHCP_MESSAGE_MIN ? DHCP_MESSAGE_MIN : (size_t)(next - out);
}

size_t dhcp_build_packet(const struct dhcp_query *query, uint8_t *out)
{
    uint8_t *udp = out + 20;
    size_t message = dhcp_build_message(query, out + DHCP_HEADERS_SIZE);
    uint32_t udp_size = (uint32_t)message + 8;
    uint16_t sum;

    for (size_t i = 0; i < DHCP_HEADERS_SIZE; i++)
        out[i] = 0;
    out[0] = 0x45;
    out[1] = 0x10;          /* low delay */
    put16(out + 2, udp_size + 20);
    out[8] = 64;
    out[9] = PROTOCOL_UDP;
    put32(out + 16, 0xffffffff);
    put16(out + 10, checksum(out, 20, 0));
    put16(udp, PORT_CLIENT);
    put16(udp + 2, PORT_SERVER);
    put16(udp + 4, udp_size);
    /* the pseudo header: both addresses, protocol and length */
    sum = checksum(udp, udp_size, 0xffff + 0xffff + PROTOCOL_UDP + udp_size);
    put16(udp + 6, sum == 0 ? 0xffff : sum);
    return DHCP_HEADERS_SIZE + message;
}

/* Takes over a name if it is one; a hostile one is as good as none. */
static void read_name(const uint8_t *value, size_t size, char *name, size_t room)
{
    while (size > 0 && value[size - 1] == 0)
        size--;
    if (size == 0 || size >= room || value[0] == '-' || value[0] == '.')
        return;
    for (size_t i = 0; i < size; i++) {
        uint8_t c = value[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '-' || c == '.'))
            return;
    }
    copy((uint8_t *)name, value, size);
    name[size] = 0;
}

/* RFC 3442: width of the prefix, its significant bytes, the router; all or nothing. */
static void read_routes(const uint8_t *value, size_t size, struct dhcp_reply *reply)
{
    uint8_t count = 0;

    while (size > 0 && count < DHCP_ROUTES_MAX) {
        struct dhcp_route *route = &reply->routes[count];
        uint8_t prefix = value[0];
        size_t significant = ((size_t)prefix + 7) / 8;

        if (prefix > 32 || size < 1 + significant + 4)
            return;
        *route = (struct dhcp_route){.prefix = prefix};
        copy(route->destination, value + 1, significant);
        for (unsigned bit = prefix; bit < 32; bit++)
            route->destination[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
        copy(route->router, value + 1 + significant, 4);
        value += 1 + significant + 4;
        size -= 1 + significant + 4;
        count++;
    }
    reply->routes_count = count;
}

/* A netmask: ones, then zeros. */
static bool is_mask(const uint8_t value[4])
{
    uint32_t inverse = ~get32(value);

    return (inverse & (inverse + 1)) == 0;
}

static void read_option(uint8_t code, const uint8_t *value, size_t size, struct dhcp_reply *reply)
{
    switch (code) {
    case OPTION_TYPE:
        if (size == 1)
            reply->type = value[0];
        break;
    case OPTION_SERVER:
        if (size == 4)
            copy(reply->server, value, 4);
        break;
    case OPTION_MASK:
        if (size == 4 && is_mask(value))
            copy(reply->mask, value, 4);
        break;
    case OPTION_ROUTER:
        if (size >= 4 && size % 4 == 0)
            copy(reply->router, value, 4);
        break;
    case OPTION_DNS:
        if (size % 4 != 0)
            break;
        for (reply->dns_count = 0; size >= 4 && reply->dns_count < DHCP_DNS_MAX; size -= 4) {
            copy(reply->dns[reply->dns_count++], value, 4);
            value += 4;
        }
        break;
    case OPTION_MTU:
        if (size == 2 && get16(value) >= 68)
            reply->mtu = get16(value);
        break;
    case OPTION_LEASE:
        if (size == 4)
            reply->lease_seconds = get32(value);
        break;
    case OPTION_T1:
        if (size == 4)
            reply->renew_seconds = get32(value);
        break;
    case OPTION_T2:
        if (size == 4)
            reply->rebind_seconds = get32(value);
        break;
    case OPTION_HOST_NAME:
        read_name(value, size, reply->host_name, sizeof reply->host_name);
        break;
    case OPTION_DOMAIN:
        read_name(value, size, reply->domain, sizeof reply->domain);
        break;
    case OPTION_RAPID_COMMIT:
        reply->rapid_commit = size == 0;
        break;
    case OPTION_ROUTES:
        read_routes(value, size, reply);
        break;
    default:
        break;
    }
}

/* One run of options. `overload` is filled from option 52 when it is not NULL. */
static int read_options(const uint8_t *data, size_t size, struct dhcp_reply *reply,
                        uint8_t *overload)
{
    size_t at = 0;

    while (at < size && data[at] != OPTION_END) {
        uint8_t code = data[at++];
        size_t length;

        if (code == OPTION_PAD)
            continue;
        if (at >= size)
            return -EBADMSG;
        length = data[at++];
        if (length > size - at)
            return -EBADMSG;
        if (code == OPTION_OVERLOAD) {
            if (overload != NULL && length == 1)
                *overload = data[at];
        } else {
            read_option(code, data + at, length, reply);
        }
        at += length;
    }
    return 0;
}

int dhcp_parse_message(const uint8_t *data, size_t size, const uint8_t mac[6], uint32_t xid,
                       struct dhcp_reply *reply)
{
    uint8_t overload = 0;

    *reply = (struct dhcp_reply){0};
    if (size < OPTIONS_OFFSET || data[0] != OP_REPLY || data[1] != 1 || data[2] != 6)
        return -EBADMSG;
    if (get32(data + 4) != xid || !same(data + 28, mac, 6))
        return -EBADMSG;
    if (!same(data + HEADER_SIZE, COOKIE, 4))
        return -EBADMSG;
    if (read_options(data + OPTIONS_OFFSET, size - OPTIONS_OFFSET, reply, &overload) < 0)
        return -EBADMSG;
    if (overload & 1 && read_options(data + FILE_OFFSET, FILE_SIZE, reply, NULL) < 0)
        return -EBADMSG;
    if (overload & 2 && read_options(data + NAME_OFFSET, NAME_SIZE, reply, NULL) < 0)
        return -EBADMSG;
    copy(reply->address, data + 16, 4);
    switch (reply->type) {
    case DHCP_OFFER:
    case DHCP_ACK:
        /* an address a host can have: not 0/8, not loopback, not multicast or above */
        if (reply->address[0] == 0 || reply->address[0] == 127 || reply->address[0] >= 224)
            return -EBADMSG;
        return 0;
    case DHCP_NAK:
        return 0;
    default:
        return -EBADMSG;
    }
}

int dhcp_parse_packet(const uint8_t *data, size_t size, const uint8_t mac[6], uint32_t xid,
                      struct dhcp_reply *reply)
{
    size_t header, total, udp_size;

    if (size < DHCP_HEADERS_SIZE || data[0] >> 4 != 4)
        return -EBADMSG;
    header = (size_t)(data[0] & 15) * 4;
    total = get16(data + 2);
    if (header < 20 || total > size || total < header + 8)
        return -EBADMSG;
    if (data[9] != PROTOCOL_UDP || checksum(data, header, 0) != 0)
        return -EBADMSG;
    if ((get16(data + 6) & 0x3fff) != 0)    /* a fragment */
        return -EBADMSG;
    if (get16(data + header) != PORT_SERVER || get16(data + header + 2) != PORT_CLIENT)
        return -EBADMSG;
    udp_size = get16(data + header + 4);
    if (udp_size < 8 || udp_size > total - header)
        return -EBADMSG;
    return dhcp_parse_message(data + header + 8, udp_size - 8, mac, xid, reply);
}
