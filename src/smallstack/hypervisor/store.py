"""What the agent has on disk. Names and forms are upstream's, ours are in files beside them.

::

    <state>/uuid                    32 hex digits
    <state>/root-cookie             32 random bytes, new at every start
    <state>/disabled                there: no creates, no starts
    <state>/key.pem                 see host_key.py
    <state>/address-pool.json       see network.book
    <state>/subnets.json
    <state>/owners.json             see owners.py                                    (ours)
    <state>/journals/               creates in progress, see steps.Journal           (ours)
    <state>/objects/                the object cache                                 (ours)
    <state>/boot-loaders/           see volumes.bootloader                           (ours)
    <state>/VMs/<ip>/info.json      the VM and where its volumes are
                    /agent.json     what only this agent has to know                 (ours)
                    /unacknowledged there until the creator acknowledges             (ours)
                    /create-request.json
                    /user-data.raw  0600
                    /uefi-variables.fd 0600; of a VM with UEFI               (ours)
                    /pidfile, monitor.sock, serial0.sock, console/ …   see machine.start
    <volumes>/<ip>/root, kernel, initrd
    <volumes>/bricks/               see volumes.brick                                (ours)

A record is written to a temporary name, synced and renamed: after a crash there is the old one or
the new one. Everything here blocks; callers use threads.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from smallstack.durable import private_directory, replace_file, sync_directory
from smallstack.hypervisor.errors import RecordError, VmExistsError
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.proto.kinds import Message
from smallstack.proto.vm import LocalVmInfo
from smallstack.srpc import json_coder
from smallstack.telemetry.errors import SmallStackError, describe

INFO = "info.json"
AGENT = "agent.json"
REQUEST = "create-request.json"
USER_DATA = "user-data.raw"
UNACKNOWLEDGED = "unacknowledged"
ROOT, SECONDARY = "root", "secondary-volume."
"""Names of volumes' files; behind the latter a number."""
PRIVATE = 0o600
"""The mode of what tells of a VM; QEMU gets descriptors, and reads no file by its name."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Layer(msgspec.Struct, kw_only=True):
    """How a VM's file `ROOT` lies on disk: raw, or a qcow2 overlay of the brick ``backing``.

    Every other volume is what its record says, a root that was written anew (root.1) too.

    ``loader`` is the name of the brick's boot loader, if it has one; ``init`` what a kernel that is
    booted directly starts, where that is not /sbin/init.
    """

    format: Literal["raw", "qcow2"] = "raw"
    backing: str = ""
    loader: str = ""
    init: str = ""


class AgentRecord(msgspec.Struct, kw_only=True):
    """What only this agent has to know of a VM."""

    lease: bool = True
    """Whether the VM is to get its address by DHCP."""
    root: Layer = msgspec.field(default_factory=Layer)
    slot: int = -1
    """Whose of QEMU's users are its own, see users.py; -1: a record of before there were any."""


def root_index(record: LocalVmInfo) -> int | None:
    """Which volume of a VM is the file `ROOT`; None when there is none any more."""
    for index, location in enumerate(record.volume_locations):
        if Path(location.filename).name == ROOT:
            return index
    return None


def snapshot_name(volume: str, name: str) -> str:
    """The file of a volume's snapshot, beside it."""
    return f"{volume}.snapshot:{name}" if name else f"{volume}.snapshot"


def to_json(message: Message) -> bytes:
    """A message as upstream writes it into files: four-space indent, LF at the end."""
    return json_coder.to_json(message, indent=4) + b"\n"


class VmDirectory:
    """The directory of one VM."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def ip(self) -> str:
        """The VM's name."""
        return self.path.name

    @property
    def user_data(self) -> Path:
        """The file that the guest gets as ``/latest/user-data``; there may be none."""
        return self.path / USER_DATA

    def create(self) -> None:
        """Make it, new. Raises VmExistsError or OSError."""
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            raise VmExistsError(path=self.path) from None

    def write(self, record: bytes, *, sync: bool = True) -> None:
        """Replace the VM's record by this, see `to_json`. Raises OSError."""
        replace_file(self.path / INFO, record, PRIVATE, sync=sync)

    def read(self) -> LocalVmInfo:
        """The VM's record. Raises RecordError; FileNotFoundError when there is none."""
        return read_record(self.path / INFO, LocalVmInfo)

    def write_agent(self, record: AgentRecord, *, sync: bool = True) -> None:
        """Replace our own record. Raises OSError."""
        data = msgspec.json.format(msgspec.json.encode(record), indent=4) + b"\n"
        replace_file(self.path / AGENT, data, PRIVATE, sync=sync)

    def read_agent(self) -> AgentRecord:
        """Our own record, the default where there is none. Raises RecordError."""
        path = self.path / AGENT
        try:
            return msgspec.json.decode(path.read_bytes(), type=AgentRecord)
        except FileNotFoundError:
            return AgentRecord()
        except (OSError, msgspec.MsgspecError) as error:
            raise RecordError(action="read", path=path, detail=describe(error)) from error

    @property
    def is_acknowledged(self) -> bool:
        """Whether the creator knows that the VM exists."""
        return not (self.path / UNACKNOWLEDGED).exists()

    def expect_acknowledgement(self) -> None:
        """Leave a mark that `acknowledge` removes: that works on a full disk too."""
        (self.path / UNACKNOWLEDGED).touch()

    def acknowledge(self) -> None:
        """The VM stays. Raises OSError."""
        mark = self.path / UNACKNOWLEDGED
        if mark.exists():
            mark.unlink(missing_ok=True)
            sync_directory(self.path)

    def write_request(self, request: CreateVmRequest) -> None:
        """Keep what was asked for, without private keys. Nothing depends on it: no sync."""
        kept = msgspec.structs.replace(request, identity_key=b"")
        replace_file(self.path / REQUEST, to_json(kept), PRIVATE, sync=False)

    @property
    def new_user_data(self) -> Path:
        """Where new user data are written before `swap_user_data`."""
        return self.path / (USER_DATA + ".new")

    @property
    def old_user_data(self) -> Path:
        """What they were before the latest change; there may be none."""
        return self.path / (USER_DATA + ".old")

    def restore_user_data(self) -> None:
        """Put the old user data back. Raises OSError, FileNotFoundError when there are none."""
        self.old_user_data.replace(self.user_data)
        sync_directory(self.path)

    def discard_old_user_data(self) -> None:
        """Forget the old user data; none are fine. Raises OSError."""
        self.old_user_data.unlink(missing_ok=True)
        sync_directory(self.path)

    def read_request(self) -> CreateVmRequest:
        """What was asked for; see `write_request`. Raises RecordError, FileNotFoundError."""
        return read_record(self.path / REQUEST, CreateVmRequest)

    def swap_user_data(self) -> None:
        """Put the new user data in place; the former become ``.old``. There are always some.

        Raises OSError.
        """
        new, old = self.new_user_data, self.old_user_data
        fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if self.user_data.exists():
            old.unlink(missing_ok=True)
            os.link(self.user_data, old)
        new.replace(self.user_data)
        sync_directory(self.path)

    def remove(self) -> None:
        """Delete it and all in it, the record last: until then a start finds the VM again."""
        if not self.path.exists():
            return
        for entry in self.path.iterdir():
            if entry.name == INFO:
                continue
            remove_tree(entry)
        (self.path / INFO).unlink(missing_ok=True)
        self.path.rmdir()


class Store:
    """The state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vms = directory / "VMs"
        self.journals = directory / "journals"
        self.objects = directory / "objects"
        self.boot_loaders = directory / "boot-loaders"

    def prepare(self) -> None:
        """Make what is missing, and a new root cookie. Raises RecordError."""
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            for path in (self.vms, self.journals, self.objects):
                private_directory(path)
            if not (self.directory / "uuid").exists():
                replace_file(self.directory / "uuid", secrets.token_hex(16).encode() + b"\n")
            replace_file(self.root_cookie, secrets.token_bytes(32), PRIVATE)
        except OSError as error:
            raise RecordError(action="use", path=self.directory, detail=describe(error)) from error

    def close(self) -> None:
        """The agent ends in good order."""
        self.root_cookie.unlink(missing_ok=True)

    @property
    def root_cookie(self) -> Path:
        """Who can read this file is root of this machine."""
        return self.directory / "root-cookie"

    @property
    def disabled_file(self) -> Path:
        """The mark of a disabled Hypervisor."""
        return self.directory / "disabled"

    @property
    def disabled(self) -> bool:
        """Whether creates and starts are refused."""
        return self.disabled_file.exists()

    def disable(self, disable: bool) -> None:
        """Refuse creates and starts from now on, or no more. Raises OSError."""
        if disable:
            self.disabled_file.touch()
        else:
            self.disabled_file.unlink(missing_ok=True)
        sync_directory(self.directory)

    def vm(self, ip: str) -> VmDirectory:
        """The directory of a VM, whether it exists or not."""
        return VmDirectory(self.vms / ip)

    def list(self) -> Iterator[VmDirectory]:
        """Every directory that could be a VM's, by name."""
        for path in sorted(self.vms.iterdir()):
            try:
                IPv4Address(path.name)
            except AddressValueError:
                continue
            yield VmDirectory(path)


def remove_tree(path: Path) -> None:
    """Delete a file or directory; one that is gone already is fine. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=False)
    else:
        path.unlink(missing_ok=True)


def read_record(path: Path, type_: type[M]) -> M:
    """A record of JSON. Raises RecordError; FileNotFoundError when there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(action="read", path=path, detail=describe(error)) from error
    lines = data.splitlines(keepends=True)
    # Upstream's tools take comment lines in JSON files.
    wanted = [line for line in lines if not line.lstrip().startswith((b"#", b"//", b"!"))]
    try:
        return json_coder.from_json(b"".join(wanted), type_)
    except (SmallStackError, ValueError) as error:
        raise RecordError(action="read", path=path, detail=describe(error)) from error
