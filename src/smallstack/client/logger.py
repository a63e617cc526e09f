"""The client of the Logger service: the log of a daemon, and how much it tells."""

from collections.abc import AsyncGenerator, Sequence

from smallstack.client.service import ServiceClient
from smallstack.proto import logger as proto


class LoggerClient(ServiceClient):
    """Of any daemon; a failure but that of `watch` is a CallError."""

    service = "Logger"

    async def print(self, words: Sequence[str]) -> None:
        """Write a line into the log."""
        await self.call("Print", proto.PrintRequest(args=list(words)), proto.PrintResponse)

    async def debug(self, level: int, words: Sequence[str]) -> None:
        """Write a line that shows from a debug level on, 0 to 255."""
        request = proto.DebugRequest(args=list(words), level=level)
        await self.call("Debug", request, proto.DebugResponse)

    async def set_debug_level(self, level: int) -> None:
        """Let the log tell more, or no more than usual: -1."""
        request = proto.SetDebugLevelRequest(level=level)
        await self.call("SetDebugLevel", request, proto.SetDebugLevelResponse)

    async def get_stack_trace(self) -> str:
        """Where everything is that runs or waits in the daemon."""
        reply = await self.call(
            "GetStackTrace", proto.GetStackTraceRequest(), proto.GetStackTraceResponse
        )
        return reply.data.decode("utf-8", "replace")

    async def watch(
        self, debug_level: int = -1, include: str = "", exclude: str = ""
    ) -> AsyncGenerator[str, None]:
        """The log's lines from now on, as they come.

        Only lines that match ``include``, and never those that match ``exclude``: expressions as
        RE2 has them. Raises ServiceError, and ConnectionClosedError when the daemon ends.
        """
        async with self.client.raw("Logger.Watch") as conn:
            conn.encode(
                proto.WatchRequest(
                    debug_level=debug_level, include_regex=include, exclude_regex=exclude
                )
            )
            await conn.flush()
            self.check(await conn.decode(proto.WatchResponse))
            while True:
                yield (await conn.read_line()).decode("utf-8", "replace")
