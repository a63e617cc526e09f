"""The daemon: settings into parts, repairs, then one port for everything until it is told to end.

``kill -9`` is an ordinary end: the next start puts right what was cut short (see `agent`). After
SIGTERM running calls have some seconds; VMs run on in either case.
"""

import asyncio
import fcntl
import logging
import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Literal, cast

from smallstack.daemon.certificates import Certificates
from smallstack.daemon.limits import CALLS_PER_SECOND
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.logger import LoggerService
from smallstack.daemon.pages import Pages
from smallstack.daemon.rpc_metrics import RpcMetrics
from smallstack.daemon.run import Runtime
from smallstack.daemon.trust import TRUST_VM_OWNERS, TRUSTED_GROUPS, TRUSTED_USERS, trusting
from smallstack.hypervisor.agent import ACKNOWLEDGE_SECONDS, Agent, Parts
from smallstack.hypervisor.errors import HypervisorError
from smallstack.hypervisor.host import GIB, LocalHost
from smallstack.hypervisor.host_key import HostKey
from smallstack.hypervisor.identities import Identities
from smallstack.hypervisor.identity_provider import IdentityProvider
from smallstack.hypervisor.image_url import UrlPolicy
from smallstack.hypervisor.images import Images
from smallstack.hypervisor.imports import MAX_IMAGE, Imports
from smallstack.hypervisor.ledger import Ledger
from smallstack.hypervisor.owners import Owners
from smallstack.hypervisor.pages import add_metrics, add_pages
from smallstack.hypervisor.recovery import recover_all
from smallstack.hypervisor.roots import Roots
from smallstack.hypervisor.service import Service
from smallstack.hypervisor.specs import Emulator, host_processors
from smallstack.hypervisor.store import Store
from smallstack.hypervisor.users import COUNT, FIRST, check_uids
from smallstack.hypervisor.wiring import Wiring
from smallstack.identity.credentials import Pair
from smallstack.machine.accelerator import probe
from smallstack.machine.cgroup import CpuGroups, open_groups, state_name
from smallstack.machine.errors import CgroupError
from smallstack.network.book import AddressBook
from smallstack.network.metadata.routes import Rules, TokensFor
from smallstack.objects.cache import ObjectCache
from smallstack.objects.peer import COMPRESSION, Compression
from smallstack.settings import (
    Setting,
    Values,
    boolean,
    choice,
    duration,
    integer,
    path,
    size,
    text,
    words,
)
from smallstack.srpc.server import Server
from smallstack.steps import PointHook
from smallstack.telemetry.errors import describe
from smallstack.volumes.bootloader import BootLoaders

_log = logging.getLogger("smallstack.hypervisor")
DEFAULT_CACHE = 10 * GIB
CACHE_SHARE = 8
"""Unless told otherwise the object cache may have this fraction of its file system, at most."""

STATE_DIR = Setting("state_dir", path, Path("/var/lib/hypervisor"), "where VMs' records lie")
VOLUME_DIRECTORIES: Setting[tuple[str, ...]] = Setting(
    "volume_directories", words, (), "where VMs' volumes lie; default: below the state directory"
)
IMAGE_SERVER = Setting("image_server", text, "localhost:6971", "host:port of the image server")
PORT = Setting("port", integer, 6976, "TCP port for RPC and pages")
LISTEN = Setting("listen", text, "", "address to listen on; default: all")
BRIDGES: Setting[tuple[str, ...]] = Setting(
    "bridge", words, (), "bridges for VMs; default: all bridges of this machine"
)
BRIDGE_ADDRESS = Setting(
    "bridge_address", text, "", "address/prefix for the first bridge, which is made if missing"
)
OBJECT_CACHE_SIZE = Setting(
    "object_cache_size", size, 0, "bytes; default: 10G, or an eighth of the file system if less"
)
OBJECT_COMPRESSION = Setting(
    "object_compression",
    choice(*COMPRESSION),
    "auto",
    "ask the image server for objects by zstd: auto leaves that for one on this machine",
)
IMAGE_URL_HOSTS: Setting[tuple[str, ...]] = Setting(
    "image_url_hosts", words, ("*",), "hosts of images by URL: names, *.name, * for any; or none"
)
LOCAL_IMAGES_DIRECTORY = Setting(
    "local_images_directory", text, "", "directory for images by file: URL; default: none"
)
IMAGE_CA_FILE = Setting(
    "image_ca_file", text, "", "authority of images' https servers; default: the system's"
)
MAX_IMAGE_SIZE = Setting(
    "max_image_size", size, MAX_IMAGE, "bytes of an image sent or by URL, as it comes and unpacked"
)
ACCELERATOR = Setting("accelerator", choice("auto", "kvm", "tcg"), "auto", "how guests run")
QEMU = Setting("qemu", text, "qemu-system-x86_64", "the emulator's program")
QEMU_USER = Setting("qemu_user", text, "", "one user for every QEMU; default: one for each VM")
QEMU_UIDS = Setting(
    "qemu_uids", integer, FIRST, f"the first of {COUNT} uids for QEMU, one for each VM"
)
QEMU_START_TIMEOUT = Setting(
    "qemu_start_timeout", duration, 30 * 10**9, "a QEMU that is silent for so long is killed"
)
CPU_CONTROL = Setting(
    "cpu_control",
    choice("weight", "quota", "none"),
    "weight",
    "milliCPUs share out busy processors, or bound a VM even when they idle, or do neither",
)
CA_FILE = Setting("ca_file", path, Path("/etc/ssl/CA.pem"), "authority of clients' certificates")
IDENTITY_CA_FILE = Setting(
    "identity_ca_file",
    text,
    "/etc/ssl/IdentityCA.pem",
    "authority that vouches for names and groups, not for methods; the default need not exist",
)
IDENTITY_PROVIDER = Setting(
    "identity_provider", text, "", "base URL of the provider of VMs' credentials"
)
IDENTITY_PROVIDER_CA_FILE = Setting(
    "identity_provider_ca_file", text, "", "authority of the provider; default: the system's"
)
METADATA_TOKENS = Setting(
    "metadata_tokens",
    choice("nothing", "credentials", "everything"),
    "nothing",
    "what guests get of the metadata service only by a token, as EC2's version 2",
)
CERT_FILE = Setting("cert_file", path, Path("/etc/ssl/hypervisor/cert.pem"), "own certificate")
KEY_FILE = Setting("key_file", path, Path("/etc/ssl/hypervisor/key.pem"), "its key")
INSECURE = Setting("insecure", boolean, False, "no TLS, every right for whoever reaches the port")
OPEN_PAGES = Setting("open_pages", boolean, False, "pages without a client certificate")
UNAUTHENTICATED_READS = Setting(
    "allow_unauthenticated_reads", boolean, False, "lists of VMs for everybody"
)
LOG_LEVEL = Setting("log_level", text, "info", "debug, info, warning or error")

SETTINGS: list[Setting[object]] = [
    cast("Setting[object]", setting)
    for setting in (
        STATE_DIR,
        VOLUME_DIRECTORIES,
        IMAGE_SERVER,
        PORT,
        LISTEN,
        BRIDGES,
        BRIDGE_ADDRESS,
        OBJECT_CACHE_SIZE,
        OBJECT_COMPRESSION,
        IMAGE_URL_HOSTS,
        LOCAL_IMAGES_DIRECTORY,
        IMAGE_CA_FILE,
        MAX_IMAGE_SIZE,
        ACCELERATOR,
        QEMU,
        QEMU_USER,
        QEMU_UIDS,
        QEMU_START_TIMEOUT,
        CPU_CONTROL,
        CA_FILE,
        IDENTITY_CA_FILE,
        IDENTITY_PROVIDER,
        IDENTITY_PROVIDER_CA_FILE,
        METADATA_TOKENS,
        CERT_FILE,
        KEY_FILE,
        TRUSTED_USERS,
        TRUSTED_GROUPS,
        TRUST_VM_OWNERS,
        INSECURE,
        OPEN_PAGES,
        UNAUTHENTICATED_READS,
        CALLS_PER_SECOND,
        LOG_LEVEL,
    )
]


class NotRootError(HypervisorError):
    """the hypervisor needs root: it makes taps, bridges and namespaces, and starts QEMU as
    another user"""


class NoUserError(HypervisorError):
    """there is no user {name!r} for QEMU: make it, or name another one by --qemu-user"""


class RootUserError(HypervisorError):
    """QEMU may not run as {name!r}, who is root: name another user by --qemu-user"""


class StateBusyError(HypervisorError):
    """the state directory {path} is in use by another hypervisor: stop that one first"""


async def serve(
    values: Values,
    runtime: Runtime,
    on_point: PointHook | None = None,
    acknowledge_seconds: float = ACKNOWLEDGE_SECONDS,
) -> None:
    """Run the agent until it is told to stop. Raises SmallStackError for what keeps it from it.

    ``on_point`` hears of every step of every create; tests end the process there.
    """
    if os.geteuid() != 0:
        raise NotRootError
    certificates = None if values[INSECURE] else _certificates(values, runtime)
    async with AsyncExitStack() as stack:
        store = Store(values[STATE_DIR])
        await asyncio.to_thread(store.prepare)
        stack.enter_context(_lock(store))
        owners = await asyncio.to_thread(Owners.load, store.directory)
        server = Server(
            certificates.server if certificates else None,
            insecure=values[INSECURE],
            policy=await stack.enter_async_context(trusting(values, owners.grant)),
            allow_unauthenticated_reads=values[UNAUTHENTICATED_READS],
            observer=RpcMetrics(runtime.metrics),
            calls_per_second=values[CALLS_PER_SECOND],
        )
        if certificates is not None:
            certificates.start()
            stack.push_async_callback(certificates.close)
            runtime.on_reload(certificates.renew)
        pages = Pages(runtime.metrics, open_pages=values[OPEN_PAGES], server=server)
        agent = await _open_agent(values, store, owners, certificates)
        agent.acknowledge_seconds = acknowledge_seconds
        stack.push_async_callback(agent.close)
        await recover_all(agent)
        await agent.load()
        await agent.resume()
        logger = LoggerService()
        stack.callback(logger.close)
        server.register("Logger", logger.handlers())
        server.register("Hypervisor", Service(agent, on_point).handlers())
        add_pages(pages, agent)
        add_metrics(runtime.metrics, agent)
        await pages.start()
        stack.push_async_callback(pages.stop)
        listener = Listener(server, pages.factory)
        stack.push_async_callback(listener.close)
        stack.callback(agent.updates.close)  # first: those streams end by nothing else
        for sock in bind(values[LISTEN], values[PORT]):
            await listener.add(sock)
        for sock in agent.parts.wiring.control_sockets:
            await listener.add(sock)
        _log.info(
            "serving on port %d; accelerator %s: %s",
            values[PORT],
            agent.parts.emulator.verdict.accelerator,
            agent.parts.emulator.verdict.reason,
        )
        runtime.ready()
        await runtime.stopped()


async def _open_agent(
    values: Values, store: Store, owners: Owners, certificates: Certificates | None
) -> Agent:
    """Every part, opened; when one cannot be, those before it are closed."""
    emulator = await _emulator(values, store)
    book = await asyncio.to_thread(AddressBook.load, store.directory)
    directories = [Path(d) for d in values[VOLUME_DIRECTORIES]] or [store.directory / "volumes"]
    bridges = values[BRIDGES]
    host = LocalHost()
    for directory in directories:
        await asyncio.to_thread(_make, directory)
    quota = values[OBJECT_CACHE_SIZE] or min(
        DEFAULT_CACHE, host.space(store.objects).size // CACHE_SHARE
    )
    async with AsyncExitStack() as stack:
        if emulator.groups is not None:
            stack.callback(emulator.groups.close)
        cache = await asyncio.to_thread(ObjectCache, store.objects, quota)
        stack.callback(cache.close)
        await cache.sweep()
        ledger = Ledger(
            host,
            book,
            directories,
            cache_directory=store.objects,
            cache_unused=lambda: max(0, quota - cache.used_bytes),
        )
        images = Images(
            values[IMAGE_SERVER],
            certificates.client if certificates else None,  # the agent's own certificate
            cache,
            cast("Compression", values[OBJECT_COMPRESSION]),
        )
        loaders = BootLoaders(store.boot_loaders)
        roots = await asyncio.to_thread(Roots, directories, cache, images, loaders)
        local = values[LOCAL_IMAGES_DIRECTORY]
        policy = UrlPolicy(
            values[IMAGE_URL_HOSTS], Path(local) if local else None, values[IMAGE_CA_FILE]
        )
        imports = await asyncio.to_thread(Imports, roots, ledger, policy, values[MAX_IMAGE_SIZE])
        vms: list[Agent] = []
        key = HostKey(store.directory)
        wiring = await Wiring.open(
            book,
            bridges,
            values[BRIDGE_ADDRESS] or None,
            lambda ip: vms[0].vms.get(ip) if vms else None,
            # Without certificates every guest would have every right there.
            None if values[INSECURE] else values[PORT],
            Rules(tokens_for=cast("TokensFor", values[METADATA_TOKENS])),
            key.sign,
        )
        agent = Agent(
            Parts(
                store,
                owners,
                ledger,
                book,
                cache,
                images,
                roots,
                wiring,
                emulator,
                imports,
                key,
                Identities(key, _provider(values)),
            ),
            anonymous_creates=values[INSECURE],
        )
        vms.append(agent)
        stack.pop_all()
    return agent


def _provider(values: Values) -> IdentityProvider | None:
    url = values[IDENTITY_PROVIDER]
    return IdentityProvider(url, values[IDENTITY_PROVIDER_CA_FILE]) if url else None


async def _emulator(values: Values, store: Store) -> Emulator:
    setting = cast("Literal['auto', 'kvm', 'tcg']", values[ACCELERATOR])
    verdict = await probe(setting, values[STATE_DIR])
    uid, gid = await asyncio.to_thread(_user, values)
    if shutil.which(values[QEMU]) is None:
        _log.warning("%s is not installed: no VM can be started", values[QEMU])
    return Emulator(
        values[QEMU],
        verdict,
        uid,
        gid,
        host_processors(),
        values[QEMU_START_TIMEOUT] / 1e9,
        await asyncio.to_thread(_cpu_groups, store, values[CPU_CONTROL]),
        own_users=not values[QEMU_USER],
    )


def _user(values: Values) -> tuple[int, int]:
    """Uid and gid of every QEMU, or the first of them."""
    name = values[QEMU_USER]
    if not name:
        check_uids(values[QEMU_UIDS])
        return values[QEMU_UIDS], values[QEMU_UIDS]
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise NoUserError(name=name) from None
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise RootUserError(name=name)
    return user.pw_uid, user.pw_gid


def _cpu_groups(store: Store, control: str) -> CpuGroups | None:
    if control == "none":
        return None
    try:
        return open_groups(state_name(store.directory), quota=control == "quota")
    except CgroupError as error:
        _log.warning("%s", error)
        return None


def _certificates(values: Values, runtime: Runtime) -> Certificates:
    pair = Pair(values[CERT_FILE], values[KEY_FILE])
    identity = values[IDENTITY_CA_FILE]
    return Certificates(
        pair,
        values[CA_FILE],
        Path(identity) if identity else None,
        runtime.metrics,
        identity_optional=values.origin(IDENTITY_CA_FILE) == "default",
    )


@contextmanager
def _lock(store: Store) -> Iterator[None]:
    """Keep a second agent off the state directory. Raises StateBusyError."""
    fd = os.open(store.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateBusyError(path=store.directory) from None
    try:
        yield
    finally:
        os.close(fd)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HypervisorError(
            detail=f"cannot use the volume directory {directory}: {describe(error)}"
        ) from error
