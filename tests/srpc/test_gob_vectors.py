"""Streams made by Go's own encoder (tests/vectors/go), against literals written out here.

They decode to these values, and these values encode to them, byte for byte, except where a map of
several inodes came in random order or the stream has fields that only a later version knows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smallstack.proto.enums import (
    ArchitectureType,
    ConsoleType,
    FirmwareType,
    MachineType,
    State,
    VolumeFormat,
    VolumeInterface,
    VolumeType,
    WatchdogAction,
    WatchdogModel,
)
from smallstack.proto.filesystem import (
    ComputedRegularInode,
    DirectoryEntry,
    DirectoryInode,
    FileSystemRecord,
    GenericInode,
    RegularInode,
    SpecialInode,
    SymlinkInode,
)
from smallstack.proto.hypervisor.every import (
    CreateVmRequest,
    CreateVmResponse,
    GetVmInfoRequest,
    GetVmInfosRequest,
    TimelinePhase,
    Update,
)
from smallstack.proto.image import Annotation, Filter, Image, Package, Trigger, Triggers
from smallstack.proto.imageserver import (
    AddImageRequest,
    FindLatestImageRequest,
    GetImageInodesResponse,
    GetImageResponse,
)
from smallstack.proto.kinds import YEAR_ONE, Hash, Time, Uint64
from smallstack.proto.objectserver import (
    AddObjectRequest,
    AddObjectResponse,
    CheckObjectsRequest,
)
from smallstack.proto.records import from_record
from smallstack.proto.vm import (
    Address,
    DfmParams,
    NetworkEntry,
    Subnet,
    VmInfo,
    Volume,
    VolumeInitialisationInfo,
)
from smallstack.srpc.gob import NEED_MORE, Decoder, Encoder
from tests.proto.reference_gob import ReferenceDecoder

VECTORS = Path(__file__).parents[1] / "vectors"


def digest(seed: int) -> Hash:
    return Hash(bytes((seed + 7 * i) % 256 for i in range(64)))


UTC = Time(1770091506, 123456789, None)
EAST = Time(1770091506 - 20700, 0, 345)
WEST = Time(-1 + 8 * 3600, 999999999, -480)

VM = VmInfo(
    address=Address(ip_address="198.51.100.7", mac_address="52:54:c6:33:64:07"),
    architecture_type=ArchitectureType.AMD64,
    changed_state_on=UTC,
    console_type=ConsoleType.VNC,
    created_on=EAST,
    cpu_priority=-20,
    destroy_on_powerdown=True,
    destroy_protection=True,
    disable_virtio=True,
    extra_kernel_options="quiet",
    firmware_type=FirmwareType.UEFI,
    hostname="vm-ü",
    identity_expires=WEST,
    identity_name="robot",
    image_name="debian/2026",
    image_url="https://example.com/image.raw",
    machine_type=MachineType.Q35,
    memory_in_mib=1 << 20,
    milli_cpus=250,
    network_entries=[NetworkEntry(num_queues=4), NetworkEntry()],
    owner_groups=["team-a", ""],
    owner_users=["alice", "bob"],
    root_file_system_label="rootfs@c6336407",
    spread_volumes=True,
    state=State.STOPPED,
    secondary_addresses=[
        Address(ip_address="2001:db8::7", mac_address="52:54:00:00:00:01"),
        Address(),
    ],
    secondary_subnet_ids=["storage"],
    subnet_id="net0",
    tags={"Name": "vm"},
    uncommitted=True,
    virtual_cpus=3,
    virtualiser_image_name="qemu/8",
    volumes=[
        Volume(
            format=VolumeFormat.QCOW2,
            interface=VolumeInterface.NVME,
            size=1 << 33,
            snapshots={"s1": 1 << 30},
            virtual_size=1 << 34,
        ),
        Volume(
            dfm=DfmParams(nvram_size=64 << 10, profile="fast"),
            interface=VolumeInterface.DFM,
            type=VolumeType.MEMORY,
        ),
    ],
    watchdog_action=WatchdogAction.POWEROFF,
    watchdog_model=WatchdogModel.I6300ESB,
)

INODES: dict[int, GenericInode] = {
    10: DirectoryInode(
        entry_list=[
            DirectoryEntry(name="passwd", inode_number=20),
            DirectoryEntry(name="shadow", inode_number=70000),
        ],
        mode=0o40755,
        uid=1,
        gid=2,
        mtime_nano_seconds=5,
        mtime_seconds=1700000000,
        xattrs={"user.dir": b"\1\2\3"},
    ),
    20: RegularInode(
        mode=0o104755,
        uid=1000,
        gid=100,
        mtime_nano_seconds=999999999,
        mtime_seconds=-1,
        size=1 << 40,
        hash=digest(3),
        xattrs={"security.capability": b""},
    ),
    30: SymlinkInode(uid=3, symlink="etc/passwd", mtime_seconds=1600000000),
    40: SpecialInode(mode=0o20666, mtime_nano_seconds=1, mtime_seconds=2, rdev=0x103),
    50: ComputedRegularInode(mode=0o100600, uid=4, source="generator"),
    70000: RegularInode(mode=0o100000),
}

TREE = from_record(
    FileSystemRecord(
        inode_table=INODES,
        num_regular_inodes=2,
        total_data_bytes=1 << 40,
        directory_count=2,
        directory_inode=DirectoryInode(
            entry_list=[
                DirectoryEntry(name="etc", inode_number=10),
                DirectoryEntry(name="hard", inode_number=20),
                DirectoryEntry(name="link", inode_number=30),
                DirectoryEntry(name="null", inode_number=40),
                DirectoryEntry(name="made", inode_number=50),
            ],
            mode=0o41777,
        ),
    )
)


def inode(value: GenericInode) -> GetImageInodesResponse:
    return GetImageInodesResponse(
        image_exists=True, inode_numbers={"/file": 7}, inodes={7: value}, num_links={7: 2}
    )


@dataclass
class Vector:
    values: list[Any]
    exact: bool = True
    type_: Any = None
    keep_mapped: bool = False


CASES = {
    "create-vm": Vector(
        [
            CreateVmRequest(
                dhcp_timeout=-1_000_000_000,
                do_not_start=True,
                enable_netboot=True,
                identity_certificate=b"-----BEGIN",
                identity_key=b"\0\xff",
                image_data_size=2**64 - 1,
                image_timeout=2**63 - 1,
                minimum_free_bytes=1,
                overlay_directories=["/a", "/b"],
                overlay_files={"/etc/motd": b"hello\n"},
                roundup_power=24,
                secondary_volumes=[Volume(size=128)],
                secondary_volumes_data=True,
                secondary_volumes_init=[
                    VolumeInitialisationInfo(
                        bytes_per_inode=16384,
                        label="data",
                        reserved_blocks_percentage=65535,
                        root_group_id=2**32 - 1,
                        root_user_id=1,
                    )
                ],
                skip_bootloader=True,
                skip_memory_check=True,
                storage_indices=[0, 127, 128, 256],
                user_data_size=65536,
                vm_info=VM,
            )
        ]
    ),
    "create-vm-empty": Vector([CreateVmRequest()]),
    "create-vm-replies": Vector(
        [
            CreateVmResponse(progress_message="getting image"),
            CreateVmResponse(
                ip_address="::ffff:198.51.100.7", progress_message="starting VM 198.51.100.7"
            ),
            CreateVmResponse(
                final=True,
                ip_address="198.51.100.7",
                timeline=[
                    TimelinePhase(name="image", start_nanoseconds=5, duration_nanoseconds=1 << 40)
                ],
            ),
            CreateVmResponse(dhcp_timed_out=True, error="an error"),
        ],
        keep_mapped=True,
    ),
    "get-vm-infos": Vector(
        [GetVmInfosRequest(ignore_state_mask=1 << 63, vm_tags_to_match={"Type": ["a", "b"]})]
    ),
    "update": Vector(
        [
            Update(
                have_address_pool=True,
                address_pool=[Address(mac_address="m")],
                available_memory_in_mib=1,
                memory_in_mib=2,
                num_cpus=3,
                num_free_addresses={"net0": 0},
                health_status="healthy",
                have_subnets=True,
                subnets=[
                    Subnet(
                        id="net0",
                        ip_gateway="198.51.100.1",
                        ip_mask="255.255.255.0",
                        domain_name_servers=["198.51.100.1", "203.0.113.1"],
                        vlan_id=7,
                        first_dynamic_ip="198.51.100.2",
                        last_dynamic_ip="198.51.100.254",
                    )
                ],
                total_volume_bytes=1 << 50,
                have_vms=True,
                vms={"198.51.100.7": VmInfo()},
            )
        ]
    ),
    "image": Vector(
        [
            GetImageResponse(
                image=Image(
                    build_branch="main",
                    created_by="alice",
                    filter=Filter(filter_lines=["/tmp/.*", "!"]),
                    file_system=TREE,
                    triggers=Triggers(
                        triggers=[
                            Trigger(match_lines=["/etc/ssh/.*"], service="ssh", do_reload=True),
                            Trigger(),
                        ]
                    ),
                    release_notes=Annotation(object=digest(9)),
                    build_log=Annotation(url="https://example.com/log"),
                    created_on=UTC,
                    expires_at=Time(YEAR_ONE, 1),
                    packages=[Package(name="libc6", size=13 << 20, version="2.36-9")],
                    source_image="base",
                    tags={"a": ""},
                )
            )
        ],
        exact=False,
    ),
    "image-without-tree": Vector(
        [AddImageRequest(image_name="x/y", image=Image(owner_users=["u"]))]
    ),
    "no-image": Vector([GetImageResponse()]),
    "inode-directory": Vector([inode(INODES[10])]),
    "inode-regular": Vector([inode(INODES[20])]),
    "inode-symlink": Vector([inode(INODES[30])]),
    "inode-special": Vector([inode(INODES[40])]),
    "inode-computed": Vector([inode(INODES[50])]),
    "inode-none": Vector([inode(None)]),
    "inodes-twice": Vector([inode(INODES[20]), inode(INODES[20]), inode(INODES[30])]),
    "check-objects": Vector([CheckObjectsRequest(hashes=[digest(0), Hash.zero, digest(200)])]),
    "add-objects": Vector(
        [
            AddObjectRequest(length=12, expected_hash=digest(1)),
            AddObjectRequest(length=300),
            AddObjectRequest(),
        ]
    ),
    "add-objects-replies": Vector(
        [
            AddObjectResponse(hash=digest(1), added=True),
            AddObjectResponse(error_string="no"),
        ]
    ),
    "find-latest": Vector([FindLatestImageRequest(directory_name="d", tags_to_match={"k": []})]),
    "digest": Vector([digest(77)]),
    "text": Vector(["small/v1", ""]),
    "list": Vector([[0, 1, 2**64 - 1]], type_=list[Uint64]),
    "from-the-future": Vector([GetVmInfoRequest(ip_address="198.51.100.7")], exact=False),
}


def test_every_vector_has_a_case() -> None:
    assert {path.stem for path in VECTORS.glob("*.bin")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_decodes(name: str) -> None:
    case = CASES[name]
    stream = (VECTORS / f"{name}.bin").read_bytes()
    decoder = Decoder(keep_mapped=case.keep_mapped)
    decoder.feed(stream)
    for value in case.values:
        assert decoder.decode(case.type_ or type(value)) == value
    assert decoder.take_rest() == b""


@pytest.mark.parametrize("name", CASES)
def test_decodes_byte_by_byte(name: str) -> None:
    case = CASES[name]
    decoder = Decoder(keep_mapped=case.keep_mapped)
    values = list(case.values)
    found: Any = NEED_MORE
    for byte in (VECTORS / f"{name}.bin").read_bytes():
        assert values
        decoder.feed(bytes([byte]))
        found = decoder.decode(case.type_ or type(values[0]))
        if found is not NEED_MORE:
            assert found == values.pop(0)
    assert not values


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].exact])
def test_encodes_to_the_same_bytes(name: str) -> None:
    case = CASES[name]
    encoder = Encoder(first_id=65)
    stream = b"".join(encoder.encode(value, case.type_) for value in case.values)
    assert stream == (VECTORS / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].keep_mapped])
def test_the_reference_agrees(name: str) -> None:
    case = CASES[name]
    reference = ReferenceDecoder((VECTORS / f"{name}.bin").read_bytes())
    for value in case.values:
        assert reference.decode(case.type_ or type(value)) == value
    assert reference.stream == b""
