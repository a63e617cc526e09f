"""Whole builds with real apt-get and dpkg, in namespaces, without a network."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from smallstack.control.building.build import Built, build_image
from smallstack.control.building.confine import BuildError
from smallstack.control.building.plan import BuildOptions, plan
from smallstack.control.building.publish import copy_tree, put_out
from smallstack.control.building.room import in_root
from smallstack.control.images import Progress
from tests.control.small_debian import NEWER, make_base, make_repository

pytestmark = pytest.mark.root

LOOK = """#!/bin/sh
set -e
# A line each: `set -e` minds neither what stands before && nor what ! turns round.
refused() {{ if "$@" 2>/dev/null; then echo "not refused: $*"; exit 1; fi; }}
[ $$ -lt 100 ]                          # a PID namespace
[ "$(hostname)" = image-build ]
[ "$(ls /sys/class/net)" = lo ]         # no network
[ ! -e {host} ]                         # nothing of the machine
[ "$LANG $HOME" = "C.UTF-8 /root" ]
[ -z "$SECRET" ]
[ "$SOURCE_DATE_EPOCH" = {epoch} ]
[ -c /dev/null ]
[ ! -e /dev/kmsg ]
for file in /sys/kernel/mm/ksm/run /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
    refused sh -c ": >$file"            # opened, nothing written
done
refused busybox mount -t tmpfs none /mnt
refused busybox mount -o remount,rw /proc/sys
refused busybox mknod /dev/device b 254 0
busybox mknod /etc/device c 1 5
refused busybox head -c 1 /etc/device
rm /etc/device
busybox grep -q "^CapEff:.*00000000880400fb$" /proc/self/status
[ "$(hello)" = hello ]
[ "$(cat /etc/motd)" = "base: laid over: appended" ]
echo $$ >/var/tmp/left
date +%N >/etc/moment && rm /etc/moment
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base tree and a repository of packages."""
    directory = tmp_path_factory.mktemp("origin")
    make_repository(directory / "repository")
    (directory / "base").mkdir()
    make_base(directory / "base", directory / "repository")
    return directory


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of scripts and files; builds keep what is theirs below ``tmp_path``."""
    monkeypatch.setenv("SMALLSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SECRET", "of the machine")
    made = tmp_path / "manifest"
    for name in ("files/etc", "files.append/etc", "scripts", "tests"):
        (made / name).mkdir(parents=True)
    (made / "manifest").write_text('{"SourceImage": "base", "FilterLines": ["/etc/filtered$"]}')
    return made


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


async def build(options: BuildOptions) -> Built:
    return await build_image(options, None, Progress(), lambda _: None)


def left(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "cache/builds"))  # noqa: PTH208


async def test_the_same_twice(
    origin: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest / "files/etc/motd").write_text("base: laid over")
    (manifest / "files/etc/filtered").touch()
    (manifest / "files/etc/hello.conf").write_text("x")
    (manifest / "files.append/etc/motd").write_text(": appended")
    owners = {"/etc/hello.conf": {"Uid": 3, "Gid": 4, "Mode": "0640"}}
    (manifest / "file-owners.json").write_text(json.dumps(owners))
    (manifest / "package-list").write_text("# wanted\nhello\n")
    script(manifest / "scripts/10-look", LOOK.format(host=tmp_path, epoch=NEWER))
    script(manifest / "tests/hello", "#!/bin/sh\nhello\n")
    first = BuildOptions(manifest, base=origin / "base", output=tmp_path / "one", lock=True)
    one = await build(first)
    assert one.warnings == []
    assert one.epoch == NEWER
    assert [(p.name, p.version, p.size) for p in one.packages] == [
        ("hello", "2:1.5-1", 7168),
        ("words", "1.0", 7168),
    ]
    root = tmp_path / "one"
    assert (root / "etc/machine-id").read_bytes() == b""
    assert (root / "etc/policy").read_text() == "policy 101\n"
    assert (root / "etc/shadow").read_text().split(":")[2] == str(NEWER // 86400)
    assert (root / "var/log/hello.log").read_bytes() == b""
    found = (root / "etc/hello.conf").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (3, 4, 0o640)
    for gone in (
        *("usr/sbin/policy-rc.d", "etc/filtered", "etc/ssh/ssh_host_rsa_key", "var/tmp/left"),
        *("var/cache/debconf/templates-old", "var/lib/dpkg/status-old", "run/smallstack"),
    ):
        assert not os.path.lexists(root / gone), gone
    states = (root / "var/lib/apt/extended_states").read_text()
    assert "Package: words" in states and "Package: hello" not in states
    newest = max(p.lstat().st_mtime for p in root.rglob("*"))
    assert newest == NEWER
    assert left(tmp_path) == ["lock"]

    # Another day, another machine's umask and checkout, another place; no repository at all.
    other = tmp_path / "elsewhere"
    shutil.copytree(manifest, other, symlinks=True)
    (other / "files/etc/motd").chmod(0o664)
    base = tmp_path / "base"
    copy_tree(origin / "base", base)
    hidden = origin / "hidden"
    (origin / "repository").rename(hidden)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    try:
        second = replace(first, manifest=other, base=base, output=tmp_path / "two.tar", lock=False)
        assert plan(second)[3] == "install 2 locked packages for hello"
        two = await build(second)
    finally:
        hidden.rename(origin / "repository")
    assert two.digest == one.digest
    assert two.tree.objects() == one.tree.objects()
    with tarfile.open(tmp_path / "two.tar") as archive:
        assert archive.getmember("./etc/hello.conf").uid == 3


async def test_a_failing_script_is_named_and_nothing_stays(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    script(manifest / "scripts/10-fails", "#!/bin/sh\necho one\necho why it fails\nexit 7\n")
    script(manifest / "scripts/20-never", "#!/bin/sh\nexit 0\n")
    options = BuildOptions(
        manifest, base=origin / "base", output=tmp_path / "out", keep=tmp_path / "kept"
    )
    with pytest.raises(BuildError) as failed:
        await build(options)
    assert str(failed.value) == (
        "the build failed: scripts/10-fails ended with status 7: one / why it fails"
    )
    assert left(tmp_path) == ["lock"]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "kept/bin/busybox").exists()


async def test_a_tree_that_cannot_be_kept_hides_no_failure(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    script(manifest / "scripts/fails", "#!/bin/sh\nexit 3\n")
    options = BuildOptions(
        manifest, base=origin / "base", output=tmp_path / "out", keep=tmp_path / "no/place"
    )
    told: list[str] = []
    with pytest.raises(BuildError, match="scripts/fails"):
        await build_image(options, None, Progress(), told.append)
    assert told[-1].startswith("the tree could not be kept: ")
    assert told[-1].endswith(f"{tmp_path}/no/place~': No such file or directory")
    assert left(tmp_path) == ["lock"]


async def test_what_a_killed_build_was_writing_is_in_no_output(tmp_path: Path) -> None:
    """Copied to another file system, or written as an archive."""

    def tree(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "new").write_text("new")
        return tmp_path / name

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "others").touch()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        assert Path(place).stat().st_dev != tmp_path.stat().st_dev
        output = Path(place, "out")
        Path(place, "out~").mkdir()
        Path(place, "out~/stale").touch()
        put_out(tree("one"), output)
        assert list(output.iterdir()) == [output / "new"]
        output = Path(place, "link")
        Path(place, "link~").symlink_to(elsewhere)
        put_out(tree("two"), output)
        assert list(output.iterdir()) == [output / "new"]
        archive = Path(place, "out.tar")
        Path(place, "out.tar~").symlink_to(elsewhere / "others")
        put_out(tree("three"), archive)
        with tarfile.open(archive) as opened:
            assert opened.getnames() == [".", "./new"]
        assert not archive.is_symlink()
        Path(place, "more.tar~").mkdir()
        put_out(tree("four"), Path(place, "more.tar"))
        assert sorted(os.listdir(place)) == ["link", "more.tar", "out", "out.tar"]  # noqa: PTH208
    assert [path.name for path in elsewhere.iterdir()] == ["others"]
    assert (elsewhere / "others").read_bytes() == b""


async def test_a_script_ends_with_its_time_and_takes_its_children_along(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    (manifest / "manifest").write_text('{"SourceImage": "base", "ScriptTimeLimit": 1}')
    os.mkfifo(manifest / ".fifo")
    held = "exec 9>/run/smallstack/manifest/.fifo\n"
    script(manifest / "scripts/10-child", f"#!/bin/sh\n{held}sleep 1000 &\n")
    script(manifest / "scripts/20-hangs", "#!/bin/sh\nsleep 1000\n")
    reader = os.open(manifest / ".fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BuildError, match=r"scripts/20-hangs took longer than 1 s"):
            await build(BuildOptions(manifest, base=origin / "base", output=tmp_path / "out"))
        assert os.read(reader, 1) == b""  # nobody holds it any more
    finally:
        os.close(reader)


def test_kill_9_leaves_a_directory_that_the_next_build_removes(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    os.mkfifo(manifest / ".fifo")
    text = "#!/bin/sh\nexec 9>/run/smallstack/manifest/.fifo\necho here >&9\nsleep 1000\n"
    script(manifest / "scripts/10-hangs", text)
    command = [sys.executable, "-m", "smallstack.cli.imagetool", "build", "x", str(manifest)]
    command += ["--base", str(origin / "base"), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    with (manifest / ".fifo").open("rb") as fifo:  # opens when the script does
        assert fifo.readline() == b"here\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fifo.read() == b""  # ends when everything inside has ended
    assert len(left(tmp_path)) == 2
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    script(manifest / "scripts/10-hangs", "#!/bin/sh\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert left(tmp_path) == ["lock"]


async def test_nothing_is_laid_outside_the_image(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    base = tmp_path / "base"
    copy_tree(origin / "base", base)
    (base / "srv").symlink_to(victim)
    (manifest / "files/srv").mkdir()
    (manifest / "files/srv/evil").write_text("x")
    with pytest.raises(BuildError, match="files File exists: /srv"):
        await build(BuildOptions(manifest, base=base, output=tmp_path / "out"))
    assert list(victim.iterdir()) == []
    assert in_root(base, "/srv/x") == base / str(victim).lstrip("/") / "x"


@pytest.mark.parametrize("name", ["dev", "proc", "run"])
async def test_a_mount_point_that_leads_away_is_refused(
    origin: Path, manifest: Path, tmp_path: Path, name: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / name).symlink_to(tmp_path)
    with pytest.raises(BuildError, match=f"/{name} of the image is no directory"):
        await build(BuildOptions(manifest, base=base, output=tmp_path / "out"))


async def test_a_damaged_package_in_the_cache_is_not_used(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    (manifest / "package-list").write_text("words\n")
    options = BuildOptions(manifest, base=origin / "base", output=tmp_path / "one", lock=True)
    one = await build(options)
    (kept,) = (tmp_path / "cache/packages").glob("*/*.deb")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    two = await build(replace(options, output=tmp_path / "two", lock=False))
    assert two.digest == one.digest


async def test_a_lock_of_another_list_or_base_is_refused(
    origin: Path, manifest: Path, tmp_path: Path
) -> None:
    (manifest / "package-list").write_text("words\n")
    options = BuildOptions(manifest, base=origin / "base", output=tmp_path / "one", lock=True)
    await build(options)
    base = tmp_path / "base"
    copy_tree(origin / "base", base)
    (base / "etc/more").touch()
    again = replace(options, base=base, output=tmp_path / "two", lock=False)
    with pytest.raises(Exception, match="made for another source image: build with --lock"):
        await build(again)
    (manifest / "package-list").write_text("hello\n")
    with pytest.raises(Exception, match="made for another package-list: build with --lock"):
        await build(replace(again, base=origin / "base"))
    assert left(tmp_path) == ["lock"]


@pytest.mark.debian
@pytest.mark.timeout(1800)
async def test_a_debian_twice(manifest: Path, tmp_path: Path) -> None:
    """debootstrap through this machine's mirror, then of the lock alone."""
    recipe = {"Bootstrap": {"Suite": "bookworm", "Variant": "minbase"}}
    (manifest / "manifest").write_text(json.dumps(recipe))
    (manifest / "package-list").write_text("python3\nopenssh-server\n")
    options = BuildOptions(manifest, output=tmp_path / "one", lock=True)
    one = await build(options)
    two = await build(replace(options, output=tmp_path / "two", lock=False))
    assert two.digest == one.digest
    assert two.tree.objects() == one.tree.objects()
    assert "deb.debian.org" in (tmp_path / "one/etc/apt/sources.list").read_text()
    assert not (tmp_path / "one/etc/hostname").exists()
