"""Every RPC method there is: its messages, its shape, and who may call it.

A *public* method needs an authenticated caller only, any other one a method power. Methods marked
``unauthenticated_read`` need nothing at all when the daemon allows unauthenticated reads.
"""

# ruff: noqa: SIM905 - lists of words read better as words

from dataclasses import dataclass
from enum import Enum
from typing import Final

from smallstack.proto import imageserver, logger, objectserver, srpc
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.proto.image import Directory
from smallstack.proto.kinds import Message


class Shape(Enum):
    """How the bytes of a call go."""

    REQUEST_REPLY = "request-reply"
    """One request; an accepting or refusing line and one reply."""
    RAW = "raw"
    """The handler reads and writes as it likes; no second line."""
    CODER = "coder"
    """As raw, with a coder for both directions made beforehand."""


@dataclass(frozen=True)
class Method:
    """One method. A message of None: the call carries none, or only text or raw bytes."""

    name: str
    request: type[Message] | None
    response: type[Message] | None
    shape: Shape = Shape.REQUEST_REPLY
    public: bool = True
    unauthenticated_read: bool = False
    rights_of: str = ""
    """The full name of the method whose rights let a caller use this one, when not its own; only
    methods that upstream does not have are so."""

    endless: bool = False
    """Whether it goes on until the caller ends it: a server that stops does not wait for it."""

    @property
    def power(self) -> str:
        """The name that a certificate has to grant."""
        return self.rights_of or self.name

    @property
    def service(self) -> str:
        """What stands before the dot."""
        return self.name.partition(".")[0]

    @property
    def short_name(self) -> str:
        """What stands behind the dot."""
        return self.name.partition(".")[2]


_HYPERVISOR_RAW: Final = frozenset(
    """ConnectToVmConsole ConnectToVmManager ConnectToVmSerialPort CopyVm CreateVm DebugVmImage
    GetUpdates GetVmLastPatchLog GetVmUserData GetVmVirtualiserLogFile GetVmVolume MigrateVm
    PatchVmImage ReplaceVmImage TraceVmMetadata WatchDhcp""".split()
)
_HYPERVISOR_POWER: Final = frozenset(
    """ChangeAddressPool ChangeOwners ConnectToVmManager HoldLock HoldVmLock NetbootMachine PowerOff
    PrepareVmForMigration RegisterExternalLeases SetDisabledState UpdateSubnets WatchDhcp""".split()
)
_HYPERVISOR_READ: Final = frozenset(
    "GetCapacity GetVmInfo GetVmInfos GetVmLastPatchLog ListSubnets ListVMs".split()
)
_HYPERVISOR_ENDLESS: Final = frozenset(
    """ConnectToVmConsole ConnectToVmManager ConnectToVmSerialPort GetUpdates TraceVmMetadata
    WatchDhcp""".split()
)
_HYPERVISOR_SPECIAL: Final[dict[str, tuple[type[Message] | None, type[Message] | None]]] = {
    "GetUpdates": (hypervisor.GetUpdatesRequest, hypervisor.Update),
}
_HYPERVISOR: Final = """AcknowledgeVm AddVmVolumes BecomePrimaryVmOwner ChangeAddressPool
    ChangeOwners ChangeVmConsoleType ChangeVmCpuPriority ChangeVmDestroyProtection ChangeVmHostname
    ChangeVmMachineType ChangeVmNumNetworkQueues ChangeVmOwnerGroups ChangeVmOwnerUsers
    ChangeVmSize ChangeVmSubnet ChangeVmTags ChangeVmVolumeInterfaces ChangeVmVolumeSize
    ChangeVmVolumeStorageIndex CommitImportedVm ConnectToVmConsole ConnectToVmManager
    ConnectToVmSerialPort CopyVm CreateVm DebugVmImage DeleteVmVolume DestroyVm
    DiscardVmAccessToken DiscardVmOldImage DiscardVmOldUserData DiscardVmSnapshot ExportLocalVm
    GetCapacity GetIdentityProvider GetPublicKey GetRootCookiePath GetUpdates GetVmAccessToken
    GetVmCreateRequest GetVmInfo GetVmInfos GetVmLastPatchLog GetVmUserData GetVmVirtualiserLogFile
    GetVmVolume GetVmVolumeStorageConfiguration HoldLock HoldVmLock ImportLocalVm ListSubnets
    ListVMs ListVmVirtualiserLogFiles ListVolumeDirectories MigrateVm NetbootMachine PatchVmImage
    PowerOff PrepareVmForMigration ProbeVmPort RebootVm RegisterExternalLeases ReorderVmVolumes
    ReplaceVmCredentials ReplaceVmIdentity ReplaceVmImage ReplaceVmUserData RestoreVmFromSnapshot
    RestoreVmImage RestoreVmUserData ScanVmRoot SetDisabledState SnapshotVm StartVm StopVm
    TraceVmMetadata UpdateSubnets WatchDhcp""".split()

_IMAGE_SERVER_RAW: Final = frozenset(
    """GetFilteredImageUpdates GetImageUpdates ListDirectories ListImages ListSelectedImages
    ListUnreferencedObjects""".split()
)
_IMAGE_SERVER_ENDLESS: Final = frozenset("GetFilteredImageUpdates GetImageUpdates".split())
_IMAGE_SERVER_POWER: Final = frozenset(
    """AddImage AddImageTrusted DeleteDirectory DeleteUnreferencedObjects ImportTree MakeDirectory
    RestoreImageFromArchive""".split()
)
_IMAGE_SERVER_SPECIAL: Final[dict[str, tuple[type[Message] | None, type[Message] | None]]] = {
    "AddImageTrusted": (imageserver.AddImageRequest, imageserver.AddImageResponse),
    "ChownDirectory": (imageserver.ChangeOwnerRequest, imageserver.ChangeOwnerResponse),
    "GetFilteredImageUpdates": (
        imageserver.GetFilteredImageUpdatesRequest,
        imageserver.ImageUpdate,
    ),
    "GetImageUpdates": (None, imageserver.ImageUpdate),
    "ListDirectories": (None, Directory),
    "ListImages": (None, None),
    "ListSelectedImages": (imageserver.ListSelectedImagesRequest, None),
    "ListUnreferencedObjects": (None, imageserver.Object),
}
_IMAGE_SERVER: Final = """AddImage AddImageTrusted ChangeImageExpiration CheckDirectory CheckImage
    ChownDirectory DeleteDirectory DeleteImage DeleteUnreferencedObjects FindLatestImage
    GetFilteredImageUpdates GetImage GetImageArchive GetImageComputedFiles GetImageExpiration
    GetImageInodes GetImageUpdates GetImageUsageEstimate GetObjectStatisticsForImages
    GetReplicationMaster ImportTree ListDirectories ListImages ListSelectedImages
    ListUnreferencedObjects MakeDirectory RestoreImageFromArchive""".split()

_OBJECT_SERVER: Final = (
    Method(
        "ObjectServer.AddObjects",
        objectserver.AddObjectRequest,
        objectserver.AddObjectResponse,
        Shape.RAW,
        public=False,
    ),
    Method(
        "ObjectServer.CheckObjects",
        objectserver.CheckObjectsRequest,
        objectserver.CheckObjectsResponse,
        public=False,
        unauthenticated_read=True,
    ),
    Method(
        "ObjectServer.GetObjects",
        objectserver.GetObjectsRequest,
        objectserver.GetObjectsResponse,
        Shape.RAW,
        public=False,
        unauthenticated_read=True,
    ),
    Method(
        "ObjectServer.GetCompressedObjects",
        objectserver.GetCompressedObjectsRequest,
        objectserver.GetCompressedObjectsResponse,
        Shape.RAW,
        public=False,
        unauthenticated_read=True,
        rights_of="ObjectServer.GetObjects",
    ),
    Method(
        "ObjectServer.ImportObjects",
        objectserver.ImportObjectsRequest,
        objectserver.ImportObjectsResponse,
        public=False,
    ),
    Method(
        "ObjectServer.TestBandwidth",
        objectserver.TestBandwidthRequest,
        objectserver.TestBandwidthResponse,
        Shape.RAW,
        public=False,
    ),
)

_LOGGER: Final = (
    Method("Logger.Debug", logger.DebugRequest, logger.DebugResponse, public=False),
    Method(
        "Logger.GetStackTrace",
        logger.GetStackTraceRequest,
        logger.GetStackTraceResponse,
        public=False,
    ),
    Method("Logger.Print", logger.PrintRequest, logger.PrintResponse, public=False),
    Method(
        "Logger.SetDebugLevel",
        logger.SetDebugLevelRequest,
        logger.SetDebugLevelResponse,
        public=False,
    ),
    Method(
        "Logger.Watch",
        logger.WatchRequest,
        logger.WatchResponse,
        Shape.RAW,
        public=False,
        endless=True,
    ),
)

_UPGRADE: Final = Method(
    ".LocalUpgradeToUnix",
    srpc.LocalUpgradeToUnixRequestOne,
    srpc.LocalUpgradeToUnixResponseOne,
    Shape.RAW,
)


def _messages(
    module: object,
    name: str,
    special: dict[str, tuple[type[Message] | None, type[Message] | None]],
) -> tuple[type[Message] | None, type[Message] | None]:
    if name in special:
        return special[name]
    return getattr(module, f"{name}Request"), getattr(module, f"{name}Response")


def _all() -> dict[str, Method]:
    methods = [_UPGRADE, *_LOGGER, *_OBJECT_SERVER]
    methods += [
        Method(
            f"Hypervisor.{name}",
            *_messages(hypervisor, name, _HYPERVISOR_SPECIAL),
            Shape.RAW if name in _HYPERVISOR_RAW else Shape.REQUEST_REPLY,
            public=name not in _HYPERVISOR_POWER,
            unauthenticated_read=name in _HYPERVISOR_READ,
            endless=name in _HYPERVISOR_ENDLESS,
        )
        for name in _HYPERVISOR
    ]
    methods += [
        Method(
            f"ImageServer.{name}",
            *_messages(imageserver, name, _IMAGE_SERVER_SPECIAL),
            Shape.RAW if name in _IMAGE_SERVER_RAW else Shape.REQUEST_REPLY,
            public=name not in _IMAGE_SERVER_POWER,
            unauthenticated_read=name.startswith(("Check", "Find", "Get", "List")),
            endless=name in _IMAGE_SERVER_ENDLESS,
        )
        for name in _IMAGE_SERVER
    ]
    return {method.name: method for method in methods}


METHODS: Final[dict[str, Method]] = _all()
"""All of them, by full name; ``METHODS["Hypervisor.CreateVm"]``."""
