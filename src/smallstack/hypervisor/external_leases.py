"""DHCP leases of machines that are none of our VMs: the Fleet Manager tells of them.

The set is replaced as a whole, and forgotten with the agent, or with the stream that told of it.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from smallstack.hypervisor.errors import ExternalLeaseError
from smallstack.hypervisor.wiring import Wiring
from smallstack.network.book import AddressBook
from smallstack.network.errors import NetworkError
from smallstack.network.macs import mac_text, packed_mac
from smallstack.network.subnets import parse_ip
from smallstack.proto.vm import Address, Subnet

MAX_LEASES: Final = 65_536
AT_ONCE: Final = 200
"""Leases entered before others have their turn."""


class ExternalLease(NamedTuple):
    """What belongs to one address."""

    mac: str
    hostname: str
    subnet: Subnet


class ExternalLeases:
    """The set there is."""

    def __init__(self, book: AddressBook, wiring: Wiring) -> None:
        self._book = book
        self._wiring = wiring
        self._leases: dict[str, ExternalLease] = {}
        self._lock = asyncio.Lock()
        self.version = 0
        """Another one with each replacement."""

    async def replace(self, addresses: Sequence[Address], hostnames: Sequence[str] = ()) -> int:
        """Have these leases and no others; the host name of one that has none is its address.

        Raises ExternalLeaseError; then nothing has changed. The version of the new set.
        """
        async with self._lock:
            wanted = await asyncio.to_thread(self._check, addresses, hostnames)
            for index, ip in enumerate([*(self._leases.keys() - wanted.keys()), *wanted]):
                if index % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
                lease = wanted.get(ip)
                if lease is None:
                    self._remove(ip)
                elif self._leases.get(ip) != lease:
                    self._wiring.dhcp.add_lease(lease.mac, ip, lease.subnet, lease.hostname)
            self._leases = wanted
            self.version += 1
            return self.version

    def _check(
        self, addresses: Sequence[Address], hostnames: Sequence[str]
    ) -> dict[str, ExternalLease]:
        """The leases by IP. Blocks: there may be many."""
        if len(addresses) > MAX_LEASES:
            raise ExternalLeaseError(
                ip=f"{len(addresses)} addresses", detail=f"at most {MAX_LEASES} are taken"
            )
        registered = self._book.pool.registered
        ours = {known.ip_address for known in registered}
        macs = {mac_text(packed_mac(known.mac_address)) for known in registered}
        wanted: dict[str, ExternalLease] = {}
        for index, address in enumerate(addresses):
            try:
                ip = str(parse_ip(address.ip_address))
                mac = mac_text(packed_mac(address.mac_address))
            except NetworkError as error:
                raise ExternalLeaseError(ip=address.ip_address, detail=str(error)) from error
            subnet = self._book.subnets.matching(ip)
            if subnet is None:
                raise ExternalLeaseError(ip=ip, detail="no subnet of this Hypervisor has it")
            if ip in ours or mac in macs:
                raise ExternalLeaseError(
                    ip=ip, detail="it, or its MAC, is in the address pool or comes twice"
                )
            ours.add(ip)
            macs.add(mac)
            name = hostnames[index] if index < len(hostnames) else ""
            wanted[ip] = ExternalLease(mac, name or ip, subnet)
        return wanted

    async def forget(self, version: int) -> None:
        """Have none, if the set is still that one."""
        if version == self.version:
            await self.replace(())

    def _remove(self, ip: str) -> None:
        """Unless a VM has the address by now."""
        lease = self._wiring.dhcp.leases.get(parse_ip(ip))
        if lease is not None and mac_text(lease.mac) == self._leases[ip].mac:
            self._wiring.dhcp.remove_lease(ip)
