"""The kinds of value that travel: numbers, addresses, times, digests, and how a field is marked.

A message is a :class:`Message`, a keyword-only msgspec Struct whose fields stand in the order in
which gob sends them. The annotation of a field says both what Python holds and what goes over the
wire: ``Uint64`` is an ``int`` here and an unsigned integer there. The codecs read nothing but
these annotations, so a new message needs no code.

Not here: any encoding. See ``smallstack.srpc.gob`` and ``smallstack.srpc.json_coder``.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Annotated, ClassVar, Final, Self, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")


class Wire(msgspec.Struct, frozen=True):
    """How a scalar travels: its gob kind, and its type's name in definitions of composite types."""

    kind: str
    go: str


class Named(msgspec.Struct, frozen=True):
    """A map or list type with a name of its own, ``package.name`` in composite types."""

    package: str
    name: str


class Mark(msgspec.Struct, frozen=True):
    """A property of a field or element that changes how it is named or written."""

    what: str


POINTER: Final = Mark("pointer")
EMBEDDED: Final = Mark("embedded")
OMIT_EMPTY: Final = Mark("omit-empty")

Embedded: TypeAlias = Annotated[T, EMBEDDED]
"""A structure inside another under its type's name; JSON puts its fields into the outer object."""

Pointed: TypeAlias = Annotated[T, POINTER]
"""A list element or map value that is sent through a pointer; never None here."""

Omit: TypeAlias = Annotated[T, OMIT_EMPTY]
"""A field that JSON leaves out when it is empty. gob leaves out every empty field."""

Int: TypeAlias = Annotated[int, Wire("int", "int")]
Int16: TypeAlias = Annotated[int, Wire("int16", "int16")]
Int32: TypeAlias = Annotated[int, Wire("int32", "int32")]
Int64: TypeAlias = Annotated[int, Wire("int", "int64")]
Uint: TypeAlias = Annotated[int, Wire("uint", "uint")]
Uint8: TypeAlias = Annotated[int, Wire("uint8", "uint8")]
Uint16: TypeAlias = Annotated[int, Wire("uint16", "uint16")]
Uint32: TypeAlias = Annotated[int, Wire("uint32", "uint32")]
Uint64: TypeAlias = Annotated[int, Wire("uint", "uint64")]

Duration: TypeAlias = Annotated[int, Wire("int", "time.Duration")]
"""Nanoseconds, signed."""

IP: TypeAlias = Annotated[str, Wire("ip", "net.IP")]
"""An address in text form; "" is no address. gob carries 4 or 16 bytes, JSON the text."""

Tags: TypeAlias = Annotated[dict[str, str], Named("tags", "Tags")]
MatchTags: TypeAlias = Annotated[dict[str, list[str]], Named("tags", "MatchTags")]

_GO_NAMES: Final = {
    "available_memory_in_mib": "AvailableMemoryInMiB",
    "dfm": "DFM",
    "disable_virtio": "DisableVirtIO",
    "first_dynamic_ip": "FirstDynamicIP",
    "have_vms": "HaveVMs",
    "image_url": "ImageURL",
    "information_database_url": "InformationDatabaseURL",
    "key_pem": "KeyPEM",
    "last_dynamic_ip": "LastDynamicIP",
    "memory_in_mib": "MemoryInMiB",
    "milli_cpus": "MilliCPUs",
    "num_cpus": "NumCPUs",
    "secondary_subnet_ids": "SecondarySubnetIDs",
    "stop_vms": "StopVMs",
    "url": "URL",
    "virtual_cpus": "VirtualCPUs",
    "vms": "VMs",
}


def go_name(attribute: str) -> str:
    """The wire name of a field: ``memory_in_mib`` is ``MemoryInMiB``."""
    special = _GO_NAMES.get(attribute)
    return special or "".join(part.capitalize() for part in attribute.split("_"))


class Message(msgspec.Struct, kw_only=True, rename=go_name):
    """What every message and record derives from.

    ``go_package`` qualifies its name in lists; ``go_type`` is the name when not the class's own.
    """

    go_package: ClassVar[str] = ""
    go_type: ClassVar[str] = ""


NANOSECONDS_PER_SECOND: Final = 1_000_000_000
YEAR_ONE: Final = -62135596800
"""Unix seconds of 0001-01-01T00:00:00Z, the zero time."""

_EPOCH: Final = datetime(1970, 1, 1)
_RFC3339: Final = (
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(?:([Zz])|([+-])(\d\d):(\d\d))"
)


class Time(msgspec.Struct, frozen=True):
    """An instant, to the nanosecond, with the zone it was written in (None = UTC).

    Two times are equal when all three parts are; compare ``nanoseconds_since_epoch`` for instants.
    """

    unix_seconds: int = YEAR_ONE
    nanoseconds: int = 0
    zone_minutes: int | None = None

    @classmethod
    def now(cls) -> Self:
        """The present, in UTC."""
        return cls.from_nanoseconds(time.time_ns())

    @classmethod
    def zero(cls) -> Self:
        """The start of year 1: "not set"."""
        return cls()

    @classmethod
    def from_nanoseconds(cls, value: int) -> Self:
        """The instant that many nanoseconds after the Unix epoch, in UTC."""
        seconds, nanoseconds = divmod(value, NANOSECONDS_PER_SECOND)
        return cls(seconds, nanoseconds)

    @property
    def nanoseconds_since_epoch(self) -> int:
        """Nanoseconds after the Unix epoch."""
        return self.unix_seconds * NANOSECONDS_PER_SECOND + self.nanoseconds

    def is_zero(self) -> bool:
        """Whether this is the start of year 1."""
        return self.unix_seconds == YEAR_ONE and self.nanoseconds == 0

    def __str__(self) -> str:
        try:
            return self.rfc3339()
        except ValueError:
            return f"{self.unix_seconds} s after 1970"

    def rfc3339(self) -> str:
        """RFC 3339 with as many decimals as needed; raises ValueError where it has no text.

        That is outside the years 1 to 9999, and for zones of a day or more.
        """
        local = self.unix_seconds + 60 * (self.zone_minutes or 0)
        if abs(self.zone_minutes or 0) >= 24 * 60:
            raise ValueError(f"a zone {self.zone_minutes} minutes from UTC")
        try:
            text = (_EPOCH + timedelta(seconds=local)).isoformat()
        except OverflowError:
            raise ValueError(f"time {self.unix_seconds} s is outside years 1 to 9999") from None
        if self.nanoseconds:
            text += f".{self.nanoseconds:09d}".rstrip("0")
        if not self.zone_minutes:
            return text + "Z"
        hours, minutes = divmod(abs(self.zone_minutes), 60)
        return f"{text}{'+' if self.zone_minutes > 0 else '-'}{hours:02d}:{minutes:02d}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reverse of :meth:`rfc3339`; raises ValueError for anything but RFC 3339."""
        match = re.fullmatch(_RFC3339, text, re.ASCII)
        if match is None:
            raise ValueError(f"not an RFC 3339 time: {text[:64]!r}")
        date, clock, fraction, utc, sign, hours, minutes = match.groups()
        zone = None
        if not utc:
            if int(hours) > 23 or int(minutes) > 59:
                raise ValueError(f"not an RFC 3339 time: {text[:64]!r}")
            zone = (int(hours) * 60 + int(minutes)) * (-1 if sign == "-" else 1)
        moment = datetime.fromisoformat(f"{date}T{clock}")
        since = moment - _EPOCH
        seconds = since.days * 86400 + since.seconds - (zone or 0) * 60
        return cls(seconds, int((fraction or "0").ljust(9, "0")), zone or None)


HASH_SIZE: Final = 64


class Hash(bytes):
    """A SHA-512 digest: 64 bytes. gob carries an array of 64 numbers, JSON 128 hex digits."""

    zero: ClassVar[Hash]

    __slots__ = ()

    def __new__(cls, value: bytes = b"\0" * HASH_SIZE) -> Self:
        """Raises ValueError unless ``value`` is 64 bytes."""
        if len(value) != HASH_SIZE:
            raise ValueError(f"a SHA-512 digest has {HASH_SIZE} bytes, not {len(value)}")
        return super().__new__(cls, value)

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Hash.fromhex({self.hex()!r})"


Hash.zero = Hash()


class Word(IntEnum):
    """An enumeration: an unsigned integer in gob, a word in JSON.

    A number that this version does not know is kept as it is: ``State(99)`` prints as
    ``UNKNOWN State`` and goes back out as 99.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member

    @property
    def is_known(self) -> bool:
        """Whether the number has a word."""
        return self._value_ in type(self)._value2member_map_

    @property
    def text(self) -> str:
        """The word that upstream's tools print, such as ``failed to start``."""
        if not self.is_known:
            return f"UNKNOWN {type(self).__name__}"
        return self._name_.lower().replace("_", " ")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The value of a word; raises ValueError for a word that is not one."""
        for member in cls:
            if member.text == text:
                return member
        known = ", ".join(member.text for member in cls)
        raise ValueError(f"unknown {cls.__name__} {text[:64]!r}: use one of {known}")

    def __str__(self) -> str:
        return self.text
