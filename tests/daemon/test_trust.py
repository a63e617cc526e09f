"""Whom a daemon trusts by its settings, and by the metadata service of the VM it runs in."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from smallstack.daemon.trust import TRUST_VM_OWNERS, TRUSTED_GROUPS, TRUSTED_USERS, trusting
from smallstack.daemon.vm_owners import DOCUMENT, MAX_DOCUMENT, VmOwners, is_virtual_machine
from smallstack.identity.decision import Decision, Policy, decide
from smallstack.identity.peer import Peer
from smallstack.network.bridge import Bridge
from smallstack.network.metadata.document import identity_document
from smallstack.network.metadata.routes import Rules, VmView
from smallstack.network.metadata.server import MetadataServer
from smallstack.proto.vm import VmInfo
from smallstack.settings import Setting, load

SETTINGS: list[Setting[Any]] = [TRUSTED_USERS, TRUSTED_GROUPS, TRUST_VM_OWNERS]


async def test_settings() -> None:
    flags = {
        "srpc_trusted_users": "tina,tom",
        "srpc_trusted_groups": "admins",
        "srpc_trust_vm_owners": "false",
    }
    grant = lambda service, peer: peer.username == service  # noqa: E731
    async with trusting(load(SETTINGS, flags, environ={}), grant) as policy:
        assert policy.trusted_users == {"tina", "tom"}
        assert policy.trusted_groups == {"admins"}
        assert not policy.owner_users | policy.owner_groups
        assert policy.grant is grant
    environ = {
        "SMALLSTACK_SRPC_TRUSTED_USERS": "a b",
        "SMALLSTACK_SRPC_TRUST_VM_OWNERS": "no",
    }
    async with trusting(load(SETTINGS, environ=environ)) as policy:
        assert policy.trusted_users == {"a", "b"}
        assert not policy.trusted_groups
        assert policy.grant is None


class Hypervisor:
    """The real metadata service on loopback, of one VM: this machine."""

    def __init__(self) -> None:
        self.vm: VmView | None = View(VmInfo(owner_users=["olga"], owner_groups=["crew"]))
        self.text: bytes | None = None
        self.server = MetadataServer(
            cast("Bridge", None), self.look, rules=Rules(document=self.document)
        )
        self.url = ""

    def look(self, _ip: str) -> VmView | None:
        return self.vm

    def document(self, info: VmInfo) -> bytes:
        return identity_document(info) if self.text is None else self.text


class View:
    """What the service has to know of a VM."""

    def __init__(self, info: VmInfo) -> None:
        self.info = info
        self.user_data = Path("/nonexistent")
        self.credentials = Path("/nonexistent")


@pytest.fixture
async def hypervisor() -> AsyncIterator[Hypervisor]:
    made = Hypervisor()
    listening = socket.create_server(("127.0.0.1", 0))
    await made.server.serve(listening)
    made.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield made
    await made.server.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def owners_of(policy: Policy) -> tuple[set[str], set[str]]:
    return set(policy.owner_users), set(policy.owner_groups)


async def test_owners_of_the_vm(hypervisor: Hypervisor, session: aiohttp.ClientSession) -> None:
    policy = Policy()
    owners = VmOwners(policy, hypervisor.url)
    assert await owners.refresh(session)
    assert owners_of(policy) == ({"olga"}, {"crew"})
    hypervisor.vm = View(VmInfo(owner_users=["paul"]))
    assert await owners.refresh(session)
    assert owners_of(policy) == ({"paul"}, set())


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"OwnerUsers": 7}', b" " * (MAX_DOCUMENT + 1)])
async def test_nonsense_is_not_believed(
    hypervisor: Hypervisor, session: aiohttp.ClientSession, text: bytes
) -> None:
    policy = Policy()
    owners = VmOwners(policy, hypervisor.url)
    hypervisor.text = text
    assert await owners.refresh(session)
    assert owners_of(policy) == (set(), set())


async def test_a_silent_hypervisor_is_forgotten_in_time(
    hypervisor: Hypervisor, session: aiohttp.ClientSession
) -> None:
    patient, hasty = Policy(), Policy()
    keepers = VmOwners(patient, hypervisor.url), VmOwners(hasty, hypervisor.url, forget=0)
    for keeper in keepers:
        assert await keeper.refresh(session)
    hypervisor.vm = None  # every path is a 404 now
    for keeper in keepers:
        assert await keeper.refresh(session)
    assert owners_of(patient) == ({"olga"}, {"crew"})
    assert owners_of(hasty) == (set(), set())
    await hypervisor.server.close()
    for keeper in keepers:
        assert await keeper.refresh(session)
    assert owners_of(patient) == ({"olga"}, {"crew"})


async def test_elsewhere_nobody_is_asked_again(
    hypervisor: Hypervisor, session: aiohttp.ClientSession
) -> None:
    hypervisor.vm = None
    policy = Policy()
    assert not await VmOwners(policy, hypervisor.url).refresh(session)
    owners = VmOwners(policy, hypervisor.url)
    owners.start()
    assert owners._task is not None
    await owners._task
    await owners.close()


async def test_by_default_the_vms_owners(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallstack.daemon.trust.is_virtual_machine", lambda: True)
    monkeypatch.setattr(
        "smallstack.daemon.trust.VmOwners", lambda policy: VmOwners(policy, hypervisor.url)
    )
    async with trusting(load(SETTINGS, environ={})) as policy:
        while not policy.owner_users:
            await hypervisor_turn(hypervisor)
    assert owners_of(policy) == ({"olga"}, {"crew"})


async def test_a_bare_machine_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallstack.daemon.trust.is_virtual_machine", lambda: False)
    monkeypatch.delattr("smallstack.daemon.trust.VmOwners")
    async with trusting(load(SETTINGS, environ={})) as policy:
        assert owners_of(policy) == (set(), set())


async def test_a_task_that_waits_ends(hypervisor: Hypervisor) -> None:
    policy = Policy()
    owners = VmOwners(policy, hypervisor.url, interval=0)
    owners.start()
    assert owners._task is not None
    while not policy.owner_users:
        assert not owners._task.done()
        await hypervisor_turn(hypervisor)
    await owners.close()
    assert owners._task.done()


async def hypervisor_turn(hypervisor: Hypervisor) -> None:
    """A round trip to the service: the others have had theirs meanwhile."""
    async with aiohttp.ClientSession() as session, session.get(hypervisor.url + DOCUMENT) as reply:
        await reply.read()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu vme hypervisor lahf_lm\n", True),
        ("processor : 0\nflags\t\t: fpu vme lahf_lm\nbugs : hypervisor\n", False),
        ("processor : 0\nFeatures : fp asimd\n", True),
    ],
)
def test_which_machines_are_bare(tmp_path: Path, text: str, expected: bool) -> None:
    place = tmp_path / "cpuinfo"
    place.write_text(text)
    assert is_virtual_machine(place) is expected


def test_no_peer_without_a_name_is_an_owner() -> None:
    policy = Policy(owner_groups=frozenset({"crew"}))
    found = decide(
        Peer(groups=frozenset({"crew"})),
        "ImageServer.AddImage",
        public=False,
        unauthenticated=False,
        policy=policy,
    )
    assert found == Decision(False, False)
