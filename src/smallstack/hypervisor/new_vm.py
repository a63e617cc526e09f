"""What is known of a VM as its create begins."""

from smallstack.hypervisor.ledger import Holding
from smallstack.network.subnets import Caller
from smallstack.proto.enums import ArchitectureType, State
from smallstack.proto.kinds import Time
from smallstack.proto.vm import VmInfo


def new_info(asked: VmInfo, holding: Holding, caller: Caller) -> VmInfo:
    """What was asked for, with what the agent chose, but for its volumes."""
    architecture = asked.architecture_type
    if architecture is ArchitectureType.AUTO:
        architecture = ArchitectureType.AMD64
    now = Time.now()
    return VmInfo(
        address=holding.addresses[0],
        architecture_type=architecture,
        changed_state_on=now,
        created_on=now,
        console_type=asked.console_type,
        cpu_priority=asked.cpu_priority,
        destroy_on_powerdown=asked.destroy_on_powerdown,
        destroy_protection=asked.destroy_protection,
        disable_virtio=asked.disable_virtio,
        extra_kernel_options=asked.extra_kernel_options,
        firmware_type=asked.firmware_type,
        hostname=asked.hostname,
        image_name=asked.image_name,
        image_url=asked.image_url,
        machine_type=asked.machine_type,
        memory_in_mib=asked.memory_in_mib,
        milli_cpus=asked.milli_cpus,
        network_entries=asked.network_entries[: len(holding.addresses)],
        owner_groups=asked.owner_groups,
        owner_users=[u for u in dict.fromkeys([caller.username, *asked.owner_users]) if u],
        spread_volumes=asked.spread_volumes,
        state=State.STOPPED,
        secondary_addresses=holding.addresses[1:],
        secondary_subnet_ids=holding.subnet_ids[1:],
        subnet_id=holding.subnet_ids[0],
        tags=asked.tags,
        virtual_cpus=asked.virtual_cpus,
        watchdog_action=asked.watchdog_action,
        watchdog_model=asked.watchdog_model,
    )
