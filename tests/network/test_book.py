"""The address book's files: form, atomicity, and who is told of what."""

import asyncio
import json
from pathlib import Path
from unittest import mock

import pytest

from smallstack.network.book import AddressBook, Change
from smallstack.network.errors import (
    DuplicateAddressError,
    NoMatchingSubnetError,
    PoolEmptyError,
    RecordError,
)
from smallstack.proto.vm import Address, Subnet
from tests.network.test_addresses import A, B, address

POOL = """{
    "Free": [
        {
            "IpAddress": "198.51.100.9",
            "MacAddress": "52:54:c6:33:64:09"
        }
    ],
    "Registered": [
        {
            "IpAddress": "198.51.100.8",
            "MacAddress": "52:54:c6:33:64:08"
        },
        {
            "IpAddress": "198.51.100.9",
            "MacAddress": "52:54:c6:33:64:09"
        }
    ]
}
"""


async def filled(directory: Path) -> AddressBook:
    book = AddressBook.load(directory)
    await book.update_subnets(add=[A])
    await book.change_pool(add=[address("198.51.100.8"), address("198.51.100.9")])
    return book


async def test_the_files(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    got, subnet = await book.take()
    assert (got, subnet) == (address("198.51.100.8"), A)
    assert (tmp_path / "address-pool.json").read_text() == POOL
    (subnet_record,) = json.loads((tmp_path / "subnets.json").read_text())
    assert list(subnet_record)[:3] == ["Id", "IpGateway", "IpMask"]
    assert subnet_record["IpMask"] == "255.255.255.0"
    again = AddressBook.load(tmp_path)
    assert again.pool == book.pool
    assert again.list_subnets() == [A]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["address-pool.json", "subnets.json"]


async def test_what_upstream_wrote_is_read(tmp_path: Path) -> None:
    """Null lists, and addresses in their 16-byte form's text."""
    (tmp_path / "address-pool.json").write_text('{"Free": null, "Registered": null}')
    (tmp_path / "subnets.json").write_text(
        '[{"Id": "x", "IpGateway": "198.51.100.1", "IpMask": "255.255.255.0",'
        ' "DomainNameServers": null, "Later": {"unknown": 1}}]'
    )
    book = AddressBook.load(tmp_path)
    assert book.pool.free == ()
    assert book.subnets.matching("198.51.100.200") == Subnet(
        id="x", ip_gateway="198.51.100.1", ip_mask="255.255.255.0"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("address-pool.json", "{"),
        ("address-pool.json", '{"Free": 7}'),
        ("address-pool.json", '{"Free": [{"IpAddress": "x", "MacAddress": "52:54:00:00:00:01"}]}'),
        ("subnets.json", '{"a": 1}'),
        ("subnets.json", '[{"Id": "x"}]'),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError, match=name):
        AddressBook.load(tmp_path)


async def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    before = (book.pool, (tmp_path / "address-pool.json").read_bytes())
    full = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with (
        full,
        pytest.raises(RecordError, match=r"cannot write .*address-pool.json: No space left"),
    ):
        await book.take()
    with full, pytest.raises(RecordError):
        await book.update_subnets(add=[B])
    assert (book.pool, (tmp_path / "address-pool.json").read_bytes()) == before
    assert len(book.subnets) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"address-pool.json", "subnets.json"}


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_take_gives_the_address_back(tmp_path: Path, turns: int) -> None:
    book = await filled(tmp_path)
    before = book.pool
    taking = asyncio.create_task(book.take())
    for _ in range(turns):
        await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert book.pool == before
    assert AddressBook.load(tmp_path).pool == before


async def test_takes_at_the_same_time_differ(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    got = await asyncio.gather(book.take(), book.take())
    assert {a.ip_address for a, _ in got} == {"198.51.100.8", "198.51.100.9"}
    with pytest.raises(PoolEmptyError):
        await book.take("x")  # before any question of subnets


async def test_who_is_told(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    told: list[Change] = []
    book.on_change.append(told.append)
    taken, _ = await book.take()
    await book.release(taken)
    await book.update_subnets(add=[B])
    await book.change_pool(maximum_free={"a": 1})
    await book.change_pool()
    registered = (address("198.51.100.8"), address("198.51.100.9"))
    assert told == [
        Change({"a": 1}),
        Change({"a": 2}),
        Change({"a": 2, "b": 0}, registered, (A, B)),
        Change({"a": 1, "b": 0}, registered[1:]),
    ]


async def test_changes_are_whole(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    before = book.pool
    with pytest.raises(DuplicateAddressError):
        await book.change_pool(add=[address("198.51.100.20"), address("198.51.100.8")])
    assert book.pool == before
    with pytest.raises(NoMatchingSubnetError):
        await book.update_subnets(delete=["a"])
    assert book.list_subnets() == [A]
    await book.change_pool(
        add=[address("198.51.100.20")],
        remove=[Address(ip_address="198.51.100.8")],
        maximum_free={"": 1},
    )
    assert [a.ip_address for a in book.pool.registered] == ["198.51.100.9"]


async def test_reconcile(tmp_path: Path) -> None:
    book = await filled(tmp_path)
    taken, _ = await book.take()
    again = AddressBook.load(tmp_path)
    await again.reconcile([])
    assert again.pool.free == (address("198.51.100.9"), taken)
    await again.reconcile([taken])
    assert [*again.pool.free] == [address("198.51.100.9")]
    own = address("198.51.100.40")
    await again.register(own)
    await again.unregister(own)
