"""Whole conversations captured from other implementations, rebuilt from literal values.

What a client sent is built here from literals and compared byte for byte, with type ids numbered
anew on both sides; what a server sent is compared in every field. Every captured file has an
entry in ``CONVERSATIONS``.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smallstack.proto.enums import ArchitectureType, State
from smallstack.proto.filesystem import (
    DirectoryEntry,
    DirectoryInode,
    FileSystemRecord,
    GenericInode,
    RegularInode,
    SpecialInode,
    SymlinkInode,
)
from smallstack.proto.hypervisor.every import (
    AcknowledgeVmRequest,
    AcknowledgeVmResponse,
    CreateVmRequest,
    CreateVmResponse,
    DestroyVmRequest,
    DestroyVmResponse,
    GetCapacityRequest,
    GetCapacityResponse,
    GetVmInfoRequest,
    GetVmInfoResponse,
    ListVMsRequest,
    ListVMsResponse,
    UpdateSubnetsRequest,
    UpdateSubnetsResponse,
)
from smallstack.proto.image import Image
from smallstack.proto.imageserver import (
    CheckDirectoryRequest,
    CheckDirectoryResponse,
    FindLatestImageRequest,
    FindLatestImageResponse,
    GetImageInodesRequest,
    GetImageInodesResponse,
    GetImageRequest,
    GetImageResponse,
    GetImageUsageEstimateRequest,
    GetImageUsageEstimateResponse,
    ListSelectedImagesRequest,
    MakeDirectoryRequest,
    MakeDirectoryResponse,
)
from smallstack.proto.kinds import Hash, Message, Time
from smallstack.proto.methods import METHODS, Shape
from smallstack.proto.objectserver import GetObjectsRequest, GetObjectsResponse
from smallstack.proto.records import from_record
from smallstack.proto.vm import Address, Subnet, VmInfo, Volume
from smallstack.srpc.gob import Decoder, Encoder
from tests.proto.reference_gob import ReferenceDecoder, renumber

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]


@dataclass
class Call:
    """One call: what was sent, and everything that came back."""

    method: str
    request: Message | None = None
    replies: list[Message] = field(default_factory=list)
    raw: bytes = b""
    refused: str = ""
    long_addresses: bool = False
    """The client sent its IPv4 addresses in 16 bytes."""
    text: bytes = b""
    map_order: tuple[str, ...] = ()
    """The order of the tags where it is not the sorted one."""


@dataclass
class Conversation:
    endpoint: str
    calls: list[Call]


PASSWD = Hash.fromhex(
    "5a4695eab54392cb3a702d6a7af34b1503f24e00cb730e0b14786da89b4d7675"
    "3ad9ea07d05f5bcaa06f63d9e3074a59f466031815b984d4af3cd113ce905f5e"
)
HELLO = Hash.fromhex(
    "e7c22b994c59d9cf2b48e549b1e24666636045930d3da7c1acb299d1c3b7f931"
    "f94aae41edda2c2b207a36e10f8bcb8d45223e54878f5b316e7ce3b6bc019629"
)
KERNEL = Hash.fromhex(
    "afd45f0467c9c71f8d91614ef115382e7b93da363006da60382ac668c0b07c5b"
    "faa4f9ba1039e2b03aecb1170130aabaa15577eb3d4a1a4d32bdfd901b7a9c9a"
)


def directory(**entries: int) -> DirectoryInode:
    return DirectoryInode(
        mode=0o40755,
        entry_list=[
            DirectoryEntry(name=name, inode_number=number) for name, number in entries.items()
        ],
    )


SMALL_INODES: dict[int, GenericInode] = {
    2238821: directory(passwd=2238876),
    2238833: directory(bin=2238855),
    2238855: directory(hello=2238877, hello2=2238877, hi=2238878),
    2238865: directory(),
    2238875: directory(null=2238879),
    2238876: RegularInode(
        mode=0o100644,
        mtime_seconds=1795177692,
        mtime_nano_seconds=218900110,
        size=30,
        hash=PASSWD,
    ),
    2238877: RegularInode(
        mode=0o100644,
        mtime_seconds=1795177692,
        mtime_nano_seconds=218900110,
        size=6,
        hash=HELLO,
    ),
    2238878: SymlinkInode(symlink="hello"),
    2238879: SpecialInode(
        mode=0o20644, mtime_seconds=1795177692, mtime_nano_seconds=226900110, rdev=259
    ),
}

SMALL = Image(
    created_on=Time(1795177734, 371882629, 0),
    file_system=from_record(
        FileSystemRecord(
            inode_table=SMALL_INODES,
            num_regular_inodes=2,
            total_data_bytes=36,
            directory_count=6,
            directory_inode=directory(bin=2238865, dev=2238875, etc=2238821, usr=2238833),
        )
    ),
)

TINY = Image(
    created_by="admin",
    created_on=Time(1795179168, 332287756, 0),
    file_system=from_record(
        FileSystemRecord(
            inode_table=SMALL_INODES
            | {
                2238739: directory(**{"vmlinuz-fake": 2238742}),
                2238740: directory(lib=2238741),
                2238741: directory(),
                2238742: RegularInode(
                    mode=0o100644,
                    mtime_seconds=1795179168,
                    mtime_nano_seconds=282953485,
                    size=11,
                    hash=KERNEL,
                ),
            },
            num_regular_inodes=3,
            total_data_bytes=47,
            directory_count=9,
            directory_inode=directory(
                bin=2238865, boot=2238739, dev=2238875, etc=2238821, usr=2238833, var=2238740
            ),
        )
    ),
)

VM2 = VmInfo(
    address=Address(ip_address="10.77.0.4", mac_address="52:54:0a:4d:00:04"),
    architecture_type=ArchitectureType.AMD64,
    created_on=Time(1795177889, 757049591, 0),
    changed_state_on=Time(1795177890, 33833188, 0),
    hostname="vm2",
    image_name="small/v1",
    memory_in_mib=256,
    milli_cpus=500,
    owner_groups=["team-a"],
    owner_users=["admin", "alice"],
    state=State.RUNNING,
    subnet_id="net0",
    tags={"Name": "vm2", "k": "v"},
    volumes=[Volume(size=268435456)],
)
VM2_LATER = VmInfo(
    **{name: getattr(VM2, name) for name in VmInfo.__struct_fields__}
    | {"changed_state_on": Time(1795177897, 195818948, 0)}
)

TLS = "/_go_TLS_SRPC_/"
PLAIN = "/_goSRPC_/"


def hypervisor(*calls: Call) -> Conversation:
    return Conversation(TLS, list(calls))


FIND_TINY = [
    Call(
        "ImageServer.CheckDirectory",
        CheckDirectoryRequest(directory_name="tiny"),
        [CheckDirectoryResponse(directory_exists=True)],
    ),
    Call(
        "ImageServer.FindLatestImage",
        FindLatestImageRequest(directory_name="tiny"),
        [FindLatestImageResponse(image_name="tiny/v1")],
    ),
]

CONVERSATIONS = {
    "hv-addsubnet-dup.01": hypervisor(
        Call(
            "Hypervisor.UpdateSubnets",
            UpdateSubnetsRequest(
                add=[
                    Subnet(
                        id="net0",
                        ip_gateway="10.77.0.1",
                        ip_mask="255.255.255.0",
                        domain_name_servers=["10.77.0.1"],
                    )
                ]
            ),
            [UpdateSubnetsResponse(error="subnet: net0 already exists")],
        )
    ),
    "hv-create.01": hypervisor(
        Call(
            "Hypervisor.CreateVm",
            CreateVmRequest(
                dhcp_timeout=60_000_000_000,
                image_timeout=60_000_000_000,
                minimum_free_bytes=16 << 20,
                roundup_power=28,
                skip_bootloader=True,
                vm_info=VmInfo(
                    hostname="vm2",
                    image_name="small/v1",
                    memory_in_mib=256,
                    milli_cpus=500,
                    owner_groups=["team-a"],
                    owner_users=["alice"],
                    subnet_id="net0",
                    tags={"k": "v", "Name": "vm2"},
                ),
            ),
            [
                CreateVmResponse(progress_message="getting image"),
                CreateVmResponse(progress_message="unpacking image: small/v1"),
                CreateVmResponse(progress_message="waiting for test memory allocation"),
                CreateVmResponse(progress_message="starting VM 10.77.0.4", ip_address="10.77.0.4"),
                CreateVmResponse(final=True, ip_address="10.77.0.4"),
            ],
            map_order=("k", "Name"),
        ),
        Call(
            "Hypervisor.AcknowledgeVm",
            AcknowledgeVmRequest(ip_address="::ffff:10.77.0.4"),
            [AcknowledgeVmResponse()],
            long_addresses=True,
        ),
    ),
    "hv-denied.01": hypervisor(
        Call("Hypervisor.ChangeAddressPool", refused="access to method denied")
    ),
    "hv-destroy.01": hypervisor(
        Call(
            "Hypervisor.GetVmInfo",
            GetVmInfoRequest(ip_address="10.77.0.4"),
            [GetVmInfoResponse(vm_info=VM2_LATER)],
        ),
        Call(
            "Hypervisor.DestroyVm",
            DestroyVmRequest(ip_address="10.77.0.4"),
            [DestroyVmResponse()],
        ),
    ),
    "hv-getcap.01": hypervisor(
        Call(
            "Hypervisor.GetCapacity",
            GetCapacityRequest(),
            [
                GetCapacityResponse(
                    available_memory_in_mib=23268,
                    memory_in_mib=24105,
                    num_cpus=2,
                    total_volume_bytes=270553174016,
                )
            ],
        )
    ),
    "hv-getinfo-novm.01": hypervisor(
        Call(
            "Hypervisor.GetVmInfo",
            GetVmInfoRequest(ip_address="10.77.0.99"),
            [GetVmInfoResponse(error="no VM with IP address: 10.77.0.99 found")],
        )
    ),
    "hv-getinfo.01": hypervisor(
        Call(
            "Hypervisor.GetVmInfo",
            GetVmInfoRequest(ip_address="10.77.0.4"),
            [GetVmInfoResponse(vm_info=VM2)],
        )
    ),
    "hv-list-empty.01": hypervisor(
        Call("Hypervisor.ListVMs", ListVMsRequest(sort=True), [ListVMsResponse()])
    ),
    "hv-list.01": hypervisor(
        Call(
            "Hypervisor.ListVMs",
            ListVMsRequest(sort=True),
            [ListVMsResponse(ip_addresses=["10.77.0.3", "10.77.0.4"])],
        )
    ),
    "hv-to-is.01": Conversation(
        TLS,
        [
            *FIND_TINY,
            Call(
                "ImageServer.GetImage",
                GetImageRequest(image_name="tiny/v1"),
                [GetImageResponse(image=TINY)],
            ),
        ],
    ),
    "hv-to-is.02": Conversation(
        TLS,
        [
            Call(
                "ObjectServer.GetObjects",
                GetObjectsRequest(hashes=[KERNEL]),
                [GetObjectsResponse(object_sizes=[11])],
                raw=b"FAKEKERNEL\n",
            )
        ],
    ),
    "hv-to-is.03": Conversation(
        TLS,
        [
            Call(
                "ObjectServer.GetObjects",
                GetObjectsRequest(hashes=[HELLO, PASSWD]),
                [GetObjectsResponse(object_sizes=[6, 30])],
                raw=b"hello\nroot:x:0:0:root:/root:/bin/sh\n",
            )
        ],
    ),
    "is-ins-get.01": Conversation(
        PLAIN,
        [
            Call(
                "ImageServer.GetImage",
                GetImageRequest(image_name="small/v1"),
                [GetImageResponse(image=SMALL)],
            ),
            Call(
                "ObjectServer.GetObjects",
                GetObjectsRequest(hashes=[PASSWD, HELLO]),
                [GetObjectsResponse(object_sizes=[30, 6])],
                raw=b"root:x:0:0:root:/root:/bin/sh\nhello\n",
            ),
        ],
    ),
    "is-ins-list.01": Conversation(
        PLAIN,
        [Call("ImageServer.ListSelectedImages", ListSelectedImagesRequest(), text=b"\n")],
    ),
    "is-ins-mkdir.01": Conversation(
        PLAIN,
        [
            Call(
                "ImageServer.MakeDirectory",
                MakeDirectoryRequest(directory_name="small"),
                [MakeDirectoryResponse()],
            )
        ],
    ),
    "vc-to-is.01": Conversation(
        TLS,
        [
            *FIND_TINY,
            Call(
                "ImageServer.GetImageInodes",
                GetImageInodesRequest(filenames=["/data/0"], image_name="tiny/v1"),
                [GetImageInodesResponse(image_exists=True)],
            ),
            *FIND_TINY,
            Call(
                "ImageServer.GetImageUsageEstimate",
                GetImageUsageEstimateRequest(image_name="tiny/v1"),
                [GetImageUsageEstimateResponse(image_exists=True, usage_estimate=45120)],
            ),
        ],
    ),
}


def test_every_captured_file_is_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name for path in VECTORS.glob("*.bin")}
    known = {f"{name}.{way}.bin" for name in CONVERSATIONS for way in ("c2s", "s2c")}
    assert files == known
    with capsys.disabled():
        print(f"\ngob captures: {len(files)} files, {len(CONVERSATIONS)} conversations")


def in_order(data: bytes, call: Call) -> bytes:
    """An encoded request with its tags in the order in which that client happened to send them."""
    order = call.map_order
    if not order:
        return data
    assert isinstance(call.request, CreateVmRequest)
    tags = call.request.vm_info.tags
    entry = {
        key: bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
        for key, value in tags.items()
    }
    ours = b"".join(entry[key] for key in sorted(tags))
    assert data.count(ours) == 1
    return data.replace(ours, b"".join(entry[key] for key in order))


def requests(sent: bytes, conversation: Conversation) -> list[bytes]:
    """The encoded requests that a client sent, b"" for a call without; checks all else it sent."""
    start = f"CONNECT {conversation.endpoint} HTTP/1.0\n\n".encode()
    assert sent.startswith(start)
    rest = sent[len(start) :]
    found = []
    for call in conversation.calls:
        line = f"{call.method}\n".encode()
        assert rest.startswith(line)
        rest = rest[len(line) :]
        if call.request is None:
            found.append(b"")
            continue
        # Type ids have other lengths than ours, so the end of a message is found by decoding it.
        decoder = Decoder(keep_mapped=call.long_addresses)
        decoder.feed(rest)
        assert decoder.decode(type(call.request)) == call.request
        behind = decoder.take_rest()
        found.append(rest[: len(rest) - len(behind)])
        rest = behind
    assert rest == b""
    return found


def captured_requests(name: str) -> list[bytes]:
    """Those of a captured client."""
    return requests((VECTORS / f"{name}.c2s.bin").read_bytes(), CONVERSATIONS[name])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_client_bytes_are_rebuilt_from_literals(name: str) -> None:
    calls = CONVERSATIONS[name].calls
    for call, sent in zip(calls, captured_requests(name), strict=True):
        if call.request is None:
            continue
        built = in_order(Encoder().encode(call.request), call)
        assert renumber(built) == renumber(sent)
        assert ReferenceDecoder(built).decode(type(call.request)) == ReferenceDecoder(sent).decode(
            type(call.request)
        )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_server_bytes_are_equal_in_every_field(name: str) -> None:
    captured = (VECTORS / f"{name}.s2c.bin").read_bytes()
    start = b"HTTP/1.0 200 Connected to Go SRPC\n\n"
    assert captured.startswith(start)
    rest = captured[len(start) :]
    for call in CONVERSATIONS[name].calls:
        line, _, rest = rest.partition(b"\n")
        assert line.decode() == call.refused
        if call.refused:
            continue
        if METHODS[call.method].shape is Shape.REQUEST_REPLY:
            line, _, rest = rest.partition(b"\n")
            assert line == b""
        decoder = Decoder()
        decoder.feed(rest)
        for reply in call.replies:
            assert decoder.decode(type(reply)) == reply
        rest = decoder.take_rest()
        assert rest.startswith(call.raw + call.text)
        rest = rest[len(call.raw + call.text) :]
    assert rest == b""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_server_bytes_come_in_any_pieces(name: str) -> None:
    captured = (VECTORS / f"{name}.s2c.bin").read_bytes()
    call = CONVERSATIONS[name].calls[0]
    if not call.replies:
        return
    lines = 2 if METHODS[call.method].shape is Shape.REQUEST_REPLY else 1
    stream = re.sub(rb"\A.*?\n\n\n{%d}" % lines, b"", captured, flags=re.S)
    decoder = Decoder()
    found: list[Any] = []
    for byte in stream:
        decoder.feed(bytes([byte]))
        if len(found) < len(call.replies):
            value: Any = decoder.decode(type(call.replies[len(found)]))
            if isinstance(value, Message):
                found.append(value)
    assert found == call.replies
