"""The users that QEMU runs as: one for each VM, so that none can touch another's QEMU.

Whoever runs as a process's user may trace it and take its descriptors, disks among them. So a VM
has a slot among `COUNT` uids in a row, and keeps it for life; its gid has the same number. The
slot is by the VM's address, the next free one where two addresses want the same: agents on one
machine, whose VMs have other addresses, then seldom meet although they share the range.

Nobody else has these uids: they lie above what distributions, subordinate uids, containers and
directory services hand out (see systemd's UIDS-GIDS and sssd-ldap(5)), below 2**31.
"""

import pwd
from collections.abc import Collection
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from smallstack.hypervisor.errors import HypervisorError

FIRST: Final = 2_100_000_000
COUNT: Final = 1 << 16
_MAPS: Final = (Path("/proc/self/uid_map"), Path("/proc/self/gid_map"))


class UidsError(HypervisorError):
    """QEMU cannot have the uids {first} to {last}: {detail}; name another first one by --qemu-uids,
    or one user for every QEMU by --qemu-user"""


def free_slot(ip: str, taken: Collection[int]) -> int:
    """The slot of a new VM of that address. There are more than a machine has VMs."""
    wanted = int(IPv4Address(ip))
    return next(slot for n in range(COUNT) if (slot := (wanted + n) % COUNT) not in taken)


def check_uids(first: int) -> None:
    """Raises UidsError unless the uids from ``first`` on are nobody's and can be had."""
    detail = ""
    if first < 1:
        detail = "0 is root"
    elif users := [user for user in pwd.getpwall() if 0 <= user.pw_uid - first < COUNT]:
        detail = f"{users[0].pw_uid} is the user {users[0].pw_name!r}"
    elif not all(_is_mapped(path, first) for path in _MAPS):
        detail = "this user namespace has not all of them"
    if detail:
        raise UidsError(first=first, last=first + COUNT - 1, detail=detail)


def _is_mapped(path: Path, first: int) -> bool:
    """Whether a file of user_namespaces(7) has all ids from ``first`` on in one line."""
    lines = [list(map(int, line.split())) for line in path.read_text().splitlines()]
    return any(start <= first and first + COUNT <= start + length for start, _, length in lines)
