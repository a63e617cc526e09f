"""``vm-control``: create VMs on a Hypervisor and look after them."""

from smallstack.cli.tool import HYPERVISOR, run_tool, tool

COMMANDS = {
    "create-vm": ("smallstack.cli.vm.create_vm", "command", "create a VM"),
    "list-vms": ("smallstack.cli.vm.list_vms", "command", "the addresses of all VMs"),
    "get-vm-info": ("smallstack.cli.vm.get_vm_info", "command", "the record of a VM"),
    "get-vm-infos": ("smallstack.cli.vm.get_vm_infos", "command", "the records of all VMs"),
    "start-vm": ("smallstack.cli.vm.start_vm", "command", "start a stopped VM"),
    "stop-vm": ("smallstack.cli.vm.stop_vm", "command", "stop a VM, keep its disks and address"),
    "reboot-vm": ("smallstack.cli.vm.reboot_vm", "command", "reboot a VM"),
    "destroy-vm": ("smallstack.cli.vm.destroy_vm", "command", "end a VM and delete its disks"),
    "connect-to-vm-serial-port": (
        "smallstack.cli.vm.connect_to_vm_serial_port",
        "command",
        "a VM's serial console",
    ),
    "probe-vm-port": (
        "smallstack.cli.vm.probe_vm_port",
        "command",
        "wait until a port of a VM opens",
    ),
    "trace-vm-metadata": (
        "smallstack.cli.vm.trace_vm_metadata",
        "command",
        "the metadata paths a VM asks for",
    ),
}

group = tool("vm-control", "Create VMs on a Hypervisor and look after them.", COMMANDS, HYPERVISOR)


def main() -> None:
    """The program."""
    run_tool(group)


if __name__ == "__main__":
    main()
