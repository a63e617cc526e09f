"""Reservations: all or nothing, in upstream's words, derived at start."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from smallstack.hypervisor.host import GIB, MIB, LocalHost, Space, format_bytes
from smallstack.hypervisor.ledger import Ledger, effective_size, memory_of, volume_name
from smallstack.identity.peer import Peer
from smallstack.network.book import AddressBook
from smallstack.network.errors import (
    NoFreeAddressError,
    PoolEmptyError,
    RecordError,
    SubnetMissingError,
)
from smallstack.proto.enums import VolumeType
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume, Subnet, VmInfo, Volume
from smallstack.telemetry.errors import SmallStackError

NOBODY = Peer(username="somebody")


@dataclass
class FakeHost:
    """A machine of two processors and 4 GiB, with 100 GiB per file system."""

    milli_cpus: int = 2000
    memory_mib: int = 4096
    available: int = 3000
    spaces: dict[Path, Space] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)

    def available_mib(self) -> int:
        return self.available

    def space(self, directory: Path) -> Space:
        return self.spaces.get(directory, Space(100 * GIB, 90 * GIB, 7))

    def written(self, file: Path) -> int:
        return self.files.get(file, 0)


def addresses(count: int, third: int = 100) -> list[Address]:
    return [
        Address(ip_address=f"198.51.{third}.{n}", mac_address=f"52:54:c6:33:{third:02x}:{n:02x}")
        for n in range(2, 2 + count)
    ]


async def make_book(path: Path, count: int = 4) -> AddressBook:
    book = AddressBook.load(path)
    await book.update_subnets(
        [
            Subnet(id="a", ip_gateway="198.51.100.1", ip_mask="255.255.255.0"),
            Subnet(id="b", ip_gateway="198.51.101.1", ip_mask="255.255.255.0"),
        ]
    )
    await book.change_pool(addresses(count) + addresses(1, 101))
    return book


async def make_ledger(path: Path, host: FakeHost | None = None, count: int = 4) -> Ledger:
    return Ledger(host or FakeHost(), await make_book(path, count), [Path("/v0"), Path("/v1")])


def info(memory: int = 128, cpus: int = 10, subnet: str = "a", **more: object) -> VmInfo:
    return VmInfo(memory_in_mib=memory, milli_cpus=cpus, subnet_id=subnet, **more)  # type: ignore[arg-type]


async def test_reserve_and_release(tmp_path: Path) -> None:
    ledger = await make_ledger(tmp_path)
    holding = await ledger.reserve(info(1000, 1500), NOBODY)
    assert holding.ip == "198.51.100.2"
    assert (ledger.memory_left, ledger.milli_cpus_left) == (3096, 500)
    await ledger.release(holding.ip)
    await ledger.release(holding.ip)
    assert (ledger.memory_left, ledger.milli_cpus_left) == (4096, 2000)
    assert [a.ip_address for a in ledger.book.pool.free][-1] == "198.51.100.2"


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        (info(cpus=2001), CpuError, "insufficient unallocated CPU"),
        (info(memory=4097), UnallocatedMemoryError, "insufficient unallocated memory"),
        (info(memory=3000), AvailableMemoryError, "insufficient available memory"),
        (info(subnet="c"), SubnetMissingError, "subnet: c does not exist"),
        (info(secondary_subnet_ids=[""]), RequestError, "cannot give unspecified secondary"),
        (info(secondary_subnet_ids=["a"]), SubnetTwiceError, "subnet: a specified multiple times"),
        (info(secondary_subnet_ids=["b", "b"]), SubnetTwiceError, "subnet: b specified"),
    ],
)
async def test_refusals_leave_nothing(
    tmp_path: Path, wanted: VmInfo, error: type[SmallStackError], text: str
) -> None:
    ledger = await make_ledger(tmp_path)
    with pytest.raises(error) as raised:
        await ledger.reserve(wanted, NOBODY)
    assert str(raised.value).startswith(text)
    assert "\n" not in str(raised.value)
    assert ledger.holdings == {}
    assert {a.ip_address for a in ledger.book.pool.free} == {
        a.ip_address for a in ledger.book.pool.registered
    }


async def test_no_addresses(tmp_path: Path) -> None:
    ledger = Ledger(FakeHost(), AddressBook.load(tmp_path), [])
    with pytest.raises(PoolEmptyError, match="no free addresses in pool"):
        await ledger.reserve(info(), NOBODY)


async def test_a_second_address_that_lacks_gives_the_first_back(tmp_path: Path) -> None:
    ledger = await make_ledger(tmp_path)
    first = await ledger.reserve(info(secondary_subnet_ids=["b"]), NOBODY)
    assert [a.ip_address for a in first.addresses] == ["198.51.100.2", "198.51.101.2"]
    with pytest.raises(NoFreeAddressError, match="no free address in subnet: b"):
        await ledger.reserve(info(secondary_subnet_ids=["b"]), NOBODY)
    assert len(ledger.book.pool.free) == 3


async def test_concurrent_reservations_never_overbook(tmp_path: Path) -> None:
    ledger = await make_ledger(tmp_path, count=20)
    results = await asyncio.gather(
        *(ledger.reserve(info(cpus=300), NOBODY) for _ in range(20)), return_exceptions=True
    )
    granted = [r for r in results if not isinstance(r, BaseException)]
    assert len(granted) == 6
    assert ledger.milli_cpus_left == 200
    assert len({h.ip for h in granted}) == 6
    assert len(ledger.book.pool.free) == 21 - 6


async def test_an_address_is_not_lost_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await make_ledger(tmp_path, count=1)
    ip = (await ledger.reserve(info(), NOBODY)).ip

    async def full(address: Address) -> None:
        raise RecordError(action="write", path="address-pool.json", detail="No space left")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.book, "release", full)
        await ledger.release(ip)
    assert ledger.holdings == {}
    assert (await ledger.reserve(info(), NOBODY)).ip == ip


def record(ip: str, size: int, directory: str = "/v0") -> LocalVmInfo:
    mac = "52:54:c6:33:64:" + f"{int(ip.rpartition('.')[2]):02x}"
    return LocalVmInfo(
        vm_info=VmInfo(
            address=Address(ip_address=ip, mac_address=mac),
            memory_in_mib=512,
            milli_cpus=250,
            subnet_id="a",
            volumes=[Volume(size=size)],
        ),
        volume_locations=[
            LocalVolume(directory_to_cleanup=f"{directory}/{ip}", filename=f"{directory}/{ip}/root")
        ],
    )


async def test_derived_at_start(tmp_path: Path) -> None:
    """A crash lost one address between pool and VM; the next start has it again."""
    ledger = await make_ledger(tmp_path)
    await ledger.book.take("a")
    await ledger.book.take("a")
    again = Ledger(FakeHost(), AddressBook.load(tmp_path), [Path("/v0")])
    again.adopt(record("198.51.100.3", GIB))
    await again.reconcile()
    assert [a.ip_address for a in again.book.pool.free] == [
        "198.51.100.4",
        "198.51.100.5",
        "198.51.101.2",
        "198.51.100.2",
    ]
    assert (again.memory_left, again.milli_cpus_left) == (4096 - 512, 1750)


async def test_addresses_of_unreadable_vms_stay_taken(tmp_path: Path) -> None:
    ledger = await make_ledger(tmp_path)
    await ledger.reconcile({"198.51.100.4"})
    assert "198.51.100.4" not in [a.ip_address for a in ledger.book.pool.free]


class TestSpace:
    """`Ledger.place`."""

    async def test_the_first_directory_with_room(self, tmp_path: Path) -> None:
        host = FakeHost(
            spaces={Path("/v0"): Space(10 * GIB, 2 * GIB, 1), Path("/v1"): Space(10 * GIB, GIB, 2)}
        )
        ledger = await make_ledger(tmp_path, host)
        ip = (await ledger.reserve(info(), NOBODY)).ip
        assert ledger.place(ip, [GIB, GIB // 2, GIB // 3]) == [
            Path("/v0"),
            Path("/v0"),
            Path("/v0"),
        ]
        assert [f for f, _ in ledger.holdings[ip].volumes] == [
            Path(f"/v0/{ip}/root"),
            Path(f"/v0/{ip}/secondary-volume.0"),
            Path(f"/v0/{ip}/secondary-volume.1"),
        ]

    async def test_strictly_more_than_asked(self, tmp_path: Path) -> None:
        spaces = {Path(d): Space(10 * GIB, GIB, n) for n, d in enumerate(("/v0", "/v1"), 1)}
        ledger = await make_ledger(tmp_path, FakeHost(spaces=spaces))
        ip = (await ledger.reserve(info(), NOBODY)).ip
        with pytest.raises(SpaceError, match=r"not enough free space for 1 GiB volume: 1 GiB"):
            ledger.place(ip, [GIB])
        assert ledger.place(ip, [GIB - 1]) == [Path("/v0")]

    async def test_spread_and_indices(self, tmp_path: Path) -> None:
        spaces = {Path(d): Space(10 * GIB, 9 * GIB, n) for n, d in enumerate(("/v0", "/v1"), 1)}
        ledger = await make_ledger(tmp_path, FakeHost(spaces=spaces))
        ip = (await ledger.reserve(info(), NOBODY)).ip
        assert ledger.place(ip, [GIB] * 3, spread=True) == [
            Path("/v0"),
            Path("/v1"),
            Path("/v0"),
        ]
        assert ledger.place(ip, [GIB, GIB], indices=[1]) == [Path("/v1"), Path("/v0")]
        for index in (1, 7):
            with pytest.raises(StorageIndexError, match=rf"storage\[{index}\] does not have"):
                ledger.place(ip, [20 * GIB], indices=[index])

    async def test_what_vms_may_still_write_counts(self, tmp_path: Path) -> None:
        host = FakeHost(spaces={Path("/v0"): Space(10 * GIB, 8 * GIB, 1)})
        ledger = Ledger(host, await make_book(tmp_path), [Path("/v0")])
        ledger.adopt(record("198.51.100.3", 6 * GIB))
        assert ledger.usable(Path("/v0")) == 2 * GIB
        host.files[Path("/v0/198.51.100.3/root")] = 3 * GIB
        assert ledger.usable(Path("/v0")) == 4 * GIB  # promised 6 of 10
        ledger.forget_space("198.51.100.3")
        assert ledger.usable(Path("/v0")) == 8 * GIB

    async def test_directories_of_one_file_system_share_it(self, tmp_path: Path) -> None:
        host = FakeHost(
            spaces=dict.fromkeys((Path("/v0"), Path("/v1")), Space(10 * GIB, 9 * GIB, 1))
        )
        ledger = await make_ledger(tmp_path, host)
        ip = (await ledger.reserve(info(), NOBODY)).ip
        ledger.place(ip, [5 * GIB])
        assert ledger.usable(Path("/v1")) == 4 * GIB
        assert ledger.total_volume_bytes() == 10 * GIB

    async def test_cache_and_machine_keep_their_share(self, tmp_path: Path) -> None:
        host = FakeHost(
            spaces={
                Path("/v0"): Space(100 * GIB, 50 * GIB, 1),
                Path("/"): Space(100 * GIB, 50 * GIB, 1),
                Path("/o"): Space(100 * GIB, 50 * GIB, 1),
            }
        )
        book = await make_book(tmp_path)
        ledger = Ledger(
            host, book, [Path("/v0")], cache_directory=Path("/o"), cache_unused=lambda: 4 * GIB
        )
        assert ledger.usable(Path("/v0")) == (50 - 1 - 5) * GIB

    async def test_no_directories(self, tmp_path: Path) -> None:
        ledger = Ledger(FakeHost(), await make_book(tmp_path), [])
        ip = (await ledger.reserve(info(), NOBODY)).ip
        with pytest.raises(NoStorageError, match="no volume directories available"):
            ledger.place(ip, [GIB])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 1500), st.booleans()), max_size=12))
def test_the_books_always_balance(
    tmp_path_factory: pytest.TempPathFactory, asks: list[tuple[int, int, bool]]
) -> None:
    """Whatever is asked for and given back, sums agree and nothing is below zero."""

    async def play() -> None:
        path = tmp_path_factory.mktemp("book")
        ledger = await make_ledger(path, FakeHost(available=10**6), count=8)
        held: list[str] = []
        for cpus, memory, give_back in asks:
            try:
                held.append((await ledger.reserve(info(memory, cpus), NOBODY)).ip)
            except SmallStackError:
                pass
            if give_back and held:
                await ledger.release(held.pop(0))
            assert ledger.milli_cpus_left >= 0
            assert ledger.memory_left >= 0
            assert set(ledger.holdings) == set(held)
            free = {a.ip_address for a in ledger.book.pool.free}
            assert free.isdisjoint(held)
            assert len(free) + len(held) == 9

    asyncio.run(play())


def test_memory_volumes_count_as_memory() -> None:
    volumes = [
        Volume(type=VolumeType.MEMORY, size=MIB + 1),
        Volume(size=GIB),
        Volume(type=VolumeType.MEMORY, size=1, virtual_size=MIB),
    ]
    assert memory_of(VmInfo(memory_in_mib=100, volumes=volumes)) == 103
    assert effective_size(volumes[2]) == MIB


def test_names_and_figures() -> None:
    assert [volume_name(n) for n in range(3)] == [
        "root",
        "secondary-volume.0",
        "secondary-volume.1",
    ]
    assert [format_bytes(n) for n in (0, 1023, 1536, MIB, 5 * GIB, 2048 * GIB)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1 MiB",
        "5 GiB",
        "2 TiB",
    ]
    assert [format_bytes(1 << n) for n in (50, 64)] == ["1 PiB", "16 EiB"]


def test_the_host_is_read_not_touched(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n")
    host = LocalHost(meminfo)
    assert (host.memory_mib, host.available_mib()) == (2000, 1000)
    assert host.milli_cpus % 1000 == 0
    assert host.space(tmp_path).size > host.space(tmp_path).available > 0
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(GIB)
    assert host.written(sparse) < MIB
    assert host.written(tmp_path / "none") == 0
