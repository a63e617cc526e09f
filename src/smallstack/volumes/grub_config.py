"""The grub.cfg of a root whose image brings none: one entry, booted at once. Pure: bytes out.

Words are quoted in GRUB's single quotes, in which nothing but a single quote means anything
(GRUB Manual 2.06, "Quoting"): a kernel may have any name, and no option can become a command.
"""

from collections.abc import Iterator
from typing import Final

GRUB_CONFIG: Final = "/boot/grub/grub.cfg"

_HEAD: Final = b"""\
# Made by SmallStack for this VM: its image has no grub.cfg.
set default=0
set timeout=0
serial --unit=0 --speed=115200
if [ "$grub_platform" = pc ]; then
    terminal_input serial
    terminal_output serial
fi
"""


def grub_config(kernel: bytes, initrd: bytes | None, options: str) -> bytes:
    """A grub.cfg that boots ``kernel`` with ``initrd`` (absolute paths) and kernel options."""
    words = [_quoted(word.encode()) for word in _words(options)]
    lines = [_HEAD, b"menuentry 'Linux' {\n"]
    lines.append(b"    linux " + b" ".join([_quoted(kernel), *words]) + b"\n")
    if initrd is not None:
        lines.append(b"    initrd " + _quoted(initrd) + b"\n")
    lines.append(b"}\n")
    return b"".join(lines)


def _quoted(word: bytes) -> bytes:
    return b"'" + word.replace(b"'", rb"'\''") + b"'"


def _words(options: str) -> Iterator[str]:
    """Options as the kernel separates them: by spaces outside of double quotes.

    The quotes are left out: GRUB puts them again around a word with a space in it.
    """
    word, quoted, begun = "", False, False
    for char in options:
        if char == '"':
            quoted, begun = not quoted, True
        elif char.isspace() and not quoted:
            if begun:
                yield word
            word, begun = "", False
        else:
            word, begun = word + char, True
    if begun:
        yield word
