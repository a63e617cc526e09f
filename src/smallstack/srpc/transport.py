"""A connection that was ours, as the transport of another protocol: of pages, say, on our port."""

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallstack.srpc.stream import Stream


class StreamTransport(asyncio.Transport):
    """A stream, plain or TLS, as a transport; made by `Stream.hand_over`."""

    def __init__(
        self,
        stream: "Stream",
        inner: asyncio.Transport,
        protocol: asyncio.BaseProtocol,
        facts: dict[str, object],
    ) -> None:
        super().__init__({"ssl_object": stream.tls, **facts})
        self._stream = stream
        self._inner = inner
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Facts given at the hand-over, ``ssl_object``, and what the socket's transport knows."""
        found = super().get_extra_info(name)
        return self._inner.get_extra_info(name, default) if found is None else found

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol in charge."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._inner.is_closing()

    def is_reading(self) -> bool:
        """Whether it is reading."""
        return self._inner.is_reading()

    def pause_reading(self) -> None:
        """Stop calling data_received."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading."""
        self._inner.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        self._stream.write(bytes(data))
        self._stream.push()

    def can_write_eof(self) -> bool:
        """TLS cannot end one direction only."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes not yet sent."""
        return self._inner.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to pause the writer."""
        self._inner.set_write_buffer_limits(high, low)

    def close(self) -> None:
        """Send what is queued, then close."""
        self._stream.close()

    def abort(self) -> None:
        """Close at once."""
        self._stream.abort()
