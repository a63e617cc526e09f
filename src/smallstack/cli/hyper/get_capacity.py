"""``hyper-control get-capacity``: what the machine has and what is free."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Target, run
from smallstack.cli.output import emit_record, format_option
from smallstack.proto.hypervisor.host import GetCapacityResponse


@click.command("get-capacity")
@format_option()
@click.pass_obj
def command(target: Target, output: str) -> None:
    """Print memory, processors and volume space of the Hypervisor."""

    async def work() -> GetCapacityResponse:
        async with await connector(target)() as client:
            return await client.get_capacity()

    capacity = run(work())
    record = {
        "available_memory_mib": capacity.available_memory_in_mib,
        "memory_mib": capacity.memory_in_mib,
        "cpus": capacity.num_cpus,
        "volume_bytes": capacity.total_volume_bytes,
    }
    emit_record(record, output)
