#!/bin/sh
# systemd-networkd on eth0 of this network namespace, until it is bound; then what it got.
# usage: networkd.sh LOG, in a mount namespace of its own
set -eu
mount -t tmpfs tmpfs /run
# networkd waits for udev unless /sys is read-only, as in a container.
mount -t sysfs -o ro sysfs /sys
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
    >/run/systemd/network/10-eth0.network
chmod -R a+rX /run/systemd
chown -R systemd-network /run/systemd/netif
/lib/systemd/systemd-networkd >"$1" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true' EXIT
until ip -4 -oneline address show dev eth0 | grep -q inet; do sleep 0.02; done
for lease in /run/systemd/netif/leases/*; do cat "$lease"; done
ip -4 address show dev eth0
ip -4 route show
