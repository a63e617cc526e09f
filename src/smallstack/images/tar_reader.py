"""Reads tar archives, one member after the other, trusting nothing that stands in them.

POSIX.1-1988 (ustar), POSIX.1-2001 (pax: long names, exact times, large numbers, attributes) and
what GNU tar writes by default (long names and links, base-256 numbers). Sparse members, dump
directories and multi-volume archives are refused. Lengths are bounded and an archive must have its
end mark: one that was cut is an error wherever it was cut.
"""

import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol, runtime_checkable

from smallstack.images.decompress import Readable
from smallstack.images.errors import TarError
from smallstack.images.posix_acl import is_minimal, parse_acl

BLOCK: Final = 512
MAX_EXTENSION: Final = 8 << 20
"""Bytes of one extended header: names and attributes of one member."""
MAX_FILE: Final = 16 << 40
"""Bytes of one member."""
MAX_ID: Final = (1 << 32) - 2
_MAX_SECONDS: Final = 1 << 53
_KINDS: Final = {
    b"\0": stat.S_IFREG,
    b"0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"1": 0,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_NO_MEMBERS: Final = frozenset({b"V"})
_XATTR: Final = b"SCHILY.xattr."
_ACLS: Final = {
    b"SCHILY.acl.access": b"system.posix_acl_access",
    b"SCHILY.acl.default": b"system.posix_acl_default",
}


@runtime_checkable
class Skipping(Readable, Protocol):
    """A source in which what is not wanted need not be read."""

    def skip(self, size: int, /) -> int:
        """Go on by ``size`` bytes, or to the end; how many those were."""


class Member(NamedTuple):
    """One member. ``kind`` is the type bits of its mode, 0 for a hard link to ``target``."""

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]


class TarReader:
    """The members of an archive; read a member's content before asking for the next one."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._global: dict[bytes, bytes] = {}
        self._left = 0
        self._padding = 0
        self._name = b""

    def members(self) -> Iterator[Member]:
        """Every member in turn; raises TarError."""
        pax: dict[bytes, bytes] = {}
        long_name = long_target = None
        first = True
        while (header := self._header(first)) is not None:
            first = False
            kind = header[156:157]
            size = _number(header[124:136], "size")
            if kind in b"xgXLK":
                data = self._extension(size)
                if kind == b"g":
                    self._global |= _parse_pax(data)
                elif kind == b"L":
                    long_name = data.rstrip(b"\0")
                elif kind == b"K":
                    long_target = data.rstrip(b"\0")
                else:
                    pax = _parse_pax(data)
                continue
            member = _member(header, {**self._global, **pax}, long_name, long_target)
            pax, long_name, long_target = {}, None, None
            self._begin(member)
            if kind not in _NO_MEMBERS:
                yield member
            self._skip()
        if pax or long_name is not None or long_target is not None:
            raise TarError(detail="it ends behind an extended header that belongs to nothing")

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes of the current member's content; b"" at its end. Raises TarError."""
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        data = self._source.read(wanted)
        if not data:
            raise TarError(detail=f"it ends in the middle of {shown(self._name)}")
        self._left -= len(data)
        return data

    def _begin(self, member: Member) -> None:
        self._name = member.name
        self._left = member.size
        self._padding = -member.size % BLOCK

    def _skip(self) -> None:
        if isinstance(self._source, Skipping):
            self._left -= self._source.skip(self._left)
        while self.read(1 << 18):
            pass
        self._exactly(self._padding)

    def _header(self, first: bool) -> bytes | None:
        """The next header block; None at the end mark."""
        block = self._source.read(BLOCK)
        if not block:
            detail = "it is empty" if first else "it ends without its end mark: it was cut"
            raise TarError(detail=detail)
        block += self._exactly(BLOCK - len(block))
        if block.count(0) == BLOCK:
            return None
        unsigned = sum(block) - sum(block[148:156]) + 8 * 32
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        try:
            right = _octal(block[148:156]) in {unsigned, signed}
        except ValueError:
            right = False
        if not right:
            what = "it is no tar archive" if first else "a header in it is damaged"
            raise TarError(detail=what)
        return block

    def _extension(self, size: int) -> bytes:
        if size > MAX_EXTENSION:
            raise TarError(detail=f"it has an extended header of {size} bytes")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._source.read(count - len(data))
            if not more:
                raise TarError(detail="it ends in the middle of a header: it was cut")
            data += more
        return data


def _member(
    header: bytes, pax: dict[bytes, bytes], long_name: bytes | None, long_target: bytes | None
) -> Member:
    kind = header[156:157]
    name = _text(header[:100])
    magic = header[257:265]
    if magic[:6] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = prefix + b"/" + name
    name = pax.get(b"path", name if long_name is None else long_name)
    target = pax.get(b"linkpath", _text(header[157:257]) if long_target is None else long_target)
    if b"\0" in name or b"\0" in target:
        raise TarError(detail=f"the name {shown(name)} has a zero byte")
    if any(key.startswith(b"GNU.sparse.") for key in pax) or kind == b"S":
        raise TarError(detail=f"{shown(name)} is stored as a sparse file: archive without --sparse")
    if kind not in _KINDS and kind not in _NO_MEMBERS:
        raise TarError(detail=f"{shown(name)} is a member of the unknown type {kind!r}")
    type_bits = _KINDS.get(kind, 0)
    if type_bits == stat.S_IFREG and name.endswith(b"/"):
        type_bits = stat.S_IFDIR  # as archives wrote it before there was a type for it
    size = _decimal(pax, b"size", _number(header[124:136], "size"))
    if type_bits != stat.S_IFREG:
        size = 0  # whatever the header says, nothing follows it
    if size > MAX_FILE:
        raise TarError(detail=f"{shown(name)} claims to have {size} bytes")
    owners = []
    for key, field in ((b"uid", header[108:116]), (b"gid", header[116:124])):
        number = _decimal(pax, key, _number(field, key.decode()))
        if number > MAX_ID:
            raise TarError(detail=f"{shown(name)} has the {key.decode()} {number}")
        owners.append(number)
    mtime = pax.get(b"mtime")
    if mtime is None:
        mtime_ns = _number(header[136:148], "time", signed=True) * 10**9
    else:
        mtime_ns = _nanoseconds(mtime)
    if abs(mtime_ns) >= _MAX_SECONDS * 10**9:
        raise TarError(detail=f"{shown(name)} has a time out of range")
    device = (0, 0)
    if type_bits in {stat.S_IFCHR, stat.S_IFBLK}:
        device = _number(header[329:337], "device"), _number(header[337:345], "device")
        if device[0] >= 1 << 12 or device[1] >= 1 << 20:
            raise TarError(detail=f"{shown(name)} is a device {device[0]}:{device[1]}")
    return Member(
        name,
        type_bits,
        _number(header[100:108], "mode") & 0o7777,
        owners[0],
        owners[1],
        size,
        mtime_ns,
        target,
        device[0],
        device[1],
        _xattrs(pax, name),
    )


def _xattrs(pax: dict[bytes, bytes], name: bytes) -> dict[bytes, bytes]:
    found = {}
    for key, value in pax.items():
        if key.startswith(_XATTR):
            # GNU tar writes '=' and '%' of an attribute's name as these.
            found[key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")] = value
        elif key in _ACLS:
            try:
                acl = parse_acl(value.decode())
            except ValueError as error:
                raise TarError(detail=f"access control list of {shown(name)}: {error}") from None
            if key == b"SCHILY.acl.default" or not is_minimal(acl):
                found[_ACLS[key]] = acl
    return found


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records ``LENGTH KEY=VALUE LF``, the length in decimal and of the whole record."""
    found = {}
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank] if blank > 0 else b""
        if not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break
            raise TarError(detail="it has an extended header that is damaged")
        end = position + int(digits)
        equals = data.find(b"=", blank, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError(detail="it has an extended header that is damaged")
        found[data[blank + 1 : equals]] = data[equals + 1 : end - 1]
        position = end
    return found


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip()
    if digits and not digits.isdigit():
        raise ValueError
    return int(digits, 8) if digits else 0


def _number(field: bytes, what: str, signed: bool = False) -> int:
    """Octal digits, or GNU's base 256 when the first bit is set; raises TarError."""
    try:
        if field[0] & 0x80:
            value = int.from_bytes(field, "big", signed=False)
            bits = 8 * len(field)
            value = value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
        else:
            value = _octal(field)
    except ValueError:
        raise TarError(detail=f"a header in it has a {what} that is no number") from None
    if value < 0 and not signed:
        raise TarError(detail=f"a header in it has a negative {what}")
    return value


def _decimal(pax: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    value = pax.get(key)
    if value is None:
        return otherwise
    if not value.isdigit() or len(value) > 20:
        raise TarError(detail=f"an extended header has a {key.decode()} that is no number")
    return int(value)


def _nanoseconds(text: bytes) -> int:
    """Of a decimal number of seconds, to the nanosecond; raises TarError."""
    sign, digits = (-1, text[1:]) if text.startswith(b"-") else (1, text)
    whole, _, fraction = digits.partition(b".")
    if not whole.isdigit() or len(whole) > 18 or (fraction and not fraction.isdigit()):
        raise TarError(detail="an extended header has a time that is no number")
    return sign * (int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0")))


def shown(name: bytes) -> str:
    """A name in an error's text, cut where it is long."""
    text = name[:200].decode(errors="backslashreplace")
    return repr(text + ("…" if len(name) > 200 else ""))
