"""The owners of the VM that a daemon runs in, who may do there what they like.

The metadata service of the VM's Hypervisor says who they are, and is asked again every `INTERVAL`::

    /datasource/SmallStack                       "true": this is a SmallStack VM
    /latest/dynamic/instance-identity/document   its record, JSON (`smallstack.proto.vm.VmInfo`)

The address is link-local: on a machine that is no VM anybody on its network could answer, so there
nobody is asked. Owners whose Hypervisor is silent for `FORGET` are trusted no longer.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

import aiohttp

from smallstack.identity.decision import Policy
from smallstack.proto.vm import VmInfo
from smallstack.srpc.json_coder import from_json
from smallstack.telemetry.errors import SmallStackError, describe

METADATA: Final = "http://169.254.169.254"
DATA_SOURCE: Final = "/datasource/SmallStack"
DOCUMENT: Final = "/latest/dynamic/instance-identity/document"
INTERVAL: Final = 10.0
FORGET: Final = 60.0
"""Seconds."""
MAX_DOCUMENT: Final = 1 << 20
_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)
_CPUINFO: Final = Path("/proc/cpuinfo")
_log = logging.getLogger("smallstack.daemon")


class MetadataUnusableError(SmallStackError):
    """the metadata service does not say who owns this VM: {detail}"""


class VmOwners:
    """Keeps ``owner_users`` and ``owner_groups`` of a policy; `start` it, `close` it."""

    def __init__(
        self,
        policy: Policy,
        url: str = METADATA,
        *,
        interval: float = INTERVAL,
        forget: float = FORGET,
    ) -> None:
        self._policy = policy
        self._url = url
        self._interval = interval
        self._forget = forget
        self._task: asyncio.Task[None] | None = None
        self._told: float | None = None

    def start(self) -> None:
        """Ask, now and then."""
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep(self) -> None:
        # No proxy of the environment: what is asked is this VM's own Hypervisor.
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session:
            while True:
                if not await self.refresh(session):
                    return
                await asyncio.sleep(self._interval)

    async def refresh(self, session: aiohttp.ClientSession) -> bool:
        """Ask once; False when this is no SmallStack VM, which it will not become."""
        now = asyncio.get_running_loop().time()
        try:
            source = await _get(session, self._url + DATA_SOURCE)
            if source is None or source.strip() != b"true":
                if self._told is None:
                    return False
                raise MetadataUnusableError(detail=f"{DATA_SOURCE} is not there any more")
            document = await _get(session, self._url + DOCUMENT)
            if document is None:
                raise MetadataUnusableError(detail=f"{DOCUMENT} is not there")
            info = from_json(document, VmInfo)
        except (aiohttp.ClientError, TimeoutError, OSError, SmallStackError) as error:
            _log.debug("%s: %s", self._url, describe(error))
            if self._told is not None and now - self._told >= self._forget:
                self._set(frozenset(), frozenset())
            return True
        self._told = now
        self._set(frozenset(info.owner_users), frozenset(info.owner_groups))
        return True

    def _set(self, users: frozenset[str], groups: frozenset[str]) -> None:
        if (users, groups) == (self._policy.owner_users, self._policy.owner_groups):
            return
        self._policy.owner_users, self._policy.owner_groups = users, groups
        _log.info(
            "this VM's owners, who are trusted here: users %s, groups %s",
            ", ".join(sorted(users)) or "none",
            ", ".join(sorted(groups)) or "none",
        )


def is_virtual_machine(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this machine may be a VM: x86 processors tell, of others it is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), None)
    return flags is None or "hypervisor" in flags.split()


async def _get(session: aiohttp.ClientSession, url: str) -> bytes | None:
    """What the service has there, None when it has nothing. Raises MetadataUnusableError."""
    async with session.get(url, allow_redirects=False) as reply:
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise MetadataUnusableError(detail=f"status {reply.status}")
        data = bytearray()
        async for piece in reply.content.iter_chunked(64 * 1024):
            data += piece
            if len(data) > MAX_DOCUMENT:
                raise MetadataUnusableError(detail=f"it sends more than {MAX_DOCUMENT} bytes")
        return bytes(data)
