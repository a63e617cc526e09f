"""``imagetool import-objects`` and ``test-bandwidth``: objects from elsewhere; how fast it goes."""

from typing import TextIO

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Bytes, Duration, fail
from smallstack.client.objectserver import ObjectServerClient
from smallstack.proto.kinds import HASH_SIZE


@click.command("import-objects")
@click.argument("url")
@click.argument("file", type=click.File(), default="-", metavar="[FILE|-]")
@click.pass_obj
def import_command(target: ImageTarget, url: str, file: TextIO) -> None:
    """Have the image server fetch objects, each from URL/SHA-512; their digests are lines of FILE.

    Those that it has already are not fetched again.
    """
    digests = [_digest(line) for line in file if line.strip()]
    reply = target.run(lambda client: ObjectServerClient(client).import_objects(url, digests))
    if reply.error:
        fail(reply.error)
    print(f"{len(digests)} objects, {reply.objects_added} of them new ({reply.bytes_added} bytes)")


@click.command("test-bandwidth")
@click.option("--duration", type=Duration(), default="10s", show_default=True, help="up to 1m")
@click.option("--chunk-size", type=Bytes(), default="65535", show_default=True, help="the most")
@click.option("--to-server", is_flag=True, help="send, in place of receiving")
@click.pass_obj
def bandwidth_command(target: ImageTarget, duration: int, chunk_size: int, to_server: bool) -> None:
    """Show how many bytes a second go between the image server and here."""
    size, took = target.run(
        lambda client: ObjectServerClient(client).test_bandwidth(
            duration, chunk_size, to_server=to_server
        )
    )
    way = "to" if to_server else "from"
    speed = size * 1e3 / took
    print(f"{size / 1e6:.1f} MB {way} the server in {took / 1e9:.2f} s: {speed:.1f} MB/s")


def _digest(line: str) -> bytes:
    try:
        digest = bytes.fromhex(line.strip())
    except ValueError:
        digest = b""
    if len(digest) != HASH_SIZE:
        raise click.UsageError(f"{line.strip()[:40]!r} is no SHA-512 in hex")
    return digest
