"""``smallstack``: the daemons, the demo, certificates and a check of the machine."""

import click

from smallstack.cli.lazy import LazyGroup

COMMANDS = {
    "demo": (
        "smallstack.cli.demo",
        "command",
        "a real VM in a private network namespace, with the paper's breakdown",
    ),
    "down": ("smallstack.cli.demo", "down", "end a kept demo"),
    "check": ("smallstack.cli.check", "command", "what this machine has and what it lacks"),
    "hypervisor": (
        "smallstack.cli.hypervisor",
        "hypervisor",
        "the agent: runs VMs on this machine",
    ),
    "imageserver": ("smallstack.cli.imageserver", "imageserver", "serves images and their objects"),
    "volume": (
        "smallstack.cli.volume",
        "group",
        "disks in files: what differs, flatten, commit, compact, check",
    ),
    "log": ("smallstack.cli.log", "group", "the log of a daemon, from afar"),
    "pki": ("smallstack.cli.pki", "pki", "make, list and renew certificates"),
}


@click.group(cls=LazyGroup, table=COMMANDS)
@click.version_option(version="0.1.0", prog_name="smallstack")
def group() -> None:
    """Run a private cloud on this machine, or try it out."""


def main() -> None:
    """The program."""
    group(prog_name="smallstack")


if __name__ == "__main__":
    main()
