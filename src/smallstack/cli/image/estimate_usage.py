"""``imagetool estimate-usage``: the disk that an image needs."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Bytes, fail
from smallstack.cli.output import emit_record, format_option
from smallstack.client.imageserver import ImageServerClient


@click.command("estimate-usage")
@click.argument("name")
@click.option("--min-free-bytes", type=Bytes(), default="256M", show_default=True)
@click.option("--roundup-power", type=click.IntRange(0, 46), default=24, show_default=True)
@format_option()
@click.pass_obj
def command(
    target: ImageTarget, name: str, min_free_bytes: int, roundup_power: int, output: str
) -> None:
    """Tell how many bytes the files of the image NAME take, and the root disk of a VM with it."""
    from smallstack.proto.enums import FirmwareType
    from smallstack.volumes.size import root_size

    usage = target.run(lambda client: ImageServerClient(client).get_image_usage_estimate(name))
    if usage is None:
        fail(f"there is no image {name}: check `imagetool list`")
    sizes = {
        f"{firmware.name.lower()}_disk_bytes": root_size(
            usage, min_free_bytes, roundup_power, firmware=firmware
        )
        for firmware in (FirmwareType.BIOS, FirmwareType.UEFI)
    }
    emit_record({"name": name, "usage_bytes": usage, **sizes}, output)
