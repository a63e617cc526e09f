r"""The words between the agent and the guest's init, on the port ``org.smallstack.agent.0``.

Lines of text ended by LF. From the agent: ``stop``, ``reboot``, ``ping``. From the guest:
``ready`` (init listens; said when it notices that the agent's end was opened, which it may not if
that was closed for a moment only: hence a ``ping`` to a guest that is found), ``stopping`` and
``rebooting`` (said before the reset that follows), ``pong``. What is not such a line is skipped and
counted: a guest can say what it likes, and the agent keeps at most one line of it. No I/O here::

    guest bytes ──► Reader.feed ──► [Word, …]        request(Request.STOP) ──► b"stop\n"
"""

from enum import StrEnum

LINE_LIMIT = 64  # bytes, far above the longest word


class Word(StrEnum):
    """What a guest says."""

    READY = "ready"
    STOPPING = "stopping"
    REBOOTING = "rebooting"
    PONG = "pong"


class Request(StrEnum):
    """What the agent asks."""

    STOP = "stop"
    REBOOT = "reboot"
    PING = "ping"


_WORDS = {word.value.encode(): word for word in Word}


def request(asked: Request) -> bytes:
    """The bytes of a request."""
    return asked.value.encode() + b"\n"


class Reader:
    """Turns the guest's bytes into words, however they are cut."""

    __slots__ = ("_line", "_overlong", "skipped")

    def __init__(self) -> None:
        self._line = b""
        self._overlong = False
        self.skipped = 0
        """Lines that were no word."""

    def feed(self, data: bytes) -> list[Word]:
        """The words whose last byte is in ``data``."""
        *ended, rest = data.split(b"\n")
        words = []
        for piece in ended:
            word = _WORDS.get((self._line + piece).removesuffix(b"\r"))
            if word is None or self._overlong:
                self.skipped += 1
            else:
                words.append(word)
            self._line = b""
            self._overlong = False
        self._overlong = self._overlong or len(self._line) + len(rest) > LINE_LIMIT
        self._line = b"" if self._overlong else self._line + rest
        return words
