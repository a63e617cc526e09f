"""GRUB's images: made once, kept, and put where GRUB's own tools put them."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.bootloader import GRUB_MODULES, BootLoader, BootLoaders
from smallstack.volumes.brick import BrickStore, brick_key, write_disk
from smallstack.volumes.errors import BootLoaderError, BootLoaderMissingError
from smallstack.volumes.grub_config import grub_config
from smallstack.volumes.layer import create_layer
from smallstack.volumes.partition import MBR_LIMIT, MIB, SECTOR, Scheme, divide
from tests.volumes.conftest import SEED
from tests.volumes.disks import differences, e2fsck, mounted, run
from tests.volumes.trees import Objects

BIOS_SETUP = GRUB_MODULES / "i386-pc" / "grub-bios-setup"


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> BootLoaders:
    return BootLoaders(tmp_path_factory.mktemp("loaders"))


@pytest.fixture
def fs(objects: Objects) -> FileSystem:
    tree = FileSystemBuilder()
    tree.link(0, b"boot", tree.add(mode=0o40755))
    tree.link(0, b"file", tree.add(mode=0o100644, size=4, hash=objects.add(b"file")))
    return tree.build()


@contextmanager
def first_partition(disk: Path) -> Iterator[tuple[str, Path]]:
    """A loop device over a disk, and its first partition, which the kernel is told of by partx."""
    device = run("losetup", "--find", "--show", disk).strip()
    node = Path(device + "p1")
    made = False
    try:
        run("partx", "--add", "--nr", "1", device)
        if not node.exists():
            number = Path(f"/sys/class/block/{node.name}/dev").read_text().strip()
            run("mknod", node, "b", *number.split(":"))
            made = True
        yield device, node
    finally:
        run("partx", "--delete", device, check=False)
        run("losetup", "--detach", device)
        if made:
            with suppress(FileNotFoundError):
                node.unlink()


@pytest.mark.root
@pytest.mark.parametrize("size", [64 * MIB, MBR_LIMIT + 16 * MIB])
def test_as_grub_bios_setup_writes_it(
    loaders: BootLoaders, fs: FileSystem, objects: Objects, tmp_path: Path, size: int
) -> None:
    scheme = divide(size, FirmwareType.BIOS, SEED).scheme
    loader = loaders.get(scheme)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_disk(ours, fs, objects, size, SEED, FirmwareType.BIOS, loader)
    write_disk(theirs, fs, objects, size, SEED, FirmwareType.BIOS)
    theirs.chmod(0o600)
    at = tmp_path / "at"
    at.mkdir()
    with first_partition(theirs) as (device, node):
        run("mount", node, at)
        try:
            images = at / "boot" / "images"
            images.mkdir()
            (images / "boot.img").write_bytes(loader.boot)
            (images / "core.img").write_bytes(loader.core)
            run(BIOS_SETUP, "-d", images, "-m", "/dev/null", "--no-rs-codes", device)
        finally:
            run("umount", at)
    with ours.open("rb") as one, theirs.open("rb") as other:
        assert one.read(MIB) == other.read(MIB)
    with mounted(ours, at) as root:
        assert differences(fs, root) == []


def test_uefi_disk(loaders: BootLoaders, fs: FileSystem, objects: Objects, tmp_path: Path) -> None:
    loader = loaders.get(Scheme.EFI)
    disk, size = tmp_path / "disk", 256 * MIB
    timeline = Timeline()
    write_disk(disk, fs, objects, size, SEED, FirmwareType.UEFI, loader, timeline)
    assert [phase.name for phase in timeline.phases] == ["unpack", "install boot loader"]
    run("mcopy", "-i", f"{disk}@@1M", "::EFI/BOOT/BOOTX64.EFI", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == loader.core
    assert loader.core[:2] == b"MZ"
    division = divide(size, FirmwareType.UEFI, SEED)
    with disk.open("rb") as file:
        file.seek(division.loader.offset)
        (tmp_path / "esp").write_bytes(file.read(division.loader.size))
    run("fsck.vfat", "-n", tmp_path / "esp")
    run("sgdisk", "-v", disk)
    e2fsck(disk, division.root.offset)
    with mounted(disk, tmp_path / "at", division.root.offset) as root:
        assert differences(fs, root) == []


async def test_bricks_and_layers(
    loaders: BootLoaders, fs: FileSystem, objects: Objects, tmp_path: Path
) -> None:
    store = BrickStore(tmp_path / "bricks", objects)
    for firmware, scheme in ((FirmwareType.BIOS, Scheme.MBR), (FirmwareType.UEFI, Scheme.EFI)):
        loader = loaders.get(scheme)
        timeline = Timeline()
        made = await store.get(fs, b"d", 256 * MIB, firmware, loader=loader, timeline=timeline)
        assert [phase.name for phase in timeline.phases] == ["unpack", "install boot loader"]
        assert await store.get(fs, b"d", 256 * MIB, firmware, loader=loader) == made
        plain = await store.get(fs, b"d", 256 * MIB, firmware)
        assert made.key != plain.key
        assert store.find(b"d", 256 * MIB, firmware) == plain
        layer = tmp_path / f"layer-{scheme.value}"
        info = create_layer(made, layer, label="rootfs@01020304", files={"/boot/x": b"y"})
        raw = tmp_path / "raw"
        run("qemu-img", "convert", "-O", "raw", layer, raw)
        offset = divide(256 * MIB, firmware, SEED).root.offset
        e2fsck(raw, offset)
        assert "rootfs@01020304" in run("blkid", "-p", "-O", offset, raw)
        assert info.uuid.hex() in run("blkid", "-p", "-O", offset, raw).replace("-", "")
        with mounted(raw, tmp_path / "at", offset) as root:
            assert (root / "boot" / "x").read_bytes() == b"y"
    await store.close()


def test_keys_differ_by_loader(loaders: BootLoaders) -> None:
    known = [None, *(loaders.get(scheme) for scheme in Scheme)]
    assert len({brick_key(b"d", 64 * MIB, FirmwareType.BIOS, loader) for loader in known}) == 4


def test_made_once(tmp_path: Path) -> None:
    first = BootLoaders(tmp_path / "loaders")
    assert first.known(Scheme.MBR) is None
    made = first.get(Scheme.MBR)
    assert first.known(Scheme.MBR) is made
    # Another agent finds it: it needs no program.
    assert BootLoaders(tmp_path / "loaders", program="none").get(Scheme.MBR) == made
    assert first.load(made.name) == made
    path = first.directory / made.name
    assert [p.name for p in first.directory.iterdir()] == [made.name]
    # A damaged one is made again.
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert first.load(made.name) is None
    assert BootLoaders(tmp_path / "loaders").get(Scheme.MBR) == made
    for name in ("mbr-0", "none", "../x", "mbr-../../x"):
        assert first.load(name) is None


def test_another_grub_is_another_loader(loaders: BootLoaders, tmp_path: Path) -> None:
    shutil.copytree(GRUB_MODULES / "x86_64-efi", tmp_path / "grub" / "x86_64-efi")
    copied = BootLoaders(tmp_path / "loaders", tmp_path / "grub")
    (tmp_path / "grub" / "x86_64-efi" / "new.mod").write_bytes(b"")
    assert copied.get(Scheme.EFI).name != loaders.get(Scheme.EFI).name


def test_without_grub(tmp_path: Path) -> None:
    with pytest.raises(BootLoaderMissingError, match="install grub-common"):
        BootLoaders(tmp_path, tmp_path / "none").get(Scheme.MBR)
    with pytest.raises(BootLoaderMissingError, match="no-such-program is not there"):
        BootLoaders(tmp_path, program="no-such-program").get(Scheme.MBR)
    with pytest.raises(BootLoaderError, match="false: 1"):
        BootLoaders(tmp_path, program="false").get(Scheme.EFI)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BootLoaderError, match="Not a directory"):
        BootLoaders(tmp_path / "file" / "loaders").get(Scheme.EFI)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_does_not_fit(loaders: BootLoaders) -> None:
    division = divide(64 * MIB, FirmwareType.BIOS, SEED)
    with pytest.raises(ValueError, match="EFI"):
        loaders.get(Scheme.EFI).writes(division, SEED)
    with pytest.raises(BootLoaderError, match="do not fit"):
        BootLoader("mbr-x", Scheme.MBR, bytes(SECTOR), bytes(MIB)).writes(division, SEED)


def grub_says(config: bytes) -> None:
    done = subprocess.run(["grub-script-check"], input=config, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


name = st.binary(min_size=1, max_size=20).filter(lambda n: not {0, 0x2F} & set(n))


@settings(max_examples=30, deadline=None)
@given(kernel=name, initrd=st.none() | name, options=st.text(max_size=30).filter(str.isprintable))
@example(kernel=b"vmlinuz-'; reboot; '", initrd=b"$x", options="a='b' \"c d\" } ; { \\ $e `f`")
def test_no_name_or_option_is_a_command(kernel: bytes, initrd: bytes | None, options: str) -> None:
    config = grub_config(b"/boot/" + kernel, initrd and b"/boot/" + initrd, options)
    grub_says(config)
    # As a shell reads single quotes, so does GRUB.
    entry = config[config.index(b"menuentry") :].removesuffix(b"}\n")
    stubs = b'linux() { printf "%s\\0" "$@"; }; initrd() { :; }\n'
    command: list[str | bytes] = ["sh", "-c", stubs + entry.split(b"{\n", 1)[1]]
    told = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")[:-1]
    assert told[0] == b"/boot/" + kernel
    assert b" ".join(told[1:]).split() == options.replace('"', "").encode().split()


def test_words_are_the_kernels(tmp_path: Path) -> None:
    config = grub_config(b"/k", None, '  a=1  b="two words" c="" "d e"=f\tg ')
    assert b"linux '/k' 'a=1' 'b=two words' 'c=' 'd e=f' 'g'\n" in config
    assert b"initrd" not in config
