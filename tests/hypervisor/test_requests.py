"""What a create may ask for, and which VMs a list shows."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallstack.hypervisor.checks import (
    announced_bytes,
    check_create,
    check_hostname,
    format_asked,
)
from smallstack.hypervisor.errors import (
    NoImageError,
    NotAuthenticatedError,
    NotSupportedError,
    RequestError,
)
from smallstack.hypervisor.filters import matches, version_sorted
from smallstack.identity.peer import Peer
from smallstack.proto.enums import (
    ArchitectureType,
    ConsoleType,
    MachineType,
    State,
    VolumeFormat,
    VolumeInterface,
    VolumeType,
    WatchdogAction,
    WatchdogModel,
)
from smallstack.proto.hypervisor.every import CreateVmRequest, OwnCreateVmRequest
from smallstack.proto.vm import VmInfo, Volume
from smallstack.srpc import gob
from smallstack.volumes.foreign.formats import DiskFormat

USER = Peer(username="someone")
POWER = Peer(username="someone", have_method_access=True)


def request(**changes: Any) -> CreateVmRequest:
    info = {"image_name": "i", "memory_in_mib": 64, "milli_cpus": 10, "hostname": "a-b.c"}
    made: dict[str, Any] = {"skip_bootloader": True}
    for name, value in changes.items():
        (info if name in VmInfo.__struct_fields__ else made)[name] = value
    return CreateVmRequest(vm_info=VmInfo(**info), **made)  # type: ignore[arg-type]


def test_an_ordinary_request() -> None:
    check_create(request(), USER)
    check_create(request(virtual_cpus=4, milli_cpus=4999, cpu_priority=5), USER)
    check_create(request(virtualiser_image_name=""), Peer(), anonymous=True)
    check_create(request(virtual_cpus=4, roundup_power=40), USER, processors=4)


BAD: list[tuple[Callable[[], CreateVmRequest], type[Exception], str]] = [
    (lambda: request(memory_in_mib=0), RequestError, "no memory specified"),
    (lambda: request(milli_cpus=0), RequestError, "no CPUs specified"),
    (lambda: request(milli_cpus=4000, virtual_cpus=3), RequestError, "must be at least 4"),
    (
        lambda: request(cpu_priority=-1),
        RequestError,
        "insufficient privilege to set CpuPriority=-1",
    ),
    (lambda: request(virtualiser_image_name="q"), RequestError, "custom virtualiser not permitted"),
    (lambda: request(console_type=ConsoleType(9)), RequestError, "UNKNOWN ConsoleType"),
    (lambda: request(architecture_type=ArchitectureType(9)), RequestError, "UNKNOWN Architecture"),
    (lambda: request(watchdog_action=WatchdogAction(9)), RequestError, "UNKNOWN WatchdogAction"),
    (lambda: request(watchdog_model=WatchdogModel(9)), RequestError, "UNKNOWN WatchdogModel"),
    (
        lambda: request(volumes=[Volume(interface=VolumeInterface(9))]),
        RequestError,
        "UNKNOWN VolumeInterface",
    ),
    (lambda: request(user_data_size=1 << 40), RequestError, "bytes of user data: at most"),
    (lambda: request(roundup_power=70), RequestError, "RoundupPower: 70: at most 40"),
    (lambda: request(image_name=""), NoImageError, "no image specified"),
    (lambda: request(image_name="", image_url="u"), RequestError, "write http://HOST"),
    (
        lambda: request(image_name="", image_data_size=1, overlay_files={"f": b""}),
        RequestError,
        "overlay files go only over an image of the image server",
    ),
    (lambda: request(image_name="", minimum_free_bytes=1 << 63), RequestError, "an empty root of"),
    (
        lambda: request(image_name="", image_data_size=1, volumes=[Volume(size=1 << 63)]),
        RequestError,
        "a root of 9223372036854775808 bytes",
    ),
    (
        lambda: OwnCreateVmRequest(
            image_format="vhdx", vm_info=request(image_name="", image_url="http://h/").vm_info
        ),
        RequestError,
        "there is no image format 'vhdx': there are auto, raw, qcow2, vmdk, vdi",
    ),
    (lambda: request(machine_type=MachineType.VIRT), NotSupportedError, "machine type virt"),
    (lambda: request(architecture_type=ArchitectureType.ARM64), NotSupportedError, "arm64"),
    (lambda: request(enable_netboot=True), NotSupportedError, "booting from the network"),
    (lambda: request(secondary_volumes=[Volume()]), NotSupportedError, "a secondary volume"),
    (
        lambda: request(volumes=[Volume(type=VolumeType.MEMORY)]),
        NotSupportedError,
        "a volume in memory",
    ),
    (
        lambda: request(volumes=[Volume(interface=VolumeInterface.DFM)]),
        NotSupportedError,
        "volume interface dfm",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_refusals(number: int) -> None:
    make, error, text = BAD[number]
    with pytest.raises(error) as raised:
        check_create(make(), USER)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_image_is_looked_at_only_for_those_who_ask() -> None:
    """What upstream's client sends is what upstream takes it for, whatever a guest wrote there."""
    assert format_asked(request()) is DiskFormat.RAW
    qcow2 = request(volumes=[Volume(format=VolumeFormat.QCOW2)])
    assert format_asked(qcow2) is DiskFormat.QCOW2
    asked = OwnCreateVmRequest(image_format="auto")
    assert format_asked(asked) is None
    assert format_asked(OwnCreateVmRequest(image_format="vdi")) is DiskFormat.VDI


def test_both_kinds_of_request_come_from_one_client() -> None:
    """In either order, and are read as what they say."""
    plain, own = request(), OwnCreateVmRequest(image_format="vdi", vm_info=request().vm_info)
    for sent in (plain, own, plain):
        decoder = gob.Decoder()
        decoder.feed(gob.Encoder().encode(sent))
        read = decoder.decode(OwnCreateVmRequest)
        assert isinstance(read, OwnCreateVmRequest)
        assert read.vm_info == sent.vm_info
        assert read.image_format == ("vdi" if sent is own else "")
    decoder = gob.Decoder()
    decoder.feed(gob.Encoder().encode(own))
    assert decoder.decode(CreateVmRequest) == replace(plain, skip_bootloader=False)


def test_more_processors_than_there_are() -> None:
    """What is recorded is what the guest gets."""
    with pytest.raises(RequestError, match="VirtualCPUs: 5: this machine has 4 processors"):
        check_create(request(virtual_cpus=5), USER, processors=4)


def test_powers() -> None:
    check_create(request(cpu_priority=-1), POWER)
    with pytest.raises(NotAuthenticatedError, match=r"^no authentication data$"):
        check_create(request(), Peer(have_method_access=True))


@pytest.mark.parametrize("name", ["", "a", "A-1.b", "x" * 63, ".".join(["x" * 63] * 4)[:253]])
def test_hostnames(name: str) -> None:
    check_hostname(name)


@pytest.mark.parametrize(
    "name", ["a b", "a/b", "a\0", "-a_b", "x" * 64, "x." * 127, "a;b", "Ä", "b\u0661"]
)
def test_bad_hostnames(name: str) -> None:
    with pytest.raises(RequestError):
        check_hostname(name)


def test_what_comes_behind_a_request() -> None:
    volumes = [Volume(size=5), Volume(size=7)]
    assert announced_bytes(request(image_data_size=1, user_data_size=2)) == 3
    assert announced_bytes(request(user_data_size=2, secondary_volumes=volumes)) == 2
    assert (
        announced_bytes(
            request(user_data_size=2, secondary_volumes=volumes, secondary_volumes_data=True)
        )
        == 14
    )


VM = VmInfo(
    state=State.RUNNING,
    owner_users=["ann", "ben"],
    owner_groups=["crew"],
    tags={"Name": "x", "Type": "web"},
)


@pytest.mark.parametrize(
    ("mask", "groups", "users", "tags", "shown"),
    [
        (0, [], [], {}, True),
        (1 << State.RUNNING, [], [], {}, False),
        (1 << State.STOPPED, [], [], {}, True),
        (0, ["crew"], [], {}, True),
        (0, ["staff"], [], {}, False),
        (0, ["staff", "crew"], [], {}, True),
        (0, [], ["ben"], {}, True),
        (0, ["crew"], ["eve"], {}, False),  # users replace what the groups said
        (0, ["staff"], ["ann"], {}, True),
        (0, [], [], {"Name": ["x", "y"]}, True),
        (0, [], [], {"Name": ["y"]}, False),
        (0, [], [], {"Name": ["x"], "Type": ["db"]}, False),
        (0, [], [], {"Other": [""]}, False),
    ],
)
def test_filters(
    mask: int, groups: list[str], users: list[str], tags: dict[str, list[str]], shown: bool
) -> None:
    assert matches(VM, mask, groups, users, tags) is shown


def test_a_state_of_the_future_can_be_shown_and_hidden() -> None:
    vm = VmInfo(state=State(63))
    assert matches(vm, 0, [], [], {})
    assert not matches(vm, 1 << 63, [], [], {})


def test_addresses_are_sorted_as_people_do() -> None:
    assert version_sorted(["10.0.0.10", "10.0.0.9", "9.0.0.1", "b", "a10", "a9"]) == [
        "9.0.0.1",
        "10.0.0.9",
        "10.0.0.10",
        "a9",
        "a10",
        "b",
    ]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_texts_can_be_sorted(texts: list[str]) -> None:
    assert sorted(version_sorted(texts)) == sorted(texts)
