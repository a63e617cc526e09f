"""Who has how much of this machine: addresses, memory, processors, space. All or nothing.

The ledger holds no state of its own on disk. At start `adopt` enters every VM that has a record,
and the address book is reconciled with them; a create enters its VM before anything is made, and
whatever becomes of it, its holding leaves the ledger as one piece.

::

    reserve ──► addresses, milliCPUs, memory          before the VM's directory exists
    place   ──► a volume directory for each volume    once the image's size is known
    release ──► all of it, when the VM is gone

Memory is counted against MemTotal for all VMs, running or not, and must in addition be less than
MemAvailable at the moment; guest memory is never touched to find out. Space is promised in full
though layers are thin: what VMs may still write counts as taken.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from smallstack.hypervisor.errors import (
    AvailableMemoryError,
    CpuError,
    NoStorageError,
    RequestError,
    SpaceError,
    StorageIndexError,
    SubnetTwiceError,
    UnallocatedMemoryError,
)
from smallstack.hypervisor.host import GIB, MIB, Host, format_bytes
from smallstack.hypervisor.store import ROOT, SECONDARY
from smallstack.network.book import AddressBook
from smallstack.network.errors import RecordError
from smallstack.network.subnets import Caller
from smallstack.proto.enums import VolumeType
from smallstack.proto.vm import Address, LocalVmInfo, VmInfo, Volume

_log = logging.getLogger("smallstack.hypervisor")


def effective_size(volume: Volume) -> int:
    """Bytes that a volume may grow to."""
    return max(volume.size, volume.virtual_size)


def memory_of(info: VmInfo) -> int:
    """MiB of a VM: its own and that of volumes kept in memory, rounded up."""
    volumes = sum(effective_size(v) for v in info.volumes if v.type == VolumeType.MEMORY)
    return info.memory_in_mib + -(-volumes // MIB)


@dataclass
class Holding:
    """What one VM has."""

    addresses: list[Address]
    subnet_ids: list[str] = field(default_factory=list)
    memory_mib: int = 0
    milli_cpus: int = 0
    volumes: list[tuple[Path, int]] = field(default_factory=list)
    """File and promised bytes."""
    directories: list[Path] = field(default_factory=list)
    """The volume directory of each volume."""

    @property
    def ip(self) -> str:
        """The primary address: the VM's name."""
        return self.addresses[0].ip_address


class Ledger:
    """All holdings, by the VM's primary address."""

    def __init__(
        self,
        host: Host,
        book: AddressBook,
        directories: Sequence[Path],
        *,
        cache_directory: Path | None = None,
        cache_unused: Callable[[], int] = lambda: 0,
    ) -> None:
        """``cache_unused``: bytes of quota that the object cache has not used yet."""
        self.host = host
        self.book = book
        self.directories = list(directories)
        self.holdings: dict[str, Holding] = {}
        self._owed: list[Address] = []
        self._expected: dict[Path, tuple[Path, int]] = {}
        self._cache_directory = cache_directory
        self._cache_unused = cache_unused

    @property
    def milli_cpus_left(self) -> int:
        """Thousandths of a processor that no VM has."""
        return self.host.milli_cpus - sum(h.milli_cpus for h in self.holdings.values())

    @property
    def memory_left(self) -> int:
        """MiB that no VM has."""
        return self.host.memory_mib - sum(h.memory_mib for h in self.holdings.values())

    def total_volume_bytes(self) -> int:
        """Bytes of the file systems of the volume directories, each counted once."""
        found = [self.host.space(directory) for directory in self.directories]
        return sum({space.device: space.size for space in found}.values())

    def adopt(self, record: LocalVmInfo) -> None:
        """Enter a VM that exists, whether it fits or not."""
        info = record.vm_info
        files = [Path(location.filename) for location in record.volume_locations]
        sizes = [effective_size(volume) for volume in info.volumes]
        self.holdings[info.address.ip_address] = Holding(
            addresses=[info.address, *info.secondary_addresses],
            subnet_ids=[info.subnet_id, *info.secondary_subnet_ids],
            memory_mib=memory_of(info),
            milli_cpus=info.milli_cpus,
            volumes=list(zip(files, sizes, strict=False)),
            directories=[file.parent.parent for file in files],
        )

    async def reconcile(self, reserved: Collection[str] = ()) -> None:
        """Make the free addresses those that no holding has; after every `adopt`.

        ``reserved``: IPs that are not free although no holding has them.
        """
        used = [a for h in self.holdings.values() for a in h.addresses]
        used += [a for a in self.book.pool.registered if a.ip_address in reserved]
        await self.book.reconcile(used)

    async def reserve(self, info: VmInfo, caller: Caller | None) -> Holding:
        """Enter a VM to be: addresses, processors and memory, all or none of them.

        Raises CpuError, UnallocatedMemoryError, AvailableMemoryError, SubnetTwiceError, or what
        the address book refuses.
        """
        wanted = [info.subnet_id, *info.secondary_subnet_ids]
        for subnet_id in wanted[1:]:
            if not subnet_id:
                raise RequestError(detail="cannot give unspecified secondary subnet ID")
            if wanted.count(subnet_id) > 1:
                raise SubnetTwiceError(subnet=subnet_id)
        asked = [info.address.ip_address, *(a.ip_address for a in info.secondary_addresses)]
        asked += [""] * (len(wanted) - len(asked))
        await self._give_back(())
        holding = Holding([])
        try:
            for subnet_id, ip in zip(wanted, asked, strict=False):
                address, subnet = await self.book.take(subnet_id, ip, caller)
                holding.addresses.append(address)
                holding.subnet_ids.append(subnet.id)
            # From here on nothing waits: what is checked is still so when it is entered.
            self.check_cpus(info.milli_cpus)
            self.check_memory(memory_of(info))
        except BaseException:
            await self._give_back(holding.addresses)
            raise
        holding.milli_cpus, holding.memory_mib = info.milli_cpus, memory_of(info)
        self.holdings[holding.ip] = holding
        return holding

    def check_cpus(self, milli_cpus: int) -> None:
        """Raises CpuError when so many more cannot be given."""
        left = max(0, self.milli_cpus_left)
        if milli_cpus > left:
            raise CpuError(asked=milli_cpus, left=left, total=self.host.milli_cpus)

    def check_memory(self, memory_mib: int) -> None:
        """Raises UnallocatedMemoryError or AvailableMemoryError."""
        left = max(0, self.memory_left)
        if memory_mib > left:
            raise UnallocatedMemoryError(asked=memory_mib, left=left, total=self.host.memory_mib)
        self.check_available(memory_mib)

    def check_available(self, memory_mib: int) -> None:
        """Raises AvailableMemoryError when a VM of so much memory cannot be started now."""
        available = self.host.available_mib()
        if memory_mib >= available:
            raise AvailableMemoryError(asked=memory_mib, left=available)

    def resize(self, ip: str, info: VmInfo) -> None:
        """Give a VM as much memory and processors as ``info`` says: what is more must be left.

        Raises CpuError, UnallocatedMemoryError, AvailableMemoryError; then nothing has changed.
        """
        holding = self.holdings[ip]
        if (more := info.milli_cpus - holding.milli_cpus) > 0:
            self.check_cpus(more)
        if (more := memory_of(info) - holding.memory_mib) > 0:
            self.check_memory(more)
        holding.milli_cpus, holding.memory_mib = info.milli_cpus, memory_of(info)

    def place(
        self,
        ip: str,
        sizes: Sequence[int],
        *,
        spread: bool = False,
        indices: Sequence[int] = (),
        within: Path | None = None,
    ) -> list[Path]:
        """A volume directory for each size in bytes, entered into the VM's holding.

        The first directory with room, from the position of the volume before; ``spread`` goes on
        to the next one each time; ``indices`` force it, ``within`` forces the first one's. Raises
        NoStorageError, SpaceError or StorageIndexError.
        """
        if not self.directories:
            raise NoStorageError
        usable = self._usable()
        devices = {path: self.host.space(path).device for path in self.directories}
        position = 0
        chosen: list[Path] = []
        for number, size in enumerate(sizes):
            if number == 0 and within is not None:
                index = self.directories.index(within)
                if not self._fits(size, index, usable, devices):
                    left = max(0, usable[devices[within]])
                    raise SpaceError(size=format_bytes(size), left=format_bytes(left))
            elif number < len(indices):
                index = indices[number]
                if index >= len(self.directories) or not self._fits(size, index, usable, devices):
                    raise StorageIndexError(index=index, size=format_bytes(size))
            else:
                position = index = self._find(size, position, usable, devices)
                position += spread
            usable[devices[self.directories[index]]] -= size
            chosen.append(self.directories[index])
        holding = self.holdings[ip]
        holding.directories = chosen
        holding.volumes = [
            (directory / ip / volume_name(number), size)
            for number, (directory, size) in enumerate(zip(chosen, sizes, strict=True))
        ]
        return chosen

    def place_more(
        self, ip: str, sizes: Sequence[int], *, index: int | None = None
    ) -> list[tuple[Path, int]]:
        """Directories for further volumes of a VM that has a holding, each with its size; they
        count once they are in its record (`adopt`), until then by `expect`.

        ``index`` forces the directory. Raises NoStorageError, SpaceError, StorageIndexError.
        """
        if not self.directories:
            raise NoStorageError
        usable = self._usable()
        devices = {path: self.host.space(path).device for path in self.directories}
        chosen = []
        for size in sizes:
            if index is None:
                number = self._find(size, 0, usable, devices)
            elif index < len(self.directories) and self._fits(size, index, usable, devices):
                number = index
            else:
                raise StorageIndexError(index=index, size=format_bytes(size))
            usable[devices[self.directories[number]]] -= size
            chosen.append((self.directories[number], size))
        return chosen

    async def readdress(self, old: Address, record: LocalVmInfo) -> None:
        """A VM has another primary address: the old one becomes the last free one."""
        self.holdings.pop(old.ip_address, None)
        self.adopt(record)
        await self._give_back([old])

    async def release(self, ip: str) -> None:
        """Take a VM out; its addresses become the last free ones. Unknown ones are fine."""
        holding = self.holdings.pop(ip, None)
        if holding is not None:
            await self._give_back(holding.addresses)

    def forget_space(self, ip: str) -> None:
        """The VM's volumes are gone."""
        if ip in self.holdings:
            self.holdings[ip].volumes = []
            self.holdings[ip].directories = []

    def expect(self, directory: Path, file: Path, size: int) -> None:
        """Keep room for a file of no VM that is being written: it will take ``size`` bytes.

        ``directory`` is the volume directory that it is in. It may be called again with more.
        Raises SpaceError; then nothing has changed.
        """
        _, had = self._expected.get(file, (directory, 0))
        if size <= had:
            return
        left = self.usable(directory)
        if self.expected_more(file, size) >= left:
            raise SpaceError(size=format_bytes(size), left=format_bytes(left))
        self._expected[file] = (directory, size)

    def check_space(self, directory: Path, size: int) -> None:
        """Raises SpaceError when so many bytes more cannot be promised in a volume directory."""
        left = self.usable(directory)
        if size >= left:
            raise SpaceError(size=format_bytes(size), left=format_bytes(left))

    def complete(self, file: Path) -> None:
        """A file that was expected is complete, or gone."""
        self._expected.pop(file, None)

    def expected_more(self, file: Path, size: int) -> int:
        """What `expect` needs besides what it keeps already, or what is written."""
        _, had = self._expected.get(file, (file, 0))
        return max(0, size - max(had, self.host.written(file)))

    def usable(self, directory: Path) -> int:
        """Bytes that could still be promised in a volume directory."""
        return max(0, self._usable()[self.host.space(directory).device])

    def has_room(
        self,
        sizes: Sequence[int],
        within: Path | None = None,
        freed: Mapping[Path, int] | None = None,
    ) -> bool:
        """Whether files of these bytes could be placed, ``within`` a volume directory or any.

        ``freed``: bytes, by volume directory, that would be free besides.
        """
        devices = {path: self.host.space(path).device for path in self.directories}
        more = Counter[int]()
        for path, size in (freed or {}).items():
            more[devices[path]] += size
        usable = self._usable(more)
        for size in sizes:
            among = self.directories if within is None else [within]
            found = next((path for path in among if usable[devices[path]] > size), None)
            if found is None:
                return False
            usable[devices[found]] -= size
        return True

    def _usable(self, freed: Mapping[int, int] = MappingProxyType({})) -> dict[int, int]:
        """Usable bytes of each file system, by device; ``freed`` are free besides."""
        spaces = {s.device: s for s in map(self.host.space, self.directories)}
        promised = dict.fromkeys(spaces, 0)
        unwritten = dict.fromkeys(spaces, 0)
        by_directory = {path: self.host.space(path).device for path in self.directories}
        for holding in self.holdings.values():
            for directory, (file, size) in zip(holding.directories, holding.volumes, strict=False):
                device = by_directory.get(directory)
                if device is not None:
                    promised[device] += size
                    unwritten[device] += max(0, size - self.host.written(file))
        for file, (directory, size) in self._expected.items():
            device = by_directory.get(directory)
            if device is not None:
                unwritten[device] += max(0, size - self.host.written(file))
        found = {}
        for device, space in spaces.items():
            free = space.available - unwritten[device] - self._kept_free(device)
            free += freed.get(device, 0)
            found[device] = min(space.size - promised[device], free)
        return found

    def _kept_free(self, device: int) -> int:
        """Bytes that VMs must leave: for the object cache to fill, and for the machine itself."""
        kept = 0
        cache = self._cache_directory
        if cache is not None and self.host.space(cache).device == device:
            kept += self._cache_unused() * 5 // 4
        if self.host.space(Path("/")).device == device:
            kept += GIB
        return kept

    def _fits(
        self, size: int, index: int, usable: dict[int, int], devices: dict[Path, int]
    ) -> bool:
        return usable[devices[self.directories[index]]] > size

    def _find(self, size: int, start: int, usable: dict[int, int], devices: dict[Path, int]) -> int:
        count = len(self.directories)
        for offset in range(count):
            index = (start + offset) % count
            if self._fits(size, index, usable, devices):
                return index
        left = max(0, *usable.values())
        raise SpaceError(size=format_bytes(size), left=format_bytes(left))

    async def _give_back(self, addresses: Sequence[Address]) -> None:
        """Make addresses free. Where that cannot be written (the disk is full) it is tried again
        with the next reservation, and a start derives it anyway."""
        owed, self._owed = [*self._owed, *addresses], []
        for address in owed:
            try:
                await self.book.release(address)
            except RecordError as error:
                _log.warning("%s is not free yet: %s", address.ip_address, error)
                self._owed.append(address)


def volume_name(number: int) -> str:
    """The file name of a VM's volume: ``root``, ``secondary-volume.0`` and so on."""
    return ROOT if number == 0 else f"{SECONDARY}{number - 1}"
