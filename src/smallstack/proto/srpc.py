"""Messages of SRPC itself: how two ends on one machine move to a Unix socket."""

from typing import ClassVar

from smallstack.proto.kinds import Message


class LocalUpgradeToUnixRequestOne(Message, kw_only=True):
    """First request of ``.LocalUpgradeToUnix``; the cookie has 8 bytes."""

    go_package: ClassVar[str] = "srpc"
    go_type: ClassVar[str] = "localUpgradeToUnixRequestOne"
    client_cookie: bytes = b""


class LocalUpgradeToUnixResponseOne(Message, kw_only=True):
    """Its reply; a path that starts with ``@`` is an abstract socket."""

    go_package: ClassVar[str] = "srpc"
    go_type: ClassVar[str] = "localUpgradeToUnixResponseOne"
    error: str = ""
    server_cookie: bytes = b""
    socket_pathname: str = ""


class LocalUpgradeToUnixRequestTwo(Message, kw_only=True):
    """Sent over TCP once the server's cookie was sent over the Unix socket."""

    go_package: ClassVar[str] = "srpc"
    go_type: ClassVar[str] = "localUpgradeToUnixRequestTwo"
    sent_server_cookie: bool = False


class LocalUpgradeToUnixResponseTwo(Message, kw_only=True):
    """The server's last word over TCP."""

    go_package: ClassVar[str] = "srpc"
    go_type: ClassVar[str] = "localUpgradeToUnixResponseTwo"
    error: str = ""
