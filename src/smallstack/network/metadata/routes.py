"""What the metadata service answers; no I/O.

Paths (the paper's Appendix 1)::

    /datasource/SmallStack                      true
    /latest/is-externally-patchable             true
    /latest/dynamic/epoch-time                  <seconds>.<nanoseconds, 9 digits>
    /latest/dynamic/instance-identity/document  the VM's record, JSON indented by four spaces
    /latest/user-data                           the VM's user data, byte for byte, or 404
    /nocloud/meta-data                          instance id and host name, JSON (and so YAML)
    /nocloud/user-data                          the user data again, empty if there are none
    /nocloud/vendor-data                        empty
    a beginning of one of these                 what can follow, up to the next slash, one per line
    /*                                          all of these, without their first slash

Those of ``nocloud`` are what cloud-init's data source of that name asks for below the URL that it
finds in the SMBIOS serial number; it takes a 404 for a passing failure and asks again and again.

Anything else, and any caller that is not a VM, gets 404 with an empty body. Method and headers do
not matter.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from smallstack.proto.vm import VmInfo

TEXT: Final = "text/plain; charset=utf-8"
BINARY: Final = "application/octet-stream"
NANOSECONDS: Final = 1_000_000_000
NOCLOUD: Final = "/nocloud"


class VmView(Protocol):
    """What the service has to know of a VM."""

    @property
    def info(self) -> VmInfo:
        """The VM's record."""

    @property
    def user_data(self) -> Path | None:
        """The file with the VM's user data, which need not exist."""


@dataclass(frozen=True)
class Text:
    """An answer that is at hand."""

    body: bytes


@dataclass(frozen=True)
class File:
    """An answer that is a file's content; without the file ``otherwise``, None: 404."""

    path: Path
    otherwise: bytes | None = None


@dataclass(frozen=True)
class Missing:
    """404 with an empty body."""


Answer = Text | File | Missing
Document = Callable[[VmInfo], bytes]
"""Turns a VM's record into the identity document."""


def _true(_vm: VmView, _now: int, _document: Document) -> Answer:
    return Text(b"true\n")


def _epoch_time(_vm: VmView, now: int, _document: Document) -> Answer:
    seconds, nanoseconds = divmod(now, NANOSECONDS)
    return Text(b"%d.%09d\n" % (seconds, nanoseconds))


def _identity(vm: VmView, _now: int, document: Document) -> Answer:
    return Text(document(vm.info))


def _user_data(vm: VmView, _now: int, _document: Document) -> Answer:
    return File(vm.user_data) if vm.user_data is not None else Missing()


def _nocloud(vm: VmView, _now: int, _document: Document) -> Answer:
    # Another VM at the same address is another instance: its first boot is one again.
    info = vm.info
    data = {"instance-id": f"{info.address.ip_address}-{info.created_on.unix_seconds}"}
    if info.hostname:
        data["local-hostname"] = info.hostname
    return Text(json.dumps(data).encode() + b"\n")


def _nocloud_user_data(vm: VmView, _now: int, _document: Document) -> Answer:
    return File(vm.user_data, b"") if vm.user_data is not None else Text(b"")


def _nothing(_vm: VmView, _now: int, _document: Document) -> Answer:
    return Text(b"")


PATHS: Final[Mapping[str, Callable[[VmView, int, Document], Answer]]] = {
    "/datasource/SmallStack": _true,
    "/latest/is-externally-patchable": _true,
    "/latest/dynamic/epoch-time": _epoch_time,
    "/latest/dynamic/instance-identity/document": _identity,
    "/latest/user-data": _user_data,
    f"{NOCLOUD}/meta-data": _nocloud,
    f"{NOCLOUD}/user-data": _nocloud_user_data,
    f"{NOCLOUD}/vendor-data": _nothing,
}


def answer(path: str, vm: VmView | None, now: int, document: Document) -> Answer:
    """What ``vm`` gets for ``path`` at ``now``, nanoseconds since the epoch."""
    if vm is None:
        return Missing()
    known = PATHS.get(path)
    if known is not None:
        return known(vm, now, document)
    listed = {name[1:] for name in PATHS} if path == "/*" else _following(path)
    if not listed:
        return Missing()
    return Text("".join(f"{name}\n" for name in sorted(listed)).encode())


def _following(path: str) -> set[str]:
    """What can follow, up to the next slash, for a path to begin one of ours."""
    found = set()
    for name in PATHS:
        if path and name.startswith(path) and name != path:
            found.add(name[len(path) :].removeprefix("/").partition("/")[0])
    return found
