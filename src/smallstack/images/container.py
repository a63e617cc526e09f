"""Container VMs: a container image's root, with the platform's kernel and init.

What is added, and nothing of the image is touched::

    /boot/…                   the platform's kernel
    /.smallstack/init         the platform's init, which the agent has the kernel start
    /.smallstack/container    what it is to run: see `describe_container`
    /dev /proc /sys /run /tmp, the working directory, /etc/resolv.conf, /etc/hosts: if missing

The platform is an image in the catalogue that says by ``/etc/smallstack/platform`` that its init
runs containers; its objects are at the server already. User and groups are resolved against the
container's own /etc/passwd and /etc/group, as the OCI image specification has it.
"""

import os
import signal
import stat
from dataclasses import dataclass
from typing import Final, Literal

from smallstack.images.build import Report, Sink
from smallstack.images.errors import OciError
from smallstack.images.filter import PathFilter
from smallstack.images.oci import Addition, ContainerBuild
from smallstack.images.oci_layers import Directory
from smallstack.images.oci_layout import ContainerImage, Execution
from smallstack.proto.filesystem import FileSystem

OURS: Final = b"/.smallstack"
INIT: Final = OURS + b"/init"
DESCRIPTION: Final = OURS + b"/container"
PLATFORM_MARK: Final = b"/etc/smallstack/platform"
MAX_DESCRIPTION: Final = 65535
"""Bytes; container.h of the init has the same bounds."""
MAX_ARGUMENTS: Final = 256
MAX_ENVIRONMENT: Final = 512
MAX_GROUPS: Final = 64
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AtEnd = Literal["stop", "restart", "stay"]
_MOUNT_POINTS: Final = {b"dev": 0o755, b"proc": 0o555, b"sys": 0o555, b"run": 0o755, b"tmp": 0o1777}
_PASSWD: Final = b"/etc/passwd"
_GROUP: Final = b"/etc/group"
_RESOLV_CONF: Final = b"/etc/resolv.conf"
_HOSTS: Final = b"/etc/hosts"
_HOSTS_CONTENT: Final = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"


@dataclass(frozen=True)
class Platform:
    """An image whose kernel and init a container is to have, and what follows its program's end."""

    name: str
    tree: FileSystem
    at_end: AtEnd = "stop"


@dataclass(frozen=True)
class _User:
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def from_container_vm(
    image: ContainerImage,
    platform: Platform,
    sink: Sink,
    path_filter: PathFilter | None = None,
    report: Report | None = None,
) -> FileSystem:
    """The tree of a container VM. Blocks; raises OciError, and what the sink raises."""
    kernel, init = _parts(platform)
    build = ContainerBuild(image, sink, report or Report())
    build.read_contents(path_filter, (_PASSWD, _GROUP))
    execution = image.config.config or Execution()
    description = describe_container(execution, build.kept, platform.at_end)
    if build.stack.find(OURS) is not None:
        raise OciError(detail=f"it has {OURS.decode()}, which is where the platform's init goes")
    for name, mode in _MOUNT_POINTS.items():
        _make_directories(build, b"/" + name, mode)
    _make_directories(build, b"/boot")
    _make_directories(build, b"/etc")
    _make_directories(build, os.fsencode(execution.working_dir or "/"))
    if _is_free(build, _RESOLV_CONF):
        build.add(_RESOLV_CONF, Addition(stat.S_IFLNK | 0o777, target=b"/run/resolv.conf"))
    if _is_free(build, _HOSTS):
        build.add_file(_HOSTS, _HOSTS_CONTENT, 0o644)
    for name, addition in kernel:
        if name.startswith(b"vmlinuz-") and _has_kernel(build):
            raise OciError(detail="it has a kernel of its own in /boot: add it without --platform")
        if _is_free(build, b"/boot/" + name):
            build.add(b"/boot/" + name, addition)
    _make_directories(build, OURS)
    build.add(INIT, init)
    build.add_file(DESCRIPTION, description, 0o644)
    return build.finish()


def describe_container(execution: Execution, files: dict[bytes, bytes], at_end: AtEnd) -> bytes:
    """What the init reads: strings ``KEY=VALUE``, each with a NUL behind it.

    The first is ``smallstack-container=1``. ``argument`` and ``environment`` come once for each,
    in order; ``label`` and ``port`` are for whoever looks at the image. ``files`` are the
    container's own /etc/passwd and /etc/group. Raises OciError.
    """
    arguments = [*(execution.entrypoint or []), *(execution.cmd or [])]
    if not arguments or not arguments[0]:
        raise OciError(detail="it names no program: it has neither Entrypoint nor Cmd")
    directory = execution.working_dir or "/"
    if not directory.startswith("/"):
        raise OciError(detail=f"its WorkingDir {directory[:100]!r} is not absolute")
    user = _user(execution.user or "", files)
    environment = list(execution.env or [])
    names = {entry.partition("=")[0] for entry in environment}
    if any("=" not in entry or entry.startswith("=") for entry in environment):
        raise OciError(detail="its Env has an entry that is not NAME=VALUE")
    if "PATH" not in names:
        environment.append(PATH)
    if "HOME" not in names:
        environment.append(f"HOME={user.home}")
    for what, count, most in (
        ("arguments", len(arguments), MAX_ARGUMENTS),
        ("variables in its Env", len(environment), MAX_ENVIRONMENT),
    ):
        if count > most:
            raise OciError(detail=f"it has {count} {what}; {most} are the most")
    strings = [
        ("smallstack-container", "1"),
        ("at-end", at_end),
        ("user", str(user.uid)),
        ("group", str(user.gid)),
        *(("more-group", str(gid)) for gid in user.groups),
        ("directory", directory),
        ("signal", str(_signal(execution.stop_signal or "SIGTERM"))),
        *(("argument", argument) for argument in arguments),
        *(("environment", entry) for entry in environment),
        *(("port", port) for port in sorted(execution.exposed_ports or {})),
        *(("label", f"{key}={value}") for key, value in sorted((execution.labels or {}).items())),
    ]
    if any("\0" in value for _, value in strings):
        raise OciError(detail="its configuration has a zero byte in a string")
    packed = b"".join(f"{key}={value}\0".encode(errors="surrogateescape") for key, value in strings)
    if len(packed) > MAX_DESCRIPTION:
        raise OciError(
            detail=f"arguments, environment and labels take {len(packed)} bytes; "
            f"{MAX_DESCRIPTION} are the most"
        )
    return packed


def _parts(platform: Platform) -> tuple[list[tuple[bytes, Addition]], Addition]:
    """What is in the platform's /boot, and its init; raises OciError."""
    tree = platform.tree
    found = {path: tree.lookup(path) for path in (PLATFORM_MARK, b"/boot", b"/sbin/init")}
    for path, index in found.items():
        if index is None:
            raise OciError(
                detail=f"{platform.name} is no platform for containers: it lacks {path.decode()}"
            )
    boot = [
        (name, _same(tree, index))
        for name, index in tree.children(found[b"/boot"] or 0)
        if stat.S_ISREG(tree.inode(index).mode)
    ]
    if sum(name.startswith(b"vmlinuz-") for name, _ in boot) != 1:
        raise OciError(detail=f"{platform.name} has not one /boot/vmlinuz-*: it is no platform")
    return boot, _same(tree, found[b"/sbin/init"] or 0)


def _same(tree: FileSystem, index: int) -> Addition:
    inode = tree.inode(index)
    return Addition(
        inode.mode,
        target=inode.target,
        size=inode.size,
        hash=inode.hash,
        mtime_ns=inode.mtime_ns or 0,
        xattrs=inode.xattrs,
    )


def _make_directories(build: ContainerBuild, path: bytes, mode: int = 0o755) -> None:
    """Make what of a path is missing; where something else than a directory is, that stays."""
    so_far = b""
    for part in path.split(b"/"):
        if part in {b"", b"."}:
            continue
        if part == b".." or len(part) > 255:
            raise OciError(detail=f"its WorkingDir {os.fsdecode(path[:100])!r} is no plain path")
        so_far += b"/" + part
        found = build.stack.find(so_far)
        if found is None:
            build.add(so_far, Addition(stat.S_IFDIR | mode))
        elif not isinstance(found, Directory):
            return


def _is_free(build: ContainerBuild, path: bytes) -> bool:
    """Whether something can be put at a path in a directory."""
    above = build.stack.find(path.rpartition(b"/")[0])
    return isinstance(above, Directory) and build.stack.find(path) is None


def _has_kernel(build: ContainerBuild) -> bool:
    boot = build.stack.find(b"/boot")
    return not isinstance(boot, Directory) or any(
        name.startswith((b"vmlinuz-", b"initrd.img-", b"initramfs-")) for name in boot.children
    )


def _signal(name: str) -> int:
    """Of a number, or a name with or without SIG; raises OciError."""
    if name.isdecimal() and len(name) < 3 and 1 <= int(name) <= 64:
        return int(name)
    upper = name.upper()
    if upper.startswith("SIGRTMIN+") and upper[9:].isdecimal() and len(upper) < 12:
        number = 34 + int(upper[9:])  # the C libraries keep the first two
        if number <= 64:
            return number
    found = signal.Signals.__members__.get(upper if upper.startswith("SIG") else "SIG" + upper)
    if found is None:
        raise OciError(detail=f"its StopSignal {name[:100]!r} is not known")
    return found


def _user(text: str, files: dict[bytes, bytes]) -> _User:
    """Who ``user``, ``uid``, ``user:group``, … are by the container's files; raises OciError."""
    name, colon, group = text.partition(":")
    accounts = [line.split(":") for line in _lines(files, _PASSWD) if line.count(":") >= 5]
    groups = [line.split(":") for line in _lines(files, _GROUP) if line.count(":") >= 3]
    name = name or "0"
    account = next((one for one in accounts if one[0] == name), None)
    uid = _id(account[2]) if account is not None else _id(name)
    if uid is None:
        raise OciError(detail=f"its User {name[:100]!r} is not in its /etc/passwd")
    if account is None:
        account = next((one for one in accounts if _id(one[2]) == uid), None)
    home = account[5] if account is not None and account[5] else "/"
    if colon and group:
        found = next((one for one in groups if one[0] == group), None)
        gid = _id(found[2]) if found is not None else _id(group)
        if gid is None:
            raise OciError(detail=f"its group {group[:100]!r} is not in its /etc/group")
        return _User(uid, gid, (), home)
    gid = (_id(account[3]) if account is not None else None) or 0
    more = {
        number
        for one in groups
        if account is not None
        and account[0] in one[3].split(",")
        and (number := _id(one[2])) is not None
    }
    if len(more) > MAX_GROUPS:
        raise OciError(
            detail=f"its User {name!r} is in {len(more)} groups; {MAX_GROUPS} are the most"
        )
    return _User(uid, gid, tuple(sorted(more - {gid})), home)


def _lines(files: dict[bytes, bytes], path: bytes) -> list[str]:
    return files.get(path, b"").decode(errors="surrogateescape").splitlines()


def _id(text: str) -> int | None:
    if not text.isdecimal() or not text.isascii() or len(text) > 10:
        return None
    number = int(text)
    return number if number < (1 << 32) - 1 else None
