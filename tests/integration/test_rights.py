"""Who may call what: every method, by every kind of caller, over TLS, at real daemons.

The expected outcomes are written by hand from the description of the ecosystem's behaviour
(authorisation, catalogues of methods); nothing here reads who may call what from the code.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pytest

from smallstack.client.imageserver import ImageServerClient
from smallstack.hypervisor.owners import FILE as OWNERS_FILE
from smallstack.hypervisor.store import Store, to_json
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials, Pair
from smallstack.network.book import POOL_FILE, SUBNETS_FILE, PoolRecord
from smallstack.proto import imageserver
from smallstack.proto.enums import State
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.proto.image import Image
from smallstack.proto.kinds import Time
from smallstack.proto.methods import METHODS, Method, Shape
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume, Subnet, VmInfo, Volume
from smallstack.srpc import framing
from smallstack.srpc.client import Client, dial
from smallstack.srpc.errors import AccessDeniedError, CallError, CertificateRequiredError
from tests.integration.cloud import IMAGE_PORT, PORT, SUBNET, Cloud

pytestmark = pytest.mark.root

# Outcomes:
#   -  no connection            d  access to method denied
#   y  let through              v  let through, but not to this VM or image
TABLE: Final = """
#                                          no    wrong identity         group   other  method
#                                          cert. CA    only      owner  member  user   power   token
.LocalUpgradeToUnix                        -     -     y         y      y       y      y       y

Hypervisor.AcknowledgeVm                   -     -     v         y      y       v      y       v
Hypervisor.AddVmVolumes                    -     -     v         y      y       v      y       v
Hypervisor.BecomePrimaryVmOwner            -     -     v         y      y       v      y       v
Hypervisor.ChangeAddressPool               -     -     d         d      d       d      y       d
Hypervisor.ChangeOwners                    -     -     d         d      d       d      y       d
Hypervisor.ChangeVmConsoleType             -     -     v         y      y       v      y       v
Hypervisor.ChangeVmCpuPriority             -     -     v         y      y       v      y       v
Hypervisor.ChangeVmDestroyProtection       -     -     v         y      y       v      y       v
Hypervisor.ChangeVmHostname                -     -     v         y      y       v      y       v
Hypervisor.ChangeVmMachineType             -     -     v         y      y       v      y       v
Hypervisor.ChangeVmNumNetworkQueues        -     -     v         y      y       v      y       v
Hypervisor.ChangeVmOwnerGroups             -     -     v         y      y       v      y       v
Hypervisor.ChangeVmOwnerUsers              -     -     v         y      y       v      y       v
Hypervisor.ChangeVmSize                    -     -     v         y      y       v      y       v
Hypervisor.ChangeVmSubnet                  -     -     v         y      y       v      y       v
Hypervisor.ChangeVmTags                    -     -     v         y      y       v      y       v
Hypervisor.ChangeVmVolumeInterfaces        -     -     v         y      y       v      y       v
Hypervisor.ChangeVmVolumeSize              -     -     v         y      y       v      y       v
Hypervisor.ChangeVmVolumeStorageIndex      -     -     v         y      y       v      y       v
Hypervisor.CommitImportedVm                -     -     v         y      y       v      y       v
Hypervisor.ConnectToVmConsole              -     -     v         y      y       v      y       v
Hypervisor.ConnectToVmManager              -     -     d         d      d       d      y       d
Hypervisor.ConnectToVmSerialPort           -     -     v         y      y       v      y       v
Hypervisor.CopyVm                          -     -     y         y      y       y      y       y
Hypervisor.CreateVm                        -     -     y         y      y       y      y       y
Hypervisor.DebugVmImage                    -     -     v         y      y       v      y       v
Hypervisor.DeleteVmVolume                  -     -     v         y      y       v      y       y
Hypervisor.DestroyVm                       -     -     v         y      y       v      y       y
Hypervisor.DiscardVmAccessToken            -     -     v         y      y       v      y       y
Hypervisor.DiscardVmOldImage               -     -     v         y      y       v      y       v
Hypervisor.DiscardVmOldUserData            -     -     v         y      y       v      y       v
Hypervisor.DiscardVmSnapshot               -     -     v         y      y       v      y       v
Hypervisor.ExportLocalVm                   -     -     v         y      y       v      y       v
Hypervisor.GetCapacity                     -     -     y         y      y       y      y       y
Hypervisor.GetIdentityProvider             -     -     y         y      y       y      y       y
Hypervisor.GetPublicKey                    -     -     y         y      y       y      y       y
Hypervisor.GetRootCookiePath               -     -     y         y      y       y      y       y
Hypervisor.GetUpdates                      -     -     y         y      y       y      y       y
Hypervisor.GetVmAccessToken                -     -     v         y      y       v      y       v
Hypervisor.GetVmCreateRequest              -     -     v         y      y       v      y       v
Hypervisor.GetVmInfo                       -     -     y         y      y       y      y       y
Hypervisor.GetVmInfos                      -     -     y         y      y       y      y       y
Hypervisor.GetVmLastPatchLog               -     -     y         y      y       y      y       y
Hypervisor.GetVmUserData                   -     -     v         y      y       v      y       y
Hypervisor.GetVmVirtualiserLogFile         -     -     v         y      y       v      y       v
Hypervisor.GetVmVolume                     -     -     v         y      y       v      y       y
Hypervisor.GetVmVolumeStorageConfiguration -     -     y         y      y       y      y       y
Hypervisor.HoldLock                        -     -     d         d      d       d      y       d
Hypervisor.HoldVmLock                      -     -     d         d      d       d      y       d
Hypervisor.ImportLocalVm                   -     -     y         y      y       y      y       y
Hypervisor.ListSubnets                     -     -     y         y      y       y      y       y
Hypervisor.ListVMs                         -     -     y         y      y       y      y       y
Hypervisor.ListVmVirtualiserLogFiles       -     -     y         y      y       y      y       y
Hypervisor.ListVolumeDirectories           -     -     y         y      y       y      y       y
Hypervisor.MigrateVm                       -     -     y         y      y       y      y       y
Hypervisor.NetbootMachine                  -     -     d         d      d       d      y       d
Hypervisor.PatchVmImage                    -     -     v         y      y       v      y       v
Hypervisor.PowerOff                        -     -     d         d      d       d      y       d
Hypervisor.PrepareVmForMigration           -     -     d         d      d       d      v       d
Hypervisor.ProbeVmPort                     -     -     y         y      y       y      y       y
Hypervisor.RebootVm                        -     -     v         y      y       v      y       v
Hypervisor.RegisterExternalLeases          -     -     d         d      d       d      y       d
Hypervisor.ReorderVmVolumes                -     -     v         y      y       v      y       y
Hypervisor.ReplaceVmCredentials            -     -     v         y      y       v      y       v
Hypervisor.ReplaceVmIdentity               -     -     v         y      y       v      y       v
Hypervisor.ReplaceVmImage                  -     -     v         y      y       v      y       v
Hypervisor.ReplaceVmUserData               -     -     v         y      y       v      y       v
Hypervisor.RestoreVmFromSnapshot           -     -     v         y      y       v      y       v
Hypervisor.RestoreVmImage                  -     -     v         y      y       v      y       v
Hypervisor.RestoreVmUserData               -     -     v         y      y       v      y       v
Hypervisor.ScanVmRoot                      -     -     v         y      y       v      y       v
Hypervisor.SetDisabledState                -     -     d         d      d       d      y       d
Hypervisor.SnapshotVm                      -     -     v         y      y       v      y       v
Hypervisor.StartVm                         -     -     v         y      y       v      y       y
Hypervisor.StopVm                          -     -     v         y      y       v      y       y
Hypervisor.TraceVmMetadata                 -     -     v         y      y       v      y       v
Hypervisor.UpdateSubnets                   -     -     d         d      d       d      y       d
Hypervisor.WatchDhcp                       -     -     d         d      d       d      y       d

ImageServer.AddImage                       -     -     d         d      d       d      y       d
ImageServer.AddImageTrusted                -     -     d         d      d       d      y       d
ImageServer.ChangeImageExpiration          -     -     v         y      y       v      y       v
ImageServer.CheckDirectory                 -     -     y         y      y       y      y       y
ImageServer.CheckImage                     -     -     y         y      y       y      y       y
ImageServer.ChownDirectory                 -     -     v         v      y       v      y       v
ImageServer.DeleteDirectory                -     -     d         d      d       d      y       d
ImageServer.DeleteImage                    -     -     v         y      y       v      y       v
ImageServer.DeleteUnreferencedObjects      -     -     d         d      d       d      y       d
ImageServer.FindLatestImage                -     -     y         y      y       y      y       y
ImageServer.GetFilteredImageUpdates        -     -     y         y      y       y      y       y
ImageServer.GetImage                       -     -     y         y      y       y      y       y
ImageServer.GetImageArchive                -     -     y         y      y       y      y       y
ImageServer.GetImageComputedFiles          -     -     y         y      y       y      y       y
ImageServer.GetImageExpiration             -     -     y         y      y       y      y       y
ImageServer.GetImageInodes                 -     -     y         y      y       y      y       y
ImageServer.GetImageUpdates                -     -     y         y      y       y      y       y
ImageServer.GetImageUsageEstimate          -     -     y         y      y       y      y       y
ImageServer.GetObjectStatisticsForImages   -     -     y         y      y       y      y       y
ImageServer.GetReplicationMaster           -     -     y         y      y       y      y       y
ImageServer.ImportTree                     -     -     d         d      d       d      y       d
ImageServer.ListDirectories                -     -     y         y      y       y      y       y
ImageServer.ListImages                     -     -     y         y      y       y      y       y
ImageServer.ListSelectedImages             -     -     y         y      y       y      y       y
ImageServer.ListUnreferencedObjects        -     -     y         y      y       y      y       y
ImageServer.MakeDirectory                  -     -     d         d      d       d      y       d
ImageServer.RestoreImageFromArchive        -     -     d         d      d       d      y       d

ObjectServer.AddObjects                    -     -     d         d      d       d      y       d
ObjectServer.CheckObjects                  -     -     d         d      d       d      y       d
ObjectServer.GetCompressedObjects          -     -     d         d      d       d      y       d
ObjectServer.GetObjects                    -     -     d         d      d       d      y       d
ObjectServer.ImportObjects                 -     -     d         d      d       d      y       d
ObjectServer.TestBandwidth                 -     -     d         d      d       d      y       d

Logger.Debug                               -     -     d         d      d       d      y       d
Logger.GetStackTrace                       -     -     d         d      d       d      y       d
Logger.Print                               -     -     d         d      d       d      y       d
Logger.SetDebugLevel                       -     -     d         d      d       d      y       d
Logger.Watch                               -     -     d         d      d       d      y       d
"""
COLUMNS: Final = (
    "no certificate",
    "wrong CA",
    "identity only",
    "owner",
    "group member",
    "other user",
    "method power",
    "token",
)
EXPECTED: Final = {
    line.split()[0]: dict(zip(COLUMNS, line.split()[1:], strict=True))
    for line in TABLE.splitlines()
    if line and not line.startswith("#")
}
# Callers beyond those, as which of them the Hypervisor and the image server have to treat them.
FURTHER: Final = {
    "trusted user": ("method power", "method power"),
    "trusted group": ("method power", "method power"),
    "hypervisor owner": ("method power", "other user"),
    "hypervisor owner's group": ("method power", "other user"),
    "powers given up": ("other user", "other user"),
    "powers over others": ("other user", "other user"),
    "other user, by JSON": ("other user", "other user"),
    "owner, by JSON": ("owner", "owner"),
    "another VM's token": ("other user", "other user"),
}
CALLERS: Final = (*COLUMNS, *FURTHER)
NOT_YOURS: Final = (
    "no access to resource: neither you nor a group of yours own it",
    "no access to image: neither you nor a group of yours own it",
    "no membership of crew group",
)

VM: Final = "198.51.100.2"
OWN_VM: Final = {"DestroyVm": 20, "DiscardVmAccessToken": 40, "BecomePrimaryVmOwner": 60}
"""What allowed callers really do: each to a VM of its own, from this address on."""
TOKEN_SECONDS: Final = 600
UPGRADE: Final = framing.UPGRADE.decode()
TEAM: Final = "team"
GROUP: Final = "crew"

# In which subnets a caller may have a VM: those without users and groups are everybody's.
SUBNETS: Final = """
#                           test      users     groups    both
identity only               y         n         n         n
owner                       y         y         n         y
group member                y         n         y         y
other user                  y         n         n         n
method power                y         y         y         y
trusted user                y         y         y         y
trusted group               y         y         y         y
hypervisor owner            y         y         y         y
hypervisor owner's group    y         y         y         y
powers given up             y         n         n         n
powers over others          y         n         n         n
"""
GATEWAYS: Final = {"users": "203.0.113.1", "groups": "192.0.2.1", "both": "203.0.113.129"}

# What needs no certificate where reads are open to anybody; of the image server it is whatever
# checks, finds, gets or lists.
OPEN_READS: Final = {
    UPGRADE,
    "Hypervisor.GetCapacity",
    "Hypervisor.GetVmInfo",
    "Hypervisor.GetVmInfos",
    "Hypervisor.GetVmLastPatchLog",
    "Hypervisor.ListSubnets",
    "Hypervisor.ListVMs",
    "ImageServer.CheckDirectory",
    "ImageServer.CheckImage",
    "ImageServer.FindLatestImage",
    "ImageServer.GetFilteredImageUpdates",
    "ImageServer.GetImage",
    "ImageServer.GetImageArchive",
    "ImageServer.GetImageComputedFiles",
    "ImageServer.GetImageExpiration",
    "ImageServer.GetImageInodes",
    "ImageServer.GetImageUpdates",
    "ImageServer.GetImageUsageEstimate",
    "ImageServer.GetObjectStatisticsForImages",
    "ImageServer.GetReplicationMaster",
    "ImageServer.ListDirectories",
    "ImageServer.ListImages",
    "ImageServer.ListSelectedImages",
    "ImageServer.ListUnreferencedObjects",
    "ObjectServer.CheckObjects",
    "ObjectServer.GetCompressedObjects",
    "ObjectServer.GetObjects",
}


def mac_of(ip: IPv4Address) -> str:
    return (b"\x52\x54" + ip.packed).hex(":")


def restricted(name: str) -> Subnet:
    """One of GATEWAYS, for those it is called after."""
    return Subnet(
        id=name,
        ip_gateway=GATEWAYS[name],
        ip_mask="255.255.255.128",
        allowed_users=[] if name == "groups" else ["olga"],
        allowed_groups=[] if name == "users" else [GROUP],
    )


@dataclass
class Ask:
    """One call that is to be made: by whom, of what."""

    method: Method
    caller: str
    tokens: Mapping[str, bytes]
    cookie: bytes

    @property
    def ip(self) -> str:
        """The VM it is about."""
        if self.method.short_name not in OWN_VM:
            return VM
        return own_vm(self.method.short_name, self.caller)

    @property
    def token(self) -> bytes:
        """Of that VM, or of another, if the caller has one."""
        if self.caller == "token":
            return self.tokens.get(self.ip, b"")
        others = [token for ip, token in self.tokens.items() if ip != self.ip]
        return others[0] if self.caller == "another VM's token" else b""

    def request(self) -> Any:
        """A request that has no effect, or one on what is the caller's own."""
        made = SPECIAL.get(self.method.name)
        if made is not None:
            return made(self)
        assert self.method.request is not None
        fields = {
            "ip_address": self.ip,
            "access_token": self.token,
            "verification_cookie": self.cookie,
            "directory_name": TEAM,
            "image_name": f"{TEAM}/image",
        }
        known = self.method.request.__struct_fields__
        return self.method.request(**{k: v for k, v in fields.items() if k in known})


def own_vm(method: str, caller: str) -> str:
    return f"198.51.100.{OWN_VM[method] + CALLERS.index(caller)}"


def doomed(caller: str) -> str:
    return f"{TEAM}/doomed{CALLERS.index(caller)}"


def in_an_hour() -> Time:
    return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + 3600 * 10**9)


SPECIAL: Final[dict[str, Callable[[Ask], Any]]] = {
    "Hypervisor.ChangeOwners": lambda _: hypervisor.ChangeOwnersRequest(
        owner_users=["hans"], owner_groups=["site"]
    ),
    "Hypervisor.ChangeVmHostname": lambda ask: hypervisor.ChangeVmHostnameRequest(
        ip_address=ask.ip, hostname="guest"
    ),
    "Hypervisor.ChangeVmOwnerGroups": lambda ask: hypervisor.ChangeVmOwnerGroupsRequest(
        ip_address=ask.ip, owner_groups=[GROUP]
    ),
    "Hypervisor.ChangeVmOwnerUsers": lambda ask: hypervisor.ChangeVmOwnerUsersRequest(
        ip_address=ask.ip, owner_users=["olga"]
    ),
    "Hypervisor.GetVmAccessToken": lambda ask: hypervisor.GetVmAccessTokenRequest(
        ip_address=ask.ip, lifetime=TOKEN_SECONDS * 10**9
    ),
    "Hypervisor.PrepareVmForMigration": lambda ask: hypervisor.PrepareVmForMigrationRequest(
        ip_address=ask.ip, enable=True, access_token=ask.token
    ),
    "Hypervisor.ProbeVmPort": lambda ask: hypervisor.ProbeVmPortRequest(ip_address=ask.ip),
    "Hypervisor.WatchDhcp": lambda _: hypervisor.WatchDhcpRequest(interface="none"),
    "ImageServer.AddImage": lambda _: imageserver.AddImageRequest(image_name=f"{TEAM}/new"),
    "ImageServer.AddImageTrusted": lambda _: imageserver.AddImageRequest(image_name=f"{TEAM}/new"),
    "ImageServer.ChangeImageExpiration": lambda _: imageserver.ChangeImageExpirationRequest(
        image_name=f"{TEAM}/image", expires_at=in_an_hour()
    ),
    "ImageServer.ChownDirectory": lambda _: imageserver.ChangeOwnerRequest(
        directory_name=TEAM, owner_group=GROUP
    ),
    "ImageServer.DeleteDirectory": lambda _: imageserver.DeleteDirectoryRequest(
        directory_name="none"
    ),
    "ImageServer.DeleteImage": lambda ask: imageserver.DeleteImageRequest(
        image_name=doomed(ask.caller)
    ),
}


class Site(Cloud):
    """A cloud whose VMs lie ready in the state directory, and its users."""

    def prepare(self) -> None:
        """Keys of everybody, the VMs' records, the Hypervisor's owners."""
        self.make_keys()
        identity = pki.make_ca(self._keys / "ca", identity_only=True)
        stranger = pki.make_ca(self._keys / "other-ca", "SmallStack CA")
        everything = ["*.*"]
        wanted = [
            ("wrong CA", "eve", [GROUP], everything, stranger),
            ("identity only", "ida", [], everything, identity),
            ("owner", "olga", [], [], self._authority),
            ("group member", "mia", ["others", GROUP], [], self._authority),
            ("other user", "otto", ["others"], [], self._authority),
            ("token", "toni", [], [], self._authority),
            ("trusted user", "tina", [], [], self._authority),
            ("trusted group", "tim", ["admins"], [], self._authority),
            ("hypervisor owner", "hans", [], [], self._authority),
            ("hypervisor owner's group", "hugo", ["site"], [], self._authority),
            ("powers given up", "root", [], everything, self._authority),
        ]
        powers = {method.power for method in METHODS.values()} - {UPGRADE}
        for power in powers:
            wanted.append((f"method power/{power}", "op", [], [power], self._authority))
            others = sorted(powers - {power})
            wanted.append((f"powers over others/{power}", "op", [], others, self._authority))

        def make(name: str, user: str, groups: list[str], methods: list[str], by: Any) -> None:
            pki.issue(by, user, groups=groups, methods=methods).write(self._keys / name)

        with ThreadPoolExecutor(16) as pool:  # they wait for the disk, and can do so together
            list(pool.map(lambda one: make(*one), wanted))
        state = Store(self.state)
        state.prepare()
        addresses = [self._write_vm(state, VM)]
        addresses += [
            self._write_vm(state, own_vm(method, caller)) for method in OWN_VM for caller in CALLERS
        ]
        free = [
            Address(ip_address=str(ip), mac_address=mac_of(ip))
            for gateway in (SUBNET.ip_gateway, *GATEWAYS.values())
            for ip in (IPv4Address(gateway) + 100, IPv4Address(gateway) + 101)
        ]
        pool_file = self.state / POOL_FILE
        pool_file.write_bytes(to_json(PoolRecord(free=free, registered=addresses + free)))
        subnets = [SUBNET, *(restricted(name) for name in GATEWAYS)]
        (self.state / SUBNETS_FILE).write_bytes(b"[" + b",".join(map(to_json, subnets)) + b"]")
        owners = hypervisor.ChangeOwnersRequest(owner_users=["hans"], owner_groups=["site"])
        (self.state / OWNERS_FILE).write_bytes(to_json(owners))

    def _write_vm(self, store: Store, ip: str) -> Address:
        """A VM on its way elsewhere: nothing can be done to it but to destroy it."""
        info = VmInfo(
            address=Address(ip_address=ip, mac_address=mac_of(IPv4Address(ip))),
            hostname="guest",
            memory_in_mib=128,
            milli_cpus=10,
            owner_users=["olga"],
            owner_groups=[GROUP],
            state=State.MIGRATING,
            subnet_id=SUBNET.id,
            uncommitted=True,
            volumes=[Volume(size=1 << 20)],
        )
        directory = self.state / "volumes" / ip
        volume = LocalVolume(directory_to_cleanup=str(directory), filename=str(directory / "root"))
        place = store.vm(ip)
        place.create()
        place.write(to_json(LocalVmInfo(vm_info=info, volume_locations=[volume])), sync=False)
        place.user_data.write_bytes(b"user data")
        return info.address

    @property
    def authority(self) -> Path:
        """The directory of the authorities."""
        return self._keys / "ca"

    @property
    def trust(self) -> dict[str, Any]:
        """The daemons' settings about who is trusted."""
        return {
            "identity_ca_file": str(self._keys / "ca" / "identity-ca.pem"),
            "srpc_trusted_users": "tina",
            "srpc_trusted_groups": "admins",
        }

    def pair(self, caller: str, method: str) -> Pair:
        """The certificate with which somebody calls a method."""
        name = caller.partition(", by JSON")[0]
        place = self._keys / {"another VM's token": "token"}.get(name, name)
        if caller in {"method power", "powers over others"}:
            place /= METHODS[method].power if method != UPGRADE else "Hypervisor.CreateVm"
        return Pair(place / "cert.pem", place / "key.pem")

    async def add_images(self) -> None:
        """One that stays, and one for each caller to delete; olga's, in a directory of a group."""
        async with self.images() as client:
            await client.make_directory(TEAM)
            await client.call(
                "ChownDirectory",
                imageserver.ChangeOwnerRequest(directory_name=TEAM, owner_group=GROUP),
                imageserver.ChangeOwnerResponse,
            )
            tree = FileSystemBuilder(mtime_ns=7).build()
            for name in (f"{TEAM}/image", *map(doomed, CALLERS)):
                await add_trusted(client, name, Image(file_system=tree, created_by="olga"))


async def add_trusted(client: ImageServerClient, name: str, image: Image) -> None:
    method = "ImageServer.AddImageTrusted"
    async with client.client.raw(method) as conn:
        conn.encode(imageserver.AddImageRequest(image_name=name, image=image))
        await conn.flush()
        await client.client.reply(conn, method, imageserver.AddImageResponse)


class Connections:
    """A connection for each caller and daemon, made again when a call has ended it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._open: dict[tuple[Pair, int, bool], Client] = {}

    async def get(self, caller: str, method: str, port: int) -> Client:
        pair, json = self._site.pair(caller, method), caller.endswith("by JSON")
        client = self._open.get((pair, port, json))
        if client is None:
            client = await dial(
                ("127.0.0.1", port),
                ClientCredentials(pair),
                use_method_powers=caller != "powers given up",
                endpoints=[framing.TLS_JSON if json else framing.TLS_GOB],
            )
            self._open[pair, port, json] = client
        return client

    async def drop(self, client: Client) -> None:
        self._open = {key: one for key, one in self._open.items() if one is not client}
        client.conn.abort()
        await client.conn.wait_closed()

    async def close(self) -> None:
        for client in list(self._open.values()):
            await self.drop(client)


@pytest.fixture
async def site(
    namespace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    # No test may ever switch its machine off, whatever a daemon thinks of its VMs.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("poweroff", "shutdown", "systemctl"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    made = Site(tmp_path, tmp_path)
    await asyncio.to_thread(made.prepare)
    try:
        await asyncio.gather(
            made.start_image_server(**made.trust), made.start_hypervisor(**made.trust)
        )
        await made.add_images()
        yield made
    finally:
        await made.close()


async def connects(pair: Pair | None, port: int, method: str) -> bool:
    """Whether a server says anything at all to who shows this certificate, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"CONNECT {framing.TLS_GOB.path} HTTP/1.0\n\n".encode())
        assert await reader.readuntil(b"\n\n") == framing.CONNECTED
        try:
            await writer.start_tls(context)
            writer.write(f"{method}\n".encode())
            return bool(await reader.read(1))
        except (ssl.SSLError, ConnectionError):
            return False
    finally:
        writer.transport.abort()


async def outcome(client: Client, method: Method, ask: Ask) -> tuple[str, str, bool]:
    """What becomes of a call: the table's letter, what was said, whether the connection goes on."""
    try:
        async with client.raw(method.name) as conn:
            named = method.response is not None and "error" in method.response.__struct_fields__
            if method.shape is not Shape.REQUEST_REPLY and not named:
                return "y", "a stream", False
            assert method.response is not None
            conn.encode(ask.request())
            await conn.flush()
            text = ""
            if method.shape is Shape.REQUEST_REPLY:
                text = (await conn.read_line()).decode()
            if not text:
                text = getattr(await conn.decode(method.response), "error", "")
            letter = "v" if text in NOT_YOURS else "u" if "not supported yet" in text else "y"
            return letter, text, method.shape is Shape.REQUEST_REPLY
    except AccessDeniedError as error:
        return "d", str(error), True
    except CallError as error:
        raise AssertionError(f"{method.name} by {ask.caller}: {error}") from error


def ports_of(method: Method) -> list[int]:
    """Of the daemons that have it."""
    if method.service in {"", "Logger"}:
        return [PORT, IMAGE_PORT]
    return [PORT if method.service == "Hypervisor" else IMAGE_PORT]


async def test_who_may_do_what(site: Site) -> None:
    assert EXPECTED.keys() == METHODS.keys(), "a row for each method"
    await check_methods(site)
    await check_subnets(site)
    await check_new_owners(site)
    await check_renewal(site)
    await check_open_reads(site)
    connections = Connections(site)
    await check_owners(connections, "otto")  # over the restart
    await connections.close()


async def check_methods(site: Site) -> None:
    """Every method, by every kind of caller."""
    connections = Connections(site)
    async with site.client(ClientCredentials(site.pair("owner", ""))) as client:
        before = await client.get_vm_info(VM)
        tokens = {}
        for ip in (VM, *(own_vm(m, "token") for m in ("DestroyVm", "DiscardVmAccessToken"))):
            request = hypervisor.GetVmAccessTokenRequest(
                ip_address=ip, lifetime=TOKEN_SECONDS * 10**9
            )
            reply = await client.call(
                "GetVmAccessToken", request, hypervisor.GetVmAccessTokenResponse
            )
            assert len(reply.token) == 32, reply.error
            tokens[ip] = reply.token
    cookie = (site.state / "root-cookie").read_bytes()
    wrong: list[str] = []
    found: Counter[str] = Counter()
    for name, row in EXPECTED.items():
        method = METHODS[name]
        for port in ports_of(method):
            for caller in CALLERS:
                ask = Ask(method, caller, tokens, cookie)
                column = FURTHER.get(caller, (caller, caller))[port == IMAGE_PORT]
                said = ""
                if column in {"no certificate", "wrong CA"}:
                    pair = None if caller == "no certificate" else site.pair(caller, name)
                    letter = "y" if await connects(pair, port, name) else "-"
                else:
                    opened = await connections.get(caller, name, port)
                    letter, said, goes_on = await outcome(opened, method, ask)
                    if not goes_on:
                        await connections.drop(opened)
                found[letter] += 1
                if letter != row[column] and (letter, row[column]) != ("u", "y"):
                    wrong.append(f"{name} by {caller}: {letter}, not {row[column]} ({said})")
    await connections.close()
    assert not wrong, "\n".join(wrong)
    async with site.client() as client:
        assert await client.get_vm_info(VM) == before, "nothing has changed"
        left = {info.address.ip_address for info in await client.get_vm_infos()}
    for caller in CALLERS:
        column = FURTHER.get(caller, (caller,))[0]
        destroyed = EXPECTED["Hypervisor.DestroyVm"][column] == "y"
        assert (own_vm("DestroyVm", caller) not in left) is destroyed, caller
    async with site.images() as images:
        names = await images.list_images()
    for caller in CALLERS:
        column = FURTHER.get(caller, (caller, caller))[1]
        deleted = EXPECTED["ImageServer.DeleteImage"][column] == "y"
        assert (doomed(caller) not in names) is deleted, caller
    print(
        f"\n{len(EXPECTED)} methods x {len(CALLERS)} callers: {found.total()} checks, all as the "
        f"table has them: {found['-']} not connected, {found['d']} denied, {found['v']} kept from "
        f"the VM or image, {found['y'] + found['u']} let through, of which {found['u']} are "
        f"not supported yet"
    )


async def check_subnets(site: Site) -> None:
    """A VM that does not fit asks for an address in a subnet, as its first or its second."""
    connections = Connections(site)
    header, *rows = (line.split("  ") for line in SUBNETS.strip().splitlines())
    names = [name.strip() for name in header[1:] if name.strip()]
    checks = 0
    for caller, *cells in rows:
        expected = dict(zip(names, (cell.strip() for cell in cells if cell.strip()), strict=True))
        client = await connections.get(caller, "Hypervisor.CreateVm", PORT)
        for name in names:
            for subnets in ([name], ["test", name]):
                if name == "test" and len(subnets) > 1:
                    continue
                request = hypervisor.CreateVmRequest(
                    vm_info=VmInfo(
                        hostname="guest",
                        image_name="none",
                        memory_in_mib=1 << 40,
                        milli_cpus=10,
                        subnet_id=subnets[0],
                        secondary_subnet_ids=subnets[1:],
                    )
                )
                async with client.raw("Hypervisor.CreateVm") as conn:
                    conn.encode(request)
                    await conn.flush()
                    while not (text := (await conn.decode(hypervisor.CreateVmResponse)).error):
                        pass
                said = "y" if "memory" in text else "n"
                assert text == f"no access to subnet: {name}" or said == "y", text
                assert said == expected[name], f"{caller} in {subnets}: {text}"
                checks += 1
    await connections.close()
    print(f"{checks} checks of subnets")


async def check_new_owners(site: Site) -> None:
    """Others become the Hypervisor's owners: at once, on connections that are there already."""
    connections = Connections(site)
    await check_owners(connections, "hans")
    async with site.client() as client:
        request = hypervisor.ChangeOwnersRequest(owner_users=["otto"])
        await client.checked("ChangeOwners", request, hypervisor.ChangeOwnersResponse)
    await check_owners(connections, "otto")
    await connections.close()


async def check_owners(connections: Connections, owner: str) -> None:
    """Who of the two is the owner has powers."""
    method = METHODS["Hypervisor.SetDisabledState"]
    for user, caller in (("hans", "hypervisor owner"), ("otto", "other user")):
        client = await connections.get(caller, method.name, PORT)
        letter, said, _ = await outcome(client, method, Ask(method, caller, {}, b""))
        assert letter == ("y" if user == owner else "d"), (user, said)


async def check_renewal(site: Site) -> None:
    """New keys, and files that are no good, under both running daemons."""
    user = site.pair("owner", "")
    for name, port in (("hypervisor", PORT), ("imageserver", IMAGE_PORT)):
        before = await shown(user, port)
        pair = site.pair(name, "")
        pki.renew(site.authority, pair.certificate, new_key=True)
        after = await shown(user, port)
        assert after != before
        assert after == ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
        pair.key.write_text("no key")
        assert await shown(user, port) == after
        page = (await scrape(port)).splitlines()
        assert 'smallstack_certificate_renewals_total{outcome="used"} 1.0' in page
        assert 'smallstack_certificate_renewals_total{outcome="failed"} 1.0' in page
        left = f'smallstack_certificate_left_seconds{{file="{pair.certificate}",name="{name}"}}'
        assert any(line.startswith(left) for line in page)
        pki.renew(site.authority, pair.certificate, new_key=True)


async def shown(user: Pair, port: int) -> bytes:
    """The certificate that a daemon shows to somebody it accepts."""
    async with await dial(("127.0.0.1", port), ClientCredentials(user)) as client:
        await client.ping()
        assert client.conn.tls is not None
        return client.conn.tls.getpeercert(binary_form=True) or b""


async def scrape(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = await reader.read()
    writer.transport.abort()
    return page.decode()


async def check_open_reads(site: Site) -> None:
    """Who shows no certificate has nothing, and what is open to anybody once that is asked for."""
    for port in (PORT, IMAGE_PORT):
        with pytest.raises(CertificateRequiredError):
            await dial(("127.0.0.1", port), None)
    await site.stop_hypervisor()
    assert site.image_server is not None
    await site.image_server.stop()
    options: dict[str, Any] = {**site.trust, "allow_unauthenticated_reads": "true"}
    await asyncio.gather(
        site.start_image_server(anybody_reads=True, **site.trust), site.start_hypervisor(**options)
    )
    checks = 0
    for name, method in METHODS.items():
        for port in ports_of(method):
            async with await dial(("127.0.0.1", port), None) as client:
                letter, said, _ = await outcome(client, method, Ask(method, "anybody", {}, b""))
                expected = {"y", "u"} if name in OPEN_READS else {"d"}
                assert letter in expected, f"{name} by anybody: {letter} ({said})"
                assert await connects(None, port, name) is False
                checks += 2
    print(f"{checks} checks without a certificate, where reads are open")
