"""``hyper-control``: look after a Hypervisor: its subnets, its addresses, its capacity."""

from smallstack.cli.tool import HYPERVISOR, run_tool, tool

COMMANDS = {
    "add-subnet": ("smallstack.cli.hyper.add_subnet", "command", "tell of a subnet"),
    "add-address": ("smallstack.cli.hyper.add_address", "command", "give addresses to hand out"),
    "get-capacity": (
        "smallstack.cli.hyper.get_capacity",
        "command",
        "what the machine has and what is free",
    ),
    "list-subnets": ("smallstack.cli.hyper.host", "subnets", "the subnets it knows"),
    "list-volume-directories": (
        "smallstack.cli.hyper.host",
        "volume_directories",
        "where volumes lie",
    ),
    "disable": ("smallstack.cli.hyper.host", "disable", "create and start no VMs any more"),
    "enable": ("smallstack.cli.hyper.host", "enable", "create and start VMs again"),
    "change-owners": ("smallstack.cli.hyper.host", "owners", "who may do everything"),
    "get-public-key": ("smallstack.cli.hyper.host", "public_key", "the Hypervisor's public key"),
    "get-identity-provider": (
        "smallstack.cli.hyper.host",
        "identity_provider",
        "where VMs' credentials come from",
    ),
    "register-external-leases": (
        "smallstack.cli.hyper.host",
        "external_leases",
        "DHCP for machines that are no VMs",
    ),
    "watch-dhcp": ("smallstack.cli.hyper.host", "watch_dhcp", "DHCP requests as they come in"),
    "get-updates": (
        "smallstack.cli.hyper.host",
        "updates",
        "the state and its changes as they come",
    ),
    "hold-lock": ("smallstack.cli.hyper.host", "hold_lock", "have creates wait for a while"),
    "hold-vm-lock": (
        "smallstack.cli.hyper.host",
        "hold_vm_lock",
        "keep a VM from being changed for a while",
    ),
    "remove-ip-address": (
        "smallstack.cli.hyper.removals",
        "ip",
        "take a free address out of the pool",
    ),
    "remove-mac-address": ("smallstack.cli.hyper.removals", "mac", "the same, by its MAC"),
    "remove-excess-addresses": (
        "smallstack.cli.hyper.removals",
        "excess",
        "leave so many free addresses",
    ),
    "remove-subnet": ("smallstack.cli.hyper.removals", "subnet", "forget a subnet"),
}

group = tool(
    "hyper-control",
    "Look after a Hypervisor: its subnets, its addresses, its capacity.",
    COMMANDS,
    HYPERVISOR,
)


def main() -> None:
    """The program."""
    run_tool(group)


if __name__ == "__main__":
    main()
