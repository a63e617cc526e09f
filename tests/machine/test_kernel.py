import struct
from pathlib import Path

import pytest

from smallstack.machine.errors import KernelError
from smallstack.machine.kernel import find_kernel, is_pvh, parse_notes, takes_timer_rate
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder

XEN = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", 0x100000)
GNU = struct.pack("<III", 4, 5, 3) + b"GNU\0" + b"12345\0\0\0"


def elf64(notes: bytes, machine: int = 62, entry_size: int = 56, count: int = 1) -> bytes:
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, entry_size, count, 0, 0, 0
    )
    offset = 64 + entry_size
    table = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(notes), len(notes), 4)
    return head + table.ljust(entry_size, b"\0") + notes


def test_a_real_guest(guest_kernel: Path) -> None:
    assert is_pvh(guest_kernel)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (elf64(XEN), True),
        (elf64(GNU + XEN), True),
        (elf64(XEN, machine=3), True),
        (elf64(XEN, entry_size=64), True),
        (elf64(GNU), False),
        (elf64(XEN, machine=183), False),  # EM_AARCH64
        (elf64(XEN, entry_size=55), False),
        (elf64(XEN, count=257), False),
        (elf64(XEN, count=0), False),
        (elf64(XEN)[:-4], False),
        (elf64(XEN)[:64], False),
        (elf64(XEN)[:63], False),
        (elf64(XEN.replace(b"Xen", b"Xem")), False),
        (b"\x1f\x8b\x08", False),
        (b"MZ" + bytes(510), False),
        (b"", False),
    ],
)
def test_files(tmp_path: Path, content: bytes, expected: bool) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    assert is_pvh(path) is expected


def test_a_kernel_that_takes_its_timer_rate(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(elf64(XEN))
    assert not takes_timer_rate(path)
    path.write_bytes(elf64(XEN + struct.pack("<III", 11, 4, 1) + b"SmallStack\0\0\1\0\0\0"))
    assert takes_timer_rate(path)
    assert is_pvh(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_pvh(tmp_path / "none")


def test_notes() -> None:
    assert parse_notes(GNU + XEN) == [(b"GNU\0", 3), (b"Xen\0", 18)]
    assert parse_notes(b"") == []
    assert parse_notes(struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 1)) == []
    assert parse_notes(struct.pack("<III", 0, 0, 7)) == [(b"", 7)]


def tree(*names: str, mode: int = 0o100644) -> FileSystem:
    builder = FileSystemBuilder()
    boot = builder.add(mode=0o40755)
    builder.link(0, b"boot", boot)
    for name in names:
        target = b"x" if mode & 0o170000 == 0o120000 else b""
        file = builder.add(
            mode=mode, target=target, size=0 if target else 1, hash=b"" if target else bytes(64)
        )
        builder.link(boot, name.encode(), file)
    return builder.build()


def test_a_kernel() -> None:
    image = tree("System.map-6.1", "config-6.1", "vmlinuz-6.1")
    found = find_kernel(image)
    assert found.kernel == image.lookup(b"/boot/vmlinuz-6.1")
    assert found.initrd is None
    assert found.kernel_name == "vmlinuz-6.1"


@pytest.mark.parametrize("initrd", ["initrd.img-6.1", "initramfs-6.1.img"])
def test_a_kernel_and_its_initrd(initrd: str) -> None:
    image = tree("vmlinuz-6.1", initrd)
    assert find_kernel(image).initrd == image.lookup(b"/boot/" + initrd.encode())


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), "no kernel image found"),
        (("initrd.img-1",), "no kernel image found"),
        (("vmlinuz-1", "vmlinuz-2"), "multiple kernel images"),
        (("vmlinuz-1", "initrd.img-1", "initramfs-1"), "multiple initrd images"),
    ],
)
def test_what_is_refused(names: tuple[str, ...], text: str) -> None:
    with pytest.raises(KernelError, match=f"^{text}$"):
        find_kernel(tree(*names))


def test_a_symlink_is_no_kernel() -> None:
    with pytest.raises(KernelError, match="kernel image is not a regular file"):
        find_kernel(tree("vmlinuz-1", mode=0o120777))


def test_no_boot() -> None:
    with pytest.raises(KernelError, match="missing /boot directory"):
        find_kernel(FileSystemBuilder().build())


def test_boot_is_a_file() -> None:
    builder = FileSystemBuilder()
    builder.link(0, b"boot", builder.add(mode=0o100644))
    with pytest.raises(KernelError, match="/boot is not a directory"):
        find_kernel(builder.build())
