"""``vm-control start-vm``: start a stopped VM."""

from smallstack.cli.vm.boot import boot_command
from smallstack.client.hypervisor import HypervisorClient

command = boot_command("start-vm", "Start a stopped VM.", HypervisorClient.start_vm)
