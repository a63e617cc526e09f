"""``vm-control connect-to-vm-console``: a VM's display for VNC viewers on this machine."""

import asyncio
from contextlib import suppress

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, fail, run
from smallstack.client.hypervisor import HypervisorClient
from smallstack.telemetry.errors import SmallStackError, describe

CHUNK = 65536


@click.command("connect-to-vm-console")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.option(
    "--listen-port", type=click.IntRange(0, 65535), default=0, help="on 127.0.0.1; 0: a free one"
)
@click.option("--once", is_flag=True, help="end when the first viewer leaves")
@click.pass_obj
def command(target: Target, ip_address: str, listen_port: int, once: bool) -> None:
    """Let VNC viewers of this machine see a VM's display; Ctrl-C ends it."""
    left = asyncio.Event()
    connect = connector(target)

    async def viewer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with await connect() as client:
                await _relay(client, ip_address, reader, writer)
        except SmallStackError as error:
            click.echo(f"vm-control: {describe(error)}", err=True)
        finally:
            writer.transport.abort()
            left.set()

    async def work() -> None:
        async with await connect() as client, client.connect_console(ip_address):
            pass  # it has one, and it may be seen: else there is no use in waiting
        try:
            server = await asyncio.start_server(viewer, "127.0.0.1", listen_port)
        except OSError as error:
            fail(f"cannot listen on 127.0.0.1:{listen_port}: {error.strerror}")
        async with server:
            host, port = server.sockets[0].getsockname()
            click.echo(f"the display of {ip_address} is at {host}:{port} for VNC viewers", err=True)
            if once:
                await left.wait()
            else:
                await server.serve_forever()

    run(work())


async def _relay(
    client: HypervisorClient,
    ip_address: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Copy both ways until either side ends."""
    async with client.connect_console(ip_address) as display:

        async def seen() -> None:
            while data := await display.read_some(CHUNK):
                writer.write(data)
                await writer.drain()

        async def typed() -> None:
            while data := await reader.read(CHUNK):
                display.write(data)
                await display.flush()

        tasks = [asyncio.create_task(seen()), asyncio.create_task(typed())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, ConnectionError):
                await task
