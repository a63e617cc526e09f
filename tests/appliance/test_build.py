"""What the recipe makes: the tree, its manifest, and the same again from the same inputs."""

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

from .conftest import APPLIANCE


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = ""
        name = str(path.relative_to(root))
        found[name] = (stat.filemode(status.st_mode), status.st_mtime_ns, content)
    return found


def test_the_manifest_tells_what_is_there(appliance: Path) -> None:
    root = appliance / "root"
    manifest = json.loads((appliance / "manifest.json").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+-smallstack", manifest["kernel_version"])
    for name in ("kernel", "init", "busybox"):
        path = root / manifest[name]["path"].lstrip("/")
        data = path.read_bytes()
        assert manifest[name]["bytes"] == len(data)
        assert manifest[name]["sha256"] == hashlib.sha256(data).hexdigest()
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert manifest["bytes"] == sum(path.stat().st_size for path in files)
    assert manifest["inodes"] == 1 + sum(1 for _ in root.rglob("*"))


def test_the_tree_has_what_a_program_expects(appliance: Path) -> None:
    root = appliance / "root"
    for path in ("dev", "proc", "sys", "run", "tmp", "var/www", "var/lib", "etc/passwd", "root"):
        assert (root / path).exists()
    assert (root / "bin" / "sh").readlink() == Path("busybox")
    assert (root / "bin" / "busybox").stat().st_mode & 0o111
    assert not (root / "bin" / "init").exists()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "etc" / "resolv.conf").readlink() == Path("/run/resolv.conf")


def test_the_init_is_small_and_needs_nothing(appliance: Path) -> None:
    init = appliance / "root" / "sbin" / "init"
    assert init.stat().st_size < 32 * 1024
    headers = subprocess.run(
        ["readelf", "-lW", str(init)], check=True, capture_output=True, text=True
    ).stdout
    assert "INTERP" not in headers
    assert "DYNAMIC" not in headers


def test_the_kernel_has_a_pvh_entry_and_no_modules(appliance: Path) -> None:
    boot = appliance / "root" / "boot"
    kernel, config = next(boot.glob("vmlinuz-*")), next(boot.glob("config-*")).read_text()
    notes = subprocess.run(
        ["readelf", "-nW", str(kernel)], check=True, capture_output=True, text=True
    ).stdout
    assert re.search(r"Xen\s+0x0000000[48]\s+Unknown note type: \(0x00000012\)", notes)
    for wanted in ("VIRTIO_BLK=y", "VIRTIO_NET=y", "VIRTIO_CONSOLE=y", "EXT4_FS=y", "PVH=y"):
        assert f"CONFIG_{wanted}\n" in config
    for unwanted in ("MODULES", "SMP", "PCI", "ACPI", "BLK_DEV_INITRD", "RANDOMIZE_BASE"):
        assert f"CONFIG_{unwanted}=y" not in config


def test_every_mtime_is_the_same_and_a_second_build_too(
    appliance: Path, cache: Path, tmp_path: Path
) -> None:
    first = tree(appliance / "root")
    assert len({entry[1] for entry in first.values()}) == 1
    for kernel in cache.glob("kernel-*-????????????????"):
        (tmp_path / kernel.name).symlink_to(kernel)
    built = subprocess.run(
        [str(APPLIANCE / "build"), str(tmp_path)], check=True, capture_output=True, text=True
    )
    again = Path(built.stdout.strip())
    assert again.parent == tmp_path
    assert tree(again / "root") == first
    assert (again / "manifest.json").read_bytes() == (appliance / "manifest.json").read_bytes()


def test_a_build_that_is_there_costs_nothing(appliance: Path, cache: Path) -> None:
    before = os.times()
    done = subprocess.run(
        [str(APPLIANCE / "build"), str(cache)], check=True, capture_output=True, text=True
    )
    after = os.times()
    assert done.stdout.strip() == str(appliance)
    assert done.stderr == ""
    assert (
        after.children_user
        + after.children_system
        - (before.children_user + before.children_system)
        < 1.0
    )


def test_without_a_kernel_source_the_reason_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(APPLIANCE / "kernel" / "build"), str(tmp_path), "vax"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no configuration for vax" in done.stderr
