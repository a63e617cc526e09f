"""``imagetool expire``: when an image goes by itself."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration
from smallstack.client.imageserver import ImageServerClient
from smallstack.proto.kinds import Time
from smallstack.srpc.client import Client


@click.command("expire")
@click.argument("name")
@click.argument("duration", type=Duration(), required=False, metavar="[DURATION]")
@click.option("--never", is_flag=True, help="it stays until it is deleted")
@click.pass_obj
def command(target: ImageTarget, name: str, duration: int | None, never: bool) -> None:
    """Show when the image NAME expires, or let it live for DURATION (such as 24h) from now.

    An image that expires can be given more time only; one that does not cannot be made to.
    """
    if never and duration is not None:
        raise click.UsageError("--never and a DURATION are two different things")
    if duration is not None and duration <= 0:
        raise click.UsageError("DURATION counts from now: it must be above 0")

    async def work(client: Client) -> Time:
        images = ImageServerClient(client)
        if never:
            await images.change_image_expiration(name, Time())
        elif duration is not None:
            until = Time.now().nanoseconds_since_epoch + duration
            await images.change_image_expiration(name, Time.from_nanoseconds(until))
        return await images.get_image_expiration(name)

    expires_at = target.run(work)
    print("never" if expires_at.is_zero() else expires_at)
