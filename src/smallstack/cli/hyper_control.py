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
