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
    "connect-to-vm-console": (
        "smallstack.cli.vm.connect_to_vm_console",
        "command",
        "a VM's display for VNC viewers",
    ),
    "connect-to-vm-manager": (
        "smallstack.cli.vm.connect_to_vm_manager",
        "command",
        "QEMU's monitor of a VM",
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
    "change-vm-tags": ("smallstack.cli.vm.changes", "tags", "give a VM other tags"),
    "change-vm-hostname": ("smallstack.cli.vm.changes", "hostname", "give a VM another host name"),
    "change-vm-cpu-priority": (
        "smallstack.cli.vm.changes",
        "cpu_priority",
        "let a VM go before others, or behind",
    ),
    "change-vm-destroy-protection": (
        "smallstack.cli.vm.changes",
        "destroy_protection",
        "keep a running VM from being destroyed",
    ),
    "change-vm-memory": (
        "smallstack.cli.vm.changes",
        "memory",
        "give a stopped VM more memory, or less",
    ),
    "change-vm-cpus": (
        "smallstack.cli.vm.changes",
        "cpus",
        "give a VM another share of the processors",
    ),
    "change-vm-vcpus": (
        "smallstack.cli.vm.changes",
        "vcpus",
        "have a stopped VM see more processors, or fewer",
    ),
    "change-vm-console-type": (
        "smallstack.cli.vm.changes",
        "console_type",
        "give a stopped VM another console",
    ),
    "change-vm-machine-type": (
        "smallstack.cli.vm.changes",
        "machine_type",
        "emulate a stopped VM as another machine",
    ),
    "change-vm-num-network-queues": (
        "smallstack.cli.vm.changes",
        "num_network_queues",
        "queues of a stopped VM's network interfaces",
    ),
    "change-vm-volume-interfaces": (
        "smallstack.cli.vm.changes",
        "volume_interfaces",
        "how a stopped VM sees its volumes",
    ),
    "change-vm-subnet": (
        "smallstack.cli.vm.changes",
        "subnet",
        "give a stopped VM an address in another subnet",
    ),
    "become-primary-vm-owner": (
        "smallstack.cli.vm.owners",
        "become_primary",
        "be a VM's first owner",
    ),
    "replace-vm-credentials": (
        "smallstack.cli.vm.identity",
        "credentials",
        "give a VM a certificate and its key",
    ),
    "replace-vm-identity": ("smallstack.cli.vm.identity", "identity", "give a VM a role"),
    "change-vm-owner-users": ("smallstack.cli.vm.owners", "users", "the users who own a VM"),
    "change-vm-owner-groups": ("smallstack.cli.vm.owners", "groups", "the groups who own a VM"),
    "get-vm-access-token": (
        "smallstack.cli.vm.owners",
        "access_token",
        "let others have a VM for a while",
    ),
    "discard-vm-access-token": (
        "smallstack.cli.vm.owners",
        "discard_access_token",
        "have that end now",
    ),
    "get-vm-user-data": ("smallstack.cli.vm.user_data", "get", "a VM's user data"),
    "replace-vm-user-data": ("smallstack.cli.vm.user_data", "replace", "give a VM other user data"),
    "restore-vm-user-data": (
        "smallstack.cli.vm.user_data",
        "restore",
        "go back to a VM's former user data",
    ),
    "discard-vm-old-user-data": (
        "smallstack.cli.vm.user_data",
        "discard_old",
        "forget a VM's former user data",
    ),
    "get-vm-create-request": (
        "smallstack.cli.vm.user_data",
        "create_request",
        "what a VM's creator asked for",
    ),
    "add-vm-volumes": ("smallstack.cli.vm.volumes", "add", "give a stopped VM further volumes"),
    "delete-vm-volume": ("smallstack.cli.vm.volumes", "delete", "delete a volume of a stopped VM"),
    "reorder-vm-volumes": (
        "smallstack.cli.vm.volumes",
        "reorder",
        "volumes of a stopped VM in another order",
    ),
    "change-vm-volume-size": (
        "smallstack.cli.vm.volumes",
        "resize",
        "make a volume larger or smaller",
    ),
    "change-vm-volume-storage-index": (
        "smallstack.cli.vm.volumes",
        "move",
        "move a volume to another directory",
    ),
    "get-vm-volume": ("smallstack.cli.vm.volumes", "get", "a volume as a file"),
    "get-vm-volume-storage-configuration": (
        "smallstack.cli.vm.volumes",
        "storage",
        "where a VM's volumes are",
    ),
    "snapshot-vm": ("smallstack.cli.vm.volumes", "snapshot", "keep the state of a VM's volumes"),
    "restore-vm-from-snapshot": (
        "smallstack.cli.vm.volumes",
        "restore",
        "go back to a state that was kept",
    ),
    "discard-vm-snapshot": ("smallstack.cli.vm.volumes", "discard", "forget a state that was kept"),
    "list-vm-virtualiser-log-files": (
        "smallstack.cli.vm.logs",
        "list_logs",
        "the logs of a VM's QEMU",
    ),
    "get-vm-virtualiser-log-file": ("smallstack.cli.vm.logs", "get_log", "one of these logs"),
}

group = tool("vm-control", "Create VMs on a Hypervisor and look after them.", COMMANDS, HYPERVISOR)


def main() -> None:
    """The program."""
    run_tool(group)


if __name__ == "__main__":
    main()
