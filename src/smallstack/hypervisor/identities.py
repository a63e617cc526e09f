"""Who VMs are: certificates and keys in their directories, which only they get to read.

Two ways lead there. Credentials are given, certificate and key, and last as long as they do. Or a
role is: a certificate that may request the role's credentials, for the Hypervisor's own key; with
it the Hypervisor asks the identity provider for them, and again when half their life is over::

    ReplaceVmCredentials ─► pair ──────────────────────────────┐
    ReplaceVmIdentity ────► requestor ─► provider ─► four ─────┼─► files, record ─► metadata
                                ▲            │  certificates   │
                                └── refresh ─┴──── half-life ──┘

Files and record change in the VM's own task, certificates after the keys they are for, so that a
guest never finds a certificate whose key it cannot have. What fails is tried again, the sooner the
nearer the end is; until then what was there stays. At start what is due is taken up again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smallstack.durable import replace_file
from smallstack.hypervisor.errors import DiskError, NoProviderError, RequestError
from smallstack.network.metadata import routes
from smallstack.outlast import outlast
from smallstack.proto.kinds import Time
from smallstack.telemetry.errors import SmallStackError, describe

if TYPE_CHECKING:
    from smallstack.hypervisor.host_key import HostKey
    from smallstack.hypervisor.identity_provider import Asking, IdentityProvider
    from smallstack.hypervisor.vm import Vm
    from smallstack.identity.roles import Holder, Keys
    from smallstack.network.subnets import Caller
    from smallstack.proto.vm import LocalVmInfo, VmInfo

_log = logging.getLogger("smallstack.hypervisor")
REQUESTOR: Final = "identityRequestor.cert"
SHOWN: Final = REQUESTOR + ".new"
"""What is being shown to the provider."""
KEYS: Final = (routes.KEY, routes.ED25519_KEY, routes.ED25519_SSH_KEY)
CERTIFICATES: Final = (
    routes.CERTIFICATE,
    routes.RSA_SSH_CERTIFICATE,
    routes.ED25519_CERTIFICATE,
    routes.ED25519_SSH_CERTIFICATE,
    REQUESTOR,
)
RETRY_LEAST, RETRY_MOST = 15.0, 900.0
"""Seconds between two attempts."""
LONGEST_SLEEP: Final = 600.0
"""Seconds; the clock may be set meanwhile."""
Files = Mapping[str, bytes]


def due(begin: float, end: float) -> float:
    """When credentials are to be renewed: half-way."""
    return begin + (end - begin) / 2


def retry(end: float, now: float, least: float = RETRY_LEAST) -> float:
    """Seconds until the next attempt: an eighth of what is left, a minute when nothing is."""
    if now >= end:
        return 4 * least
    return min(max((end - now) / 8, least), RETRY_MOST)


def write_identity(directory: Path, files: Files) -> None:
    """Have these be a VM's identity, and nothing else of an earlier one. Blocks.

    Raises OSError.
    """
    for name in (*CERTIFICATES, *KEYS):
        if name not in files:
            (directory / name).unlink(missing_ok=True)
    kept = [name for name in KEYS if name in files]
    changed = [name for name in kept if _read(directory / name) != files[name]]
    if changed:
        for name in CERTIFICATES:
            if name != REQUESTOR:  # by which a renewal makes the rest whole, whatever happens now
                (directory / name).unlink(missing_ok=True)
    for name in changed:
        replace_file(directory / name, files[name], 0o600)
    for name in CERTIFICATES:
        if name in files:
            replace_file(directory / name, files[name], 0o644)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


async def check_pair(certificate: bytes, key: bytes, caller: Caller) -> Holder:
    """Whose a certificate and its key are. Raises RequestError, RoleError."""
    return await asyncio.to_thread(_check_pair, certificate, key, caller)


def _check_pair(certificate: bytes, key: bytes, caller: Caller) -> Holder:
    from smallstack.identity.roles import check_certificate, public_of

    if not certificate or not key:
        raise RequestError(detail="an identity is a certificate and its key: one is missing")
    found = check_certificate(certificate, public_of(key), time.time(), "the certificate")
    _check_name(found, caller)
    return found


def _check_name(found: Holder, caller: Caller) -> None:
    if found.name == caller.username:
        raise RequestError(detail="cannot give VM your own identity")


def pair_files(certificate: bytes, key: bytes) -> Files:
    """A given identity's files."""
    return {routes.CERTIFICATE: certificate, routes.KEY: key}


def note_holder(info: VmInfo, holder: Holder | None) -> None:
    """Enter who a VM is, or that it is nobody, into its record."""
    info.identity_name = holder.name if holder else ""
    info.identity_expires = Time(holder.end) if holder else Time.zero()


class Identities:
    """Who all VMs are; a task for each that has a role."""

    def __init__(
        self,
        key: HostKey,
        provider: IdentityProvider | None = None,
        retry_least: float = RETRY_LEAST,
    ) -> None:
        """Without a provider there are no roles."""
        self.provider = provider
        self._key = key
        self._retry_least = retry_least
        self._tasks: dict[Vm, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        """Where the provider is. Raises NoProviderError."""
        if self.provider is None:
            raise NoProviderError
        return self.provider.url

    async def give(self, vm: Vm, certificate: bytes, key: bytes, caller: Caller) -> None:
        """Have a VM be who a certificate says; empty ones: nobody.

        Raises RequestError, RoleError, DiskError, and what `Vm.apply` does.
        """
        if vm in self._tasks:
            raise _has_role()
        if not certificate and not key:
            await self._become(vm, {}, None, given=True)
            return
        found = await check_pair(certificate, key, caller)
        await self._become(vm, pair_files(certificate, key), found, given=True)

    async def assign(self, vm: Vm, requestor: bytes, caller: Caller) -> None:
        """Give a VM a role, or take it away (``requestor`` is empty); it has it on return.

        Raises NoProviderError, ProviderError, RequestError, RoleError, DiskError.
        """
        if not requestor:
            await self.take_away(vm)
            return
        if self.provider is None:
            raise NoProviderError
        from smallstack.identity.roles import check_certificate, new_keys

        public = await self._key.public()
        what = "the certificate"
        found = await asyncio.to_thread(check_certificate, requestor, public, time.time(), what)
        _check_name(found, caller)
        files = await self._fetch(vm, found.name, requestor, await asyncio.to_thread(new_keys))
        await outlast(self._settle(vm, files))

    async def take_away(self, vm: Vm) -> None:
        """Have a VM be nobody. Raises DiskError, and what `Vm.apply` does; then it has its role."""
        await outlast(self._settle(vm, {}))

    async def forget(self, vm: Vm) -> None:
        """As `take_away`, from within the ``work`` of `Vm.apply`; the record says so already."""
        await self.stop(vm)
        try:
            await asyncio.to_thread(write_identity, vm.directory.path, {})
        except OSError as error:
            raise DiskError(path=vm.directory.path, detail=describe(error)) from error

    async def resume(self, vms: Iterable[Vm]) -> None:
        """At start: go on renewing what VMs have, and remove what a crash left of others."""
        for vm in vms:
            directory = vm.directory.path
            await asyncio.to_thread((directory / SHOWN).unlink, missing_ok=True)
            if not vm.info.identity_name:
                await asyncio.to_thread(write_identity, directory, {})
            elif await asyncio.to_thread((directory / REQUESTOR).exists):
                self._begin(vm)

    async def stop(self, vm: Vm) -> None:
        """Renew no more: its VM goes, or is to be somebody else. Nothing of it is under way then
        but what the VM's task is doing at this moment."""
        while (task := self._tasks.get(vm)) is not None:
            task.cancel()
            await asyncio.wait([task])
            if self._tasks.get(vm) is task:
                del self._tasks[vm]

    async def close(self) -> None:
        """End every task."""
        for vm in list(self._tasks):
            await self.stop(vm)

    async def _settle(self, vm: Vm, files: Files) -> None:
        """Have a VM be who these files say, and no renewal of what it was come in between."""
        renewed = vm in self._tasks
        await self.stop(vm)
        try:
            await self._become(vm, files, await self._holder(files) if files else None)
            renewed = REQUESTOR in files
        finally:
            if renewed and not vm.gone:
                await self.stop(vm)  # of who settled something else meanwhile
                self._begin(vm)

    def _begin(self, vm: Vm) -> None:
        if self.provider is None:
            _log.warning("%s: its role is not renewed: there is no --identity-provider", vm.ip)
            return
        self._tasks[vm] = asyncio.create_task(self._renew(vm), name=f"identity of {vm.ip}")

    async def _become(
        self, vm: Vm, files: Files, holder: Holder | None, *, given: bool = False
    ) -> None:
        """Once it is the VM's turn; what is ``given`` is for a VM without a role."""

        def edit(record: LocalVmInfo) -> None:
            note_holder(record.vm_info, holder)

        async def work() -> None:
            if given and await asyncio.to_thread((vm.directory.path / REQUESTOR).exists):
                raise _has_role()  # since it was looked for
            try:
                await asyncio.to_thread(write_identity, vm.directory.path, files)
            except OSError as error:
                raise DiskError(path=vm.directory.path, detail=describe(error)) from error
            await vm.replace_record(edit)

        await vm.apply(work)

    async def _renew(self, vm: Vm) -> None:
        """Renew at half-life, for as long as the VM is there."""
        failed = False
        while not vm.gone:
            files = await asyncio.to_thread(_read_all, vm.directory.path)
            now = time.time()
            try:
                holder = await self._holder(files)
            except SmallStackError as error:
                _log.warning("%s: its identity: %s", vm.ip, error)
                wait, end = self._retry_least if failed else 0.0, now
            else:
                wait, end = due(holder.begin, holder.end) - now, holder.end
                if failed:
                    wait = retry(end, now, self._retry_least)
            # Not at once, whatever a provider gives: it would be asked without end.
            wait = max(wait, self._retry_least / 15)
            await asyncio.sleep(min(wait, LONGEST_SLEEP))
            if wait > LONGEST_SLEEP:
                continue
            try:
                await self._once(vm, files)
                failed = False
            except (SmallStackError, OSError) as error:
                failed = True
                left = max(0, round(end - time.time()))
                _log.warning(
                    "%s: its identity cannot be renewed, and ends in %d s: %s",
                    vm.ip,
                    left,
                    describe(error),
                )

    async def _once(self, vm: Vm, files: Files) -> None:
        from smallstack.identity.roles import Keys, check_certificate

        public = await self._key.public()
        requestor = files.get(REQUESTOR, b"")
        what = "the certificate that requests the role"
        asked = await asyncio.to_thread(check_certificate, requestor, public, time.time(), what)
        keys = Keys(*(files.get(name, b"") for name in KEYS))
        new = await self._fetch(vm, asked.name, requestor, keys, asked)
        await self._become(vm, new, await self._holder(new))
        _log.info("%s: the identity %s was renewed", vm.ip, asked.name)

    async def _fetch(
        self, vm: Vm, role: str, requestor: bytes, keys: Keys, asked: Holder | None = None
    ) -> Files:
        """All files of a role; ``asked`` says how long the requestor lasts, if it may be renewed.

        Raises ProviderError, RoleError, DiskError.
        """
        if self.provider is None:
            raise NoProviderError
        shown = vm.directory.path / SHOWN
        try:
            await asyncio.to_thread(replace_file, shown, requestor, 0o644, sync=False)
            async with await self.provider.open(shown, self._key.path) as asking:
                if asked is not None and time.time() >= due(asked.begin, asked.end):
                    requestor = await self._another(asking, role, requestor)
                return {REQUESTOR: requestor, **await _certificates(asking, role, keys)}
        except OSError as error:
            raise DiskError(path=shown, detail=describe(error)) from error
        finally:
            await asyncio.to_thread(shown.unlink, missing_ok=True)

    async def _another(self, asking: Asking, role: str, requestor: bytes) -> bytes:
        """A requestor that lasts longer, or the one there is: it is good for some time yet."""
        from smallstack.identity.roles import base64_of, check_certificate

        public = await self._key.public()
        what = "the new certificate that requests the role"
        try:
            new = await asking.requestor(base64_of(public))
            found = await asyncio.to_thread(check_certificate, new, public, time.time(), what)
            if found.name != role:
                raise RequestError(detail=f"{what} is for {found.name}, not {role}")
        except SmallStackError as error:
            _log.warning("%s", error)
            return requestor
        return new

    async def _holder(self, files: Files) -> Holder:
        """Who the files make a VM, from the latest begin to the earliest end of X.509."""
        return await asyncio.to_thread(_holder_of, files)


def _has_role() -> RequestError:
    return RequestError(
        detail="the VM has a role, which the identity provider gives its credentials: "
        "take it away first"
    )


def _holder_of(files: Files) -> Holder:
    from smallstack.identity.roles import check_certificate, public_of

    holders = [
        check_certificate(files.get(certificate, b""), public_of(files.get(key, b"")), 0.0, what)
        for certificate, key, what in (
            (routes.CERTIFICATE, routes.KEY, "the RSA certificate"),
            (routes.ED25519_CERTIFICATE, routes.ED25519_KEY, "the Ed25519 certificate"),
        )
    ]
    first = holders[0]
    return first._replace(
        begin=max(one.begin for one in holders), end=min(one.end for one in holders)
    )


def _read_all(directory: Path) -> Files:
    return {name: data for name in (*CERTIFICATES, *KEYS) if (data := _read(directory / name))}


async def _certificates(asking: Asking, role: str, keys: Keys) -> Files:
    """Keys and their four certificates. Raises ProviderError, RoleError."""
    from smallstack.identity import roles
    from smallstack.identity.errors import RoleError

    files = dict(zip(KEYS, keys, strict=True))
    for key, name, ssh_name in (
        (keys.rsa, routes.CERTIFICATE, routes.RSA_SSH_CERTIFICATE),
        (keys.ed25519, routes.ED25519_CERTIFICATE, routes.ED25519_SSH_CERTIFICATE),
    ):
        public = await asyncio.to_thread(roles.public_of, key)
        made = await asking.certificate(role, roles.pem_of(public))
        what = f"what the identity provider gave for {role}"
        found = await asyncio.to_thread(roles.check_certificate, made, public, time.time(), what)
        if found.name != role:
            raise RoleError(what=what, detail=f"it is for {found.name}")
        files[name] = made
        line = await asking.ssh_certificate(role, roles.ssh_line_of(public))
        await asyncio.to_thread(roles.check_ssh_certificate, line, public, time.time())
        files[ssh_name] = line
    return files
