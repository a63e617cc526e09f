"""Addresses, subnets and leases of a Hypervisor."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import Annotated

from msgspec import field

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import Duration, Named, Omit, Uint, Uint64
from smallstack.proto.vm import Address, Subnet


class ChangeAddressPoolRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeAddressPool``."""

    addresses_to_add: list[Address] = []
    """Each in a known subnet, with a MAC address of its own."""
    addresses_to_remove: list[Address] = []
    maximum_free_addresses: dict[str, Uint] = {}
    """By subnet, "" for all: how many free addresses may stay."""


class ChangeAddressPoolResponse(Reply):
    """Reply of ``Hypervisor.ChangeAddressPool``."""


class RegisterExternalLeasesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.RegisterExternalLeases``."""

    addresses: Annotated[list[Address], Named("hypervisor", "AddressList")] = []
    hostnames: Omit[list[str]] = []


class ListSubnetsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ListSubnets``."""

    sort: bool = False


class ListSubnetsResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ListSubnets``."""

    error: str = ""
    subnets: Omit[list[Subnet]] = []


class NetbootMachineRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.NetbootMachine``."""

    address: Address = field(default_factory=Address)
    files: dict[str, bytes] = {}
    """Path to content, for the TFTP server."""
    files_expiration: Duration = 0
    hostname: str = ""
    num_acknowledgements_to_wait_for: Uint = 0
    offer_expiration: Duration = 0
    subnet: Subnet | None = None
    wait_timeout: Duration = 0


class NetbootMachineResponse(Reply):
    """Reply of ``Hypervisor.NetbootMachine``."""


class RegisterExternalLeasesResponse(Reply):
    """Reply of ``Hypervisor.RegisterExternalLeases``."""


class UpdateSubnetsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.UpdateSubnets``."""

    add: list[Subnet] = []
    change: list[Subnet] = []
    delete: list[str] = []


class UpdateSubnetsResponse(Reply):
    """Reply of ``Hypervisor.UpdateSubnets``."""


class WatchDhcpRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.WatchDhcp``."""

    interface: str = ""
    """Empty: all."""
    max_packets: Uint64 = 0
    """After so many it ends; 0: never."""


class WatchDhcpResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.WatchDhcp``."""

    error: str = ""
    interface: str = ""
    packet: bytes = b""
    """The UDP payload, RFC 2131."""
