"""``vm-control reboot-vm``: reboot a running VM."""

from smallstack.cli.vm.boot import boot_command
from smallstack.client.hypervisor import HypervisorClient

command = boot_command("reboot-vm", "Reboot a running VM.", HypervisorClient.reboot_vm)
