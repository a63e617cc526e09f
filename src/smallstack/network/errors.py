"""What can go wrong with a guest's network, one class per kind."""

from smallstack.telemetry.errors import SmallStackError


class NetworkError(SmallStackError):
    """network: {detail}"""


class BridgeMissingError(NetworkError):
    """bridge {name!r} does not exist: make it (`ip link add {name} type bridge`), or let the
    agent make it by `--bridge-address`"""


class NotABridgeError(NetworkError):
    """{name!r} is a {kind} interface, not a bridge: give the name of a bridge"""


class NoUsableBridgeError(NetworkError):
    """no usable bridge for subnet {subnet!r} (VLAN {vlan_id}): there are {known}"""


class VlanMissingError(NoUsableBridgeError):
    """subnet {subnet!r} is on VLAN {vlan_id}, which no bridge carries: make a bridge {name}, or
    one with an uplink in that VLAN"""


class NoPrivilegeError(NetworkError):
    """cannot {action}: this needs root (CAP_NET_ADMIN) in this network namespace"""


class TunMissingError(NetworkError):
    """cannot make the tap {name}: {device} is missing; load the kernel module `tun`"""


class TapBusyError(NetworkError):
    """cannot make the tap {name}: {holder} holds it, most likely a VM that still runs"""


class TapError(NetworkError):
    """cannot make the tap {name} on bridge {bridge}: {detail}"""


class NetlinkError(NetworkError):
    """cannot {action}: {detail}"""


class GuardError(NetworkError):
    """cannot {action}: the kernel refused a rule of the nftables bridge family: {detail}"""


class DhcpPortError(NetworkError):
    """cannot listen for DHCP on {bridge}: {detail}; is another DHCP server running there?"""


class MetadataError(NetworkError):
    """cannot start the metadata service of bridge {bridge}: {detail}"""


class AddressError(NetworkError):
    """address pool: {detail}"""


class BadMacError(AddressError):
    """address {mac!r}: invalid MAC address"""


class BadIpError(AddressError):
    """invalid IP address: {ip!r}"""


class NoMatchingSubnetError(AddressError):
    """no subnet matching: {ip}: add one with `hyper-control add-subnet`"""


class DuplicateAddressError(AddressError):
    """duplicate {what} address: {value}"""


class AddressOfVmError(AddressError):
    """VM {ip} has different MAC address: {mac} than is being added: {added}"""


class MacOfVmError(AddressError):
    """VM for MAC address: {mac} does not have IP"""


class AddressInUseError(AddressError):
    """cannot remove {ip} from {where} list because it is used"""


class NotInPoolError(AddressError):
    """{what}: {values} {where}"""


class NotRegisteredError(AddressError):
    """{address} not registered"""


class PoolEmptyError(AddressError):
    """no free addresses in pool: add some with `hyper-control add-address`"""


class NoFreeAddressError(AddressError):
    """no free address in subnet: {subnet}"""


class AddressNotFreeError(AddressError):
    """address: {ip} not found in free pool"""


class SubnetError(NetworkError):
    """subnet: {detail}"""


class SubnetMissingError(SubnetError):
    """subnet: {subnet} does not exist"""


class SubnetExistsError(SubnetError):
    """subnet: {subnet} already exists"""


class SubnetAccessError(SubnetError):
    """no access to subnet: {subnet}"""

    denies = True


class NoSubnetsError(SubnetError):
    """no subnets exist: add one with `hyper-control add-subnet`"""


class NoSubnetPermittedError(SubnetError):
    """no subnets permitted"""

    denies = True


class ManySubnetsError(SubnetError):
    """multiple available subnets: pick one"""


class ReservedSubnetError(SubnetError):
    """cannot {action} hypervisor subnet"""


class BadSubnetError(SubnetError):
    """subnet: {subnet} is not valid: {detail}"""


class RecordError(NetworkError):
    """cannot {action} {path}: {detail}"""
