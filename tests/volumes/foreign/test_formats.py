"""Formats are told apart; images that lead to other files are refused before anybody follows."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.volumes.foreign.formats import (
    HEAD,
    SECTOR,
    DiskFormat,
    FormatError,
    check_head,
    check_whole,
    recognise,
)
from tests.volumes.disks import run
from tests.volumes.foreign.images import SIZE, convert, every_format, make_raw

VDI_BEGIN = bytes(64) + b"\x7f\x10\xda\xbe"
Patch = Callable[[bytearray], None]


def look(data: bytes) -> int:
    """The bytes of the disk in a VMDK or VDI."""
    format_ = recognise(data[:HEAD])
    check_head(format_, data[:HEAD])
    return check_whole(format_, lambda at, length: data[at : at + length], len(data))


def refusal(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        look(data)
    return str(caught.value)


def test_a_footer(tmp_path: Path) -> None:
    """As VMware writes streams: the directory is at the end, and so is where it is."""
    data = bytearray(every_format(tmp_path)["vmdk-stream"].read_bytes())
    with_footer(0, "")(data)
    assert look(bytes(data)) == SIZE


def test_what_qemu_writes(tmp_path: Path) -> None:
    for name, path in every_format(tmp_path).items():
        data = path.read_bytes()
        found = recognise(data[:HEAD])
        assert found.value == name.partition("-")[0]
        if found in (DiskFormat.VMDK, DiskFormat.VDI):
            assert look(data) == SIZE


@pytest.mark.parametrize(
    ("head", "name"), [(b"vhdxfile", "VHDX"), (b"conectix", "VHD"), (b"QED\0", "QED")]
)
def test_formats_that_are_not_read(head: bytes, name: str) -> None:
    with pytest.raises(FormatError, match=f"it is a {name} image, .* convert it to qcow2"):
        recognise(head.ljust(HEAD, b"\0"))


@pytest.mark.parametrize(
    ("subformat", "told"),
    [
        ("monolithicFlat", "it is only the descriptor"),
        ("twoGbMaxExtentFlat", "it is only the descriptor"),
        ("twoGbMaxExtentSparse", "it is only the descriptor"),
    ],
)
def test_vmdks_of_several_files(tmp_path: Path, subformat: str, told: str) -> None:
    raw = tmp_path / "raw"
    make_raw(raw)
    image = convert(raw, tmp_path / "x.vmdk", "vmdk", "-o", f"subformat={subformat}")
    assert told in refusal(image.read_bytes())
    for part in tmp_path.glob("x-s*.vmdk"):
        assert "one file of a VMDK of several" in refusal(part.read_bytes())


def test_differences_from_another_disk(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw)
    base = convert(raw, tmp_path / "base.vmdk", "vmdk")
    over = tmp_path / "over.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base, over)
    assert "a difference from another disk" in refusal(over.read_bytes())


def put(at: int, format_: str, *values: object) -> Patch:
    return lambda data: struct.pack_into("<" + format_, data, at, *values)


def with_footer(at: int, format_: str, *values: object) -> Patch:
    """The header is at the end of the file as well, with something wrong, and holds there."""

    def patch(data: bytearray) -> None:
        footer = bytearray(data[:SECTOR])
        struct.pack_into("<" + format_, footer, at, *values)
        struct.pack_into("<Q", data, 56, (1 << 64) - 1)
        data += bytes(SECTOR) + footer + bytes(SECTOR)

    return patch


def replaced(old: bytes, new: bytes) -> Patch:
    def patch(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new.ljust(len(old))

    return patch


@pytest.mark.parametrize(
    ("name", "patch", "told"),
    [
        # With no capacity in the header QEMU opens whatever files the descriptor names.
        ("vmdk", put(12, "Q", 0), "it refers to other files"),
        ("vmdk", put(4, "I", 4), "its VMDK version is 4"),
        ("vmdk", put(28, "Q", 0), "one file of a VMDK of several"),
        ("vmdk", put(28, "Q", 1 << 54), "one file of a VMDK of several"),
        ("vmdk", put(36, "Q", 1 << 40), "its descriptor has 1099511627776 sectors"),
        ("vmdk", put(12, "Q", 99), "different sizes"),
        ("vmdk", put(12, "Q", (1 << 64) - 1), "different sizes"),
        ("vmdk", replaced(b"monolithicSparse", b"monolithicFlat"), "its kind of VMDK is"),
        ("vmdk", replaced(b"parentCID=ffffffff", b"parentCID=12345678"), "a difference from"),
        ("vmdk", replaced(b"SPARSE", b"FLAT"), "it refers to other files"),
        (
            "vmdk",
            replaced(b"# Extent description", b'RW 8 FLAT "/x" 0\n'),
            "it refers to other files",
        ),
        ("vmdk-stream", with_footer(12, "Q", 0), "it refers to other files"),
        ("vmdk-stream", with_footer(12, "Q", 7), "its footer is damaged"),
        ("vmdk-stream", with_footer(0, "4s", b"none"), "it is no VMDK image"),
        ("vmdk-stream", put(56, "Q", (1 << 64) - 1), "it is no VMDK image"),
        ("vdi", put(68, "I", 0x10000), "its VDI version is 1.0"),
        ("vdi", put(76, "I", 4), "a difference from another disk"),
        ("vdi", put(424, "16s", b"x" * 16), "a difference from another disk"),
        ("vdi", put(440, "16s", b"x" * 16), "a difference from another disk"),
        ("vdi", put(368, "Q", 0), "its header is damaged"),
        ("vdi", put(368, "Q", 1 << 62), "its header is damaged"),
        ("vdi", put(376, "I", 512), "its blocks have 512 + 0 bytes"),
        ("vdi", put(388, "I", (1 << 32) - 1), "its header is damaged"),
        ("vdi", lambda data: data.__delitem__(slice(-SECTOR, None)), "it was cut off"),
    ],
)
def test_hostile_headers(tmp_path: Path, name: str, patch: Patch, told: str) -> None:
    data = bytearray(every_format(tmp_path)[name].read_bytes())
    patch(data)
    assert told in refusal(bytes(data))


@given(
    st.sampled_from(
        [b"", b"KDMV", b"QFI\xfb", b"# Disk DescriptorFile\n", bytes(64) + b"\x7f\x10\xda\xbe"]
    ),
    st.binary(max_size=2048),
)
def test_any_bytes(begin: bytes, rest: bytes) -> None:
    """A size that the file could hold, or one line."""
    data = begin + rest
    try:
        format_ = recognise(data[:HEAD])
        check_head(format_, data[:HEAD])
        if format_ in (DiskFormat.VMDK, DiskFormat.VDI):
            assert look(data) > 0
    except FormatError as error:
        assert str(error)
        assert "\n" not in str(error)
