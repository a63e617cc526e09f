"""Who VMs are, by a provider that really answers; VMs without machines."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    SSHCertificate,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_identity,
)

from smallstack.durable import replace_file
from smallstack.hypervisor import identities
from smallstack.hypervisor.errors import BlockedError, DiskError, NoProviderError, RequestError
from smallstack.hypervisor.host_key import HostKey
from smallstack.hypervisor.identities import (
    CERTIFICATES,
    KEYS,
    REQUESTOR,
    SHOWN,
    Identities,
    due,
    retry,
)
from smallstack.hypervisor.identity_provider import (
    IdentityProvider,
    ProviderError,
    ProviderUrlError,
)
from smallstack.hypervisor.store import VmDirectory
from smallstack.hypervisor.vm import Vm
from smallstack.identity import pki
from smallstack.identity.errors import RoleError
from smallstack.identity.peer import Peer
from smallstack.network.metadata import routes
from smallstack.proto.enums import State
from smallstack.proto.vm import Address, LocalVmInfo, VmInfo
from tests.hypervisor.fakes import IP, FakeRuntime
from tests.hypervisor.provider import Provider, serving

ALICE = Peer(username="alice")


@pytest.fixture(scope="session")
def host_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a key: making one takes a second."""
    directory = tmp_path_factory.mktemp("state")
    asyncio.run(HostKey(directory).public_pem())
    return directory


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with serving(tmp_path / "provider") as made:
        yield made


@pytest.fixture
async def who(host_key: Path, provider: Provider) -> AsyncIterator[Identities]:
    made = Identities(
        HostKey(host_key), IdentityProvider(provider.url, str(provider.ca_file)), retry_least=0.01
    )
    yield made
    await made.close()


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[Vm]:
    path = tmp_path / "vms" / IP
    path.mkdir(parents=True)
    info = VmInfo(address=Address(ip_address=IP), state=State.STOPPED)
    made = Vm(LocalVmInfo(vm_info=info), VmDirectory(path), FakeRuntime())
    task = made.begin()
    yield made
    task.cancel()
    await asyncio.wait([task])


async def requestor(who: Identities, provider: Provider, begun: int = 60) -> bytes:
    return provider.requestor("web", await who._key.public_pem(), begun)


def files(vm: Vm) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in vm.directory.path.iterdir()
        if path.name not in {"info.json", SHOWN}
    }


async def test_a_role(who: Identities, provider: Provider, vm: Vm) -> None:
    await who.assign(vm, await requestor(who, provider), ALICE)
    assert provider.asked == {"x509": 2, "ssh": 2}
    assert vm.info.identity_name == "web"
    assert abs(vm.info.identity_expires.unix_seconds - time.time() - 3600) < 60
    found = files(vm)
    assert found.keys() == {*CERTIFICATES, *KEYS}
    for name in (*CERTIFICATES, *KEYS):
        mode = (vm.directory.path / name).stat().st_mode & 0o777
        assert mode == (0o600 if name in KEYS else 0o644)
    for key, certificate, ssh in (
        (routes.KEY, routes.CERTIFICATE, routes.RSA_SSH_CERTIFICATE),
        (routes.ED25519_KEY, routes.ED25519_CERTIFICATE, routes.ED25519_SSH_CERTIFICATE),
    ):
        public = load_pem_private_key(found[key], None).public_key()
        assert x509.load_pem_x509_certificate(found[certificate]).public_key() == public
        line = load_ssh_public_identity(found[ssh])
        assert isinstance(line, SSHCertificate)
        assert line.public_key() == public
        assert line.valid_principals == [b"web"]
    assert load_ssh_private_key(found[routes.ED25519_SSH_KEY], None).public_key() == public
    with pytest.raises(RequestError, match="the VM has a role"):
        await who.give(vm, b"certificate", b"key", ALICE)
    await who.assign(vm, b"", ALICE)
    assert files(vm) == {}
    assert (vm.info.identity_name, vm.info.identity_expires.is_zero()) == ("", True)


async def test_it_is_renewed_at_half_life(who: Identities, provider: Provider, vm: Vm) -> None:
    provider.lifetime = 2
    await who.assign(vm, await requestor(who, provider), ALICE)
    first, end = files(vm), vm.info.identity_expires
    await vm.until(lambda: vm.info.identity_expires != end)
    now = files(vm)
    assert vm.info.identity_expires.unix_seconds > end.unix_seconds
    for name in (*KEYS, REQUESTOR):
        assert now[name] == first[name]
    assert now[routes.CERTIFICATE] != first[routes.CERTIFICATE]
    assert provider.asked["refresh"] == 0


async def test_what_was_under_way_does_not_come_behind(
    who: Identities, provider: Provider, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that waits for the VM's task, which is about to have the VM be nobody."""
    provider.lifetime = 2
    await who.assign(vm, await requestor(who, provider), ALICE)

    apply, waits = vm.apply, asyncio.Event()

    async def noted(work: Callable[[], Awaitable[None]]) -> None:
        asyncio.get_running_loop().call_soon(waits.set)
        await apply(work)

    async def be_nobody() -> None:
        monkeypatch.setattr(vm, "apply", noted)
        await waits.wait()
        await who.forget(vm)

    await apply(be_nobody)
    await apply(partial(asyncio.sleep, 0))
    assert files(vm) == {}


async def test_credentials_that_come_behind_a_role(
    who: Identities, provider: Provider, vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for the VM's task, one behind the other."""
    pair = pki.issue(pki.make_ca(tmp_path / "ca"), "robot")
    certificate = await requestor(who, provider)
    apply, go_on, waits = vm.apply, asyncio.Event(), asyncio.Event()

    async def noted(work: Callable[[], Awaitable[None]]) -> None:
        asyncio.get_running_loop().call_soon(waits.set)
        await apply(work)

    busy = asyncio.create_task(apply(go_on.wait))
    monkeypatch.setattr(vm, "apply", noted)
    assigning = asyncio.create_task(who.assign(vm, certificate, ALICE))
    await waits.wait()
    waits.clear()
    giving = asyncio.create_task(who.give(vm, pair.certificate, pair.key, ALICE))
    await waits.wait()
    go_on.set()
    with pytest.raises(RequestError, match="the VM has a role"):
        await giving
    await asyncio.gather(busy, assigning)
    assert vm.info.identity_name == "web"
    assert files(vm).keys() == {*CERTIFICATES, *KEYS}


async def test_two_roles_at_once(who: Identities, provider: Provider, vm: Vm) -> None:
    """One of them wins, and nothing goes on renewing the other."""
    certificate = await requestor(who, provider)
    await asyncio.gather(*(who.assign(vm, certificate, ALICE) for _ in range(2)))
    assert vm.info.identity_name == "web"
    name = f"identity of {vm.ip}"
    renewing = [task for task in asyncio.all_tasks() if task.get_name() == name]
    assert len(renewing) == 1
    await who.take_away(vm)
    assert renewing[0].done()
    assert files(vm) == {}


async def test_the_requestor_is_renewed_too(who: Identities, provider: Provider, vm: Vm) -> None:
    provider.lifetime = 2
    old = await requestor(who, provider, begun=4000)
    await who.assign(vm, old, ALICE)
    await provider.until("ssh", 6)
    assert provider.asked["refresh"] == 1
    assert files(vm)[REQUESTOR] != old


async def test_what_fails_is_tried_again(
    who: Identities, provider: Provider, vm: Vm, caplog: pytest.LogCaptureFixture
) -> None:
    provider.lifetime = 2
    await who.assign(vm, await requestor(who, provider), ALICE)
    before = files(vm)
    provider.refuse = 503
    await provider.until("x509", 6)
    assert files(vm) == before
    assert "its identity cannot be renewed, and ends in" in caplog.text
    assert "it answered 503 to /certgen/web: not now" in caplog.text
    provider.refuse = 0
    await provider.until("ssh", 6)
    assert files(vm)[routes.CERTIFICATE] != before[routes.CERTIFICATE]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "it is none in PEM"),
        (b"x" * 70_000, "with more than 65536 bytes"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it is none in PEM"),
        (b"other", "it is for another key"),
    ],
)
async def test_a_provider_that_lies_is_not_believed(
    who: Identities, provider: Provider, vm: Vm, answer: bytes, complaint: str
) -> None:
    asked = await requestor(who, provider)
    provider.spoil = lambda _: asked if answer == b"other" else answer
    with pytest.raises((ProviderError, RoleError), match=complaint):
        await who.assign(vm, asked, ALICE)
    assert files(vm) == {}
    assert vm.info.identity_name == ""


async def test_who_may_not_be_asked_for(who: Identities, provider: Provider, vm: Vm) -> None:
    asked = await requestor(who, provider)
    with pytest.raises(RequestError, match="cannot give VM your own identity"):
        await who.assign(vm, asked, Peer(username="web"))
    other = pki.issue(pki.make_ca(vm.directory.path.parent / "ca"), "web").certificate
    with pytest.raises(RoleError, match="it is for another key"):
        await who.assign(vm, other, ALICE)
    provider.requestor_lifetime = -30
    with pytest.raises(RoleError, match="it has expired"):
        await who.assign(vm, await requestor(who, provider), ALICE)
    provider.refuse = 403
    provider.requestor_lifetime = 3600
    with pytest.raises(ProviderError, match="it answered 403"):
        await who.assign(vm, await requestor(who, provider), ALICE)
    alone = Identities(who._key)
    with pytest.raises(NoProviderError):
        await alone.assign(vm, asked, ALICE)
    stranger = Identities(who._key, IdentityProvider(provider.url))
    with pytest.raises(ProviderError, match="certificate verify failed"):
        await stranger.assign(vm, asked, ALICE)
    assert files(vm) == {}


async def test_a_vm_that_somebody_has_stays_who_it_is(
    who: Identities, provider: Provider, vm: Vm
) -> None:
    """A change that is refused leaves the role, and it is renewed as before."""
    provider.lifetime = 2
    await who.assign(vm, await requestor(who, provider), ALICE)
    async with vm.hold():
        with pytest.raises(BlockedError):
            await who.assign(vm, b"", ALICE)
        with pytest.raises(BlockedError):
            await who.assign(vm, await requestor(who, provider), ALICE)
    assert vm.info.identity_name == "web"
    end = vm.info.identity_expires
    await vm.until(lambda: vm.info.identity_expires != end)
    assert files(vm).keys() == {*CERTIFICATES, *KEYS}


async def test_a_full_disk_leaves_no_mixture(
    who: Identities, provider: Provider, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    await who.assign(vm, await requestor(who, provider), ALICE)

    def full(path: Path, data: bytes, mode: int, *, sync: bool = True) -> None:
        if path.name == routes.ED25519_KEY:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        replace_file(path, data, mode, sync=sync)

    monkeypatch.setattr(identities, "replace_file", full)
    end, provider.lifetime = vm.info.identity_expires, 1800
    with pytest.raises(DiskError, match="No space left"):
        await who.assign(vm, await requestor(who, provider), ALICE)
    left = files(vm)
    assert not left.keys() & {*CERTIFICATES} - {REQUESTOR}
    monkeypatch.undo()
    # The renewal that follows makes it whole again, with the keys there are.
    await vm.until(lambda: vm.info.identity_expires != end)
    assert files(vm).keys() == {*CERTIFICATES, *KEYS}
    assert vm.info.identity_name == "web"


async def test_after_a_restart(
    who: Identities, provider: Provider, vm: Vm, caplog: pytest.LogCaptureFixture
) -> None:
    provider.lifetime = 2
    await who.assign(vm, await requestor(who, provider), ALICE)
    await who.close()
    await who.resume([vm])
    await provider.until("ssh", 4)
    await who.close()
    await Identities(who._key).resume([vm])
    assert "its role is not renewed: there is no --identity-provider" in caplog.text
    # A crash between the files of an identity and its record: nobody is told that it is there.
    vm.info.identity_name = ""
    await who.resume([vm])
    assert files(vm) == {}


async def test_a_given_identity(who: Identities, vm: Vm, tmp_path: Path) -> None:
    authority = pki.make_ca(tmp_path / "ca")
    one, two = pki.issue(authority, "robot"), pki.issue(authority, "other")
    await who.give(vm, one.certificate, one.key, ALICE)
    assert vm.info.identity_name == "robot"
    assert files(vm) == {routes.CERTIFICATE: one.certificate, routes.KEY: one.key}
    for certificate, key, complaint in (
        (one.certificate, two.key, "it is for another key"),
        (one.certificate, b"", "one is missing"),
        (b"", one.key, "one is missing"),
        (b"nonsense", one.key, "it is none in PEM"),
        (one.certificate, b"nonsense", "it is no private key in PEM"),
        (one.certificate, b"k" * 70_000, "it has more than 65536 bytes"),
    ):
        with pytest.raises((RequestError, RoleError), match=complaint):
            await who.give(vm, certificate, key, ALICE)
    with pytest.raises(RequestError, match="cannot give VM your own identity"):
        await who.give(vm, one.certificate, one.key, Peer(username="robot"))
    assert vm.info.identity_name == "robot"
    await who.give(vm, two.certificate, two.key, ALICE)
    assert files(vm) == {routes.CERTIFICATE: two.certificate, routes.KEY: two.key}
    await who.give(vm, b"", b"", ALICE)
    assert files(vm) == {}


def test_no_certificate_stands_beside_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of a change, a guest that looks finds a pair or no certificate."""
    old = {routes.CERTIFICATE: b"old", routes.KEY: b"old"}
    new = {routes.CERTIFICATE: b"new", routes.KEY: b"new"}
    identities.write_identity(tmp_path, old)
    seen = set()
    real, unlink = replace_file, Path.unlink

    def look() -> None:
        certificate, key = tmp_path / routes.CERTIFICATE, tmp_path / routes.KEY
        if certificate.exists():
            assert certificate.read_bytes() == key.read_bytes()
        seen.add(certificate.exists())

    def writing(path: Path, data: bytes, mode: int) -> None:
        look()
        real(path, data, mode)
        look()

    def removing(path: Path, missing_ok: bool = False) -> None:
        look()
        unlink(path, missing_ok=missing_ok)
        look()

    monkeypatch.setattr(identities, "replace_file", writing)
    monkeypatch.setattr(Path, "unlink", removing)
    identities.write_identity(tmp_path, new)
    assert seen == {True, False}
    assert (tmp_path / routes.CERTIFICATE).read_bytes() == b"new"
    identities.write_identity(tmp_path, {})
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_when() -> None:
    assert due(1000, 3000) == 2000
    assert [retry(end, 0) for end in (100_000, 4000, 800, 10, 0)] == [900, 500, 100, 15, 60]


@pytest.mark.parametrize(
    "url", ["http://h", "h:443", "https://", "https://u:p@h", "https://h/?q", "https://[", ""]
)
def test_a_provider_has_an_https_url(url: str) -> None:
    with pytest.raises(ProviderUrlError):
        IdentityProvider(url)
