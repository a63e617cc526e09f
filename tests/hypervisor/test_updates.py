"""What a watcher is told: the whole state, then the latest of what changed, once."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.hypervisor import updates as module
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.methods.updating import StreamLeases
from smallstack.hypervisor.updates import Updates, Watch
from smallstack.hypervisor.vm import Vm
from smallstack.identity.peer import Peer
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.every import RegisterExternalLeasesRequest, Update
from smallstack.proto.vm import Address, Subnet, VmInfo, Volume
from smallstack.srpc.server import Call
from tests.hypervisor.fakes import IP, FakeRuntime, make_vm
from tests.hypervisor.test_ledger import make_ledger


@pytest.fixture
async def updates(tmp_path: Path) -> Updates:
    ledger = await make_ledger(tmp_path)
    parts = SimpleNamespace(ledger=ledger, book=ledger.book, store=SimpleNamespace(disabled=False))
    ledger.directories = []
    agent = SimpleNamespace(parts=parts, vms={}, on_change=[])
    return Updates(cast("Agent", agent))


def add(updates: Updates, path: Path) -> Vm:
    vm = make_vm(path, FakeRuntime(), State.STOPPED, volumes=[Volume(size=512)])
    updates.agent.vms[IP] = vm
    return vm


def changed(updates: Updates, vm: Vm) -> None:
    for listener in updates.agent.on_change:
        listener(vm)


async def told(watch: Watch) -> Update:
    update = await watch.next()
    assert update is not None
    return update


async def test_the_latest_of_many_changes_once(updates: Updates, tmp_path: Path) -> None:
    vm = add(updates, tmp_path)
    with updates.watch() as watch:
        whole = watch.everything()
        assert (whole.have_vms, list(whole.vms)) == (True, [IP])
        assert whole.num_free_addresses == {"a": 4, "b": 1}
        assert len(whole.address_pool) == 5
        for number in range(1000):
            vm.info.tags = {"number": str(number)}
            changed(updates, vm)
        update = await told(watch)
        assert update.vms == {IP: vm.info}
        assert update.vms[IP].tags == {"number": "999"}
        assert not (update.have_address_pool or update.have_subnets or update.have_disabled)
        assert update.num_free_addresses == {}


async def test_who_is_gone_is_told_of_once_and_only_if_known(
    updates: Updates, tmp_path: Path
) -> None:
    vm = add(updates, tmp_path)
    with updates.watch() as early, updates.watch() as late:
        early.everything()
        vm.info.volumes = []  # as at the beginning of a create
        late.everything()
        del updates.agent.vms[IP]
        changed(updates, vm)
        assert (await told(early)).vms == {IP: VmInfo()}
        assert (await told(late)).vms == {}
        changed(updates, vm)
        assert (await told(early)).vms == {}


async def test_addresses_subnets_and_the_disabled_state(updates: Updates) -> None:
    book = updates.agent.parts.book
    with updates.watch() as watch:
        watch.everything()
        await book.take("a")
        update = await told(watch)
        assert (update.num_free_addresses["a"], update.have_address_pool) == (3, False)
        await book.change_pool(remove=[Address(ip_address="198.51.100.3")])
        assert len((await told(watch)).address_pool) == 4
        await book.update_subnets(
            change=[
                Subnet(id="b", ip_gateway="198.51.101.1", ip_mask="255.255.255.0", domain_name="x")
            ]
        )
        assert [s.domain_name for s in (await told(watch)).subnets] == ["", "x"]
        updates.agent.parts.store.disabled = True  # type: ignore[misc]
        updates.disabled_changed()
        update = await told(watch)
        assert (update.have_disabled, update.disabled) == (True, True)
        assert update.available_memory_in_mib == 3000


async def test_silence_is_broken_and_the_end_is_told(
    updates: Updates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.001)
    with updates.watch() as watch:
        watch.everything()
        update = await told(watch)
        assert update == Update(available_memory_in_mib=3000)
        monkeypatch.setattr(module, "HEARTBEAT", 1000)
        ending = asyncio.create_task(watch.next())
        updates.close()
        assert await ending is None
    with updates.watch() as late:
        assert await late.next() is None


class Leases:
    """The set there is."""

    def __init__(self) -> None:
        self.version = 0
        self.held: list[str] = []

    async def replace(self, addresses: list[Address], _names: list[str]) -> int:
        self.held = [address.ip_address for address in addresses]
        self.version += 1
        return self.version

    async def forget(self, version: int) -> None:
        if version == self.version:
            self.held = []


@pytest.mark.parametrize("power", [True, False])
async def test_leases_of_a_stream_need_power_and_go_with_it(power: bool) -> None:
    held = Leases()
    agent = cast("Agent", SimpleNamespace(external_leases=held))
    call = cast("Call", SimpleNamespace(peer=Peer(username="fleet", have_method_access=power)))
    request = RegisterExternalLeasesRequest(addresses=[Address(ip_address="198.51.100.9")])
    async with StreamLeases(agent) as leases:
        await leases.register(call, request)
        assert held.held == (["198.51.100.9"] if power else [])
    assert held.held == []
