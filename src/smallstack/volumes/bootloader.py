"""GRUB for a root disk: its images are made once, then put in place by writing them.

``grub-mkimage`` makes one image a scheme from the modules that the host's GRUB packages bring; the
result is kept under a name made of everything that went into it. Installing is a few writes into
the disk's file: no mount, no loop device, no ``grub-install``.

========  ===========================================================================
scheme    what is written
========  ===========================================================================
MBR       boot.img into the first sector, core.img from the second one on
GPT       boot.img into the first sector, core.img into the BIOS boot partition
EFI       a FAT file system with \\EFI\\BOOT\\BOOTX64.EFI, which every firmware looks for
========  ===========================================================================

The image's prefix names a partition and no disk, ``(,msdos1)/boot/grub``: GRUB takes the disk that
it was itself loaded from, so neither label nor UUID of a VM's root goes into it. Everything that a
usual grub.cfg asks for is in the image; modules below the root's /boot/grub are not needed.

Sources: GRUB Manual 2.06, "BIOS installation" and "Invoking grub-mkimage"; the offsets of what
``grub-bios-setup`` changes are those of GRUB's include/grub/i386/pc/boot.h, and the test compares
with what it writes.
"""

import os
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from smallstack.durable import replace_file
from smallstack.telemetry.errors import describe
from smallstack.volumes.errors import BootLoaderError, BootLoaderMissingError
from smallstack.volumes.fat import fat32
from smallstack.volumes.partition import SECTOR, Division, Scheme, write_parts

GRUB_MODULES: Final = Path("/usr/lib/grub")
EFI_PATH: Final = "EFI/BOOT/BOOTX64.EFI"

_BOOT_CODE: Final = 440  # what comes behind is the table's
_DRIVE_CHECK_AT: Final = 0x66
_CORE_SECTOR_AT: Final = 0x5C
_BLOCK_LIST_AT: Final = SECTOR - 12
_NO_OPERATION: Final = b"\x90\x90"
_DIGEST: Final = 32

# fmt: off
_EVERYWHERE: Final = (
    "part_msdos", "part_gpt", "ext2", "fat", "normal", "configfile", "linux", "chain", "search",
    "search_label", "search_fs_uuid", "search_fs_file", "serial", "terminal", "echo", "test",
    "true", "regexp", "all_video", "gfxterm", "gettext", "gzio", "xzio", "lzopio", "loadenv",
    "sleep", "halt", "reboot", "minicmd", "ls", "cat", "probe", "cpuid",
)
# fmt: on
_TARGET: Final = {
    Scheme.MBR: ("i386-pc", "(,msdos1)/boot/grub", ("biosdisk", "linux16")),
    Scheme.GPT: ("i386-pc", "(,gpt1)/boot/grub", ("biosdisk", "linux16")),
    Scheme.EFI: ("x86_64-efi", "(,gpt1)/boot/grub", ("efifwsetup",)),
}


@dataclass(frozen=True, slots=True)
class BootLoader:
    """A boot loader that can be installed on disks of one scheme.

    ``name`` stands for the content. ``boot`` is boot.img, empty for EFI; ``core`` is core.img or
    the EFI program.
    """

    name: str
    scheme: Scheme
    boot: bytes
    core: bytes

    def install(self, fd: int, division: Division, seed: bytes) -> None:
        """Write it to the disk ``fd``, whose tables are written. Raises OSError or ValueError."""
        write_parts(fd, self.writes(division, seed))

    def writes(self, division: Division, seed: bytes) -> list[tuple[int, bytes]]:
        """Byte offset and content of what installing writes; ``seed``: as `divide` got it.

        Raises ValueError for a disk of another scheme, BootLoaderError when there is no room.
        """
        if division.scheme is not self.scheme:
            raise ValueError(f"a boot loader for {self.scheme} on {division.scheme}")
        place = division.loader
        if self.scheme is Scheme.EFI:
            parts = fat32(
                place.size,
                {EFI_PATH: self.core},
                hidden=place.offset // SECTOR,
                volume_id=seed[-4:],
            )
            return [(place.offset + offset, data) for offset, data in parts]
        if len(self.core) > place.size:
            raise BootLoaderError(detail=f"{len(self.core)} bytes do not fit into {place.size}")
        table = division.writes[0][1]
        first = place.offset // SECTOR
        boot, core = bytearray(self.boot[:_BOOT_CODE] + table[_BOOT_CODE:]), bytearray(self.core)
        struct.pack_into("<Q", boot, _CORE_SECTOR_AT, first)
        # A BIOS may say that it boots from a floppy when it does not; GRUB must not believe it.
        boot[_DRIVE_CHECK_AT : _DRIVE_CHECK_AT + 2] = _NO_OPERATION
        struct.pack_into("<Q", core, _BLOCK_LIST_AT, first + 1)
        return [(0, bytes(boot)), (place.offset, bytes(core))]


class BootLoaders:
    """The boot loaders of this host, kept in ``directory``.

    One that was installed once stays there: a disk that has it can be made again bit for bit after
    an upgrade of GRUB.
    """

    def __init__(
        self, directory: Path, modules: Path = GRUB_MODULES, program: str = "grub-mkimage"
    ) -> None:
        self.directory = directory
        self._modules = modules
        self._program = program
        self._known: dict[Scheme, BootLoader] = {}
        self._lock = threading.Lock()

    def known(self, scheme: Scheme) -> BootLoader | None:
        """The boot loader for a scheme, if it was asked for before. Does not block."""
        return self._known.get(scheme)

    def get(self, scheme: Scheme) -> BootLoader:
        """The boot loader for a scheme, made if there is none. Blocks: 0.1 s, once.

        Raises BootLoaderMissingError when GRUB is not installed, BootLoaderError.
        """
        with self._lock:
            found = self._known.get(scheme)
            if found is None:
                try:
                    found = self._get(scheme)
                except OSError as error:
                    raise BootLoaderError(detail=describe(error)) from error
                self._known[scheme] = found
        return found

    def load(self, name: str) -> BootLoader | None:
        """The boot loader of that name, None if it is not kept any more. Raises OSError."""
        try:
            scheme = Scheme(name.partition("-")[0])
            data = (self.directory / name).read_bytes()
        except (FileNotFoundError, ValueError):
            return None
        content, digest = data[:-_DIGEST], data[-_DIGEST:]
        if blake3(content).digest() != digest:
            return None
        split = 0 if scheme is Scheme.EFI else SECTOR
        return BootLoader(name, scheme, content[:split], content[split:])

    def _get(self, scheme: Scheme) -> BootLoader:
        platform, prefix, more = _TARGET[scheme]
        place = self._modules / platform
        arguments = ["-O", platform, "-d", os.fspath(place), "-p", prefix, *_EVERYWHERE, *more]
        name = f"{scheme.value}-{self._digest(place, arguments)}"
        found = self.load(name)
        if found is not None:
            return found
        core = self._make(arguments, name)
        boot = b"" if scheme is Scheme.EFI else (place / "boot.img").read_bytes()
        content = boot + core
        # After a crash its digest tells whether it is whole.
        replace_file(self.directory / name, content + blake3(content).digest(), sync=False)
        return BootLoader(name, scheme, boot, core)

    def _digest(self, place: Path, arguments: list[str]) -> str:
        """Of all that an image is made from; Debian's packages differ in it when GRUB does."""
        hasher = blake3("\0".join(arguments).encode())
        try:
            files = sorted(p for p in place.iterdir() if p.suffix in {".mod", ".img", ".lst"})
        except FileNotFoundError:
            raise BootLoaderMissingError(missing=place) from None
        for path in files:
            data = path.read_bytes()
            hasher.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
        return hasher.hexdigest(length=20)

    def _make(self, arguments: list[str], name: str) -> bytes:
        self.directory.mkdir(parents=True, exist_ok=True)
        output = self.directory / f"{name}.~{os.getpid()}"
        try:
            done = subprocess.run(
                [self._program, *arguments, "-o", os.fspath(output)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
                raise BootLoaderError(detail=f"{self._program}: {said or done.returncode}")
            return output.read_bytes()
        except FileNotFoundError:
            raise BootLoaderMissingError(missing=self._program) from None
        finally:
            with suppress(FileNotFoundError):
                output.unlink()
