"""Moving to a Unix socket, the calling side of ``.LocalUpgradeToUnix``: see `srpc.local`.

It takes five round trips, a millisecond, and then saves the encryption: 0.12 ms of a call, and nine
tenths of the time of many bytes (measured side by side: 0.28 against 2.5 GB/s). So it is for
objects and for connections that stay; a create makes two calls and would take longer.
"""

import asyncio
import os
import socket

from smallstack.proto.srpc import (
    LocalUpgradeToUnixRequestOne,
    LocalUpgradeToUnixRequestTwo,
    LocalUpgradeToUnixResponseOne,
    LocalUpgradeToUnixResponseTwo,
)
from smallstack.srpc import framing
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError


async def move(conn: Connection) -> Connection | None:
    """The same conversation over the server's Unix socket, None when it stays where it is.

    Raises what reading from ``conn`` does, and ConnectionClosedError when the Unix socket turns out
    to be somebody else's.
    """
    conn.begin_call()
    conn.write(framing.UPGRADE + b"\n")
    await conn.flush()
    if await conn.read_line(framing.MAX_REPLY_LINE):
        return None
    cookie = os.urandom(8)
    conn.encode(LocalUpgradeToUnixRequestOne(client_cookie=cookie))
    await conn.flush()
    offer = await conn.decode(LocalUpgradeToUnixResponseOne)
    if offer.error:
        return None
    moved = await _enter(offer)
    done = False
    try:
        conn.encode(LocalUpgradeToUnixRequestTwo(sent_server_cookie=moved is not None))
        await conn.flush()
        verdict = await conn.decode(LocalUpgradeToUnixResponseTwo)
        if moved is None or verdict.error:
            return None
        if await moved.read_exactly(len(cookie)) != cookie:
            detail = f"{offer.socket_pathname} is not this server's"
            raise ConnectionClosedError(peer=conn.peer_name, detail=detail)
        moved.continues(conn)
        done = True
        return moved
    finally:
        if moved is not None and not done:
            moved.abort()


async def _enter(offer: LocalUpgradeToUnixResponseOne) -> Connection | None:
    """Show the server's cookie at its socket; None when that is not possible.

    Only abstract sockets: a path could lead to any service of this machine.
    """
    path = offer.socket_pathname
    if not path.startswith("@") or len(path.encode()) > 107 or "\0" in path:
        return None
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(sock, f"\0{path[1:]}")
        _, conn = await loop.create_unix_connection(Connection, sock=sock)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    try:
        conn.write(offer.server_cookie)
        await conn.flush()
        await conn.read_exactly(1)
    except ConnectionClosedError:
        conn.abort()
        return None
    except BaseException:
        conn.abort()
        raise
    return conn
