"""imagetool against the image server's own daemon, both as processes, over TLS."""

import csv
import hashlib
import io
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smallstack.identity import pki


@dataclass
class Site:
    """A running daemon and a user's certificate."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    def command(self, *arguments: str | Path, user: str = "alice") -> list[str]:
        return [
            *(sys.executable, "-m", "smallstack.cli.imagetool"),
            *("--image-server", f"127.0.0.1:{self.port}"),
            *("--cert-directory", str(self.directory / user)),
            *map(str, arguments),
        ]

    def run(self, *arguments: str | Path, user: str = "alice", data: bytes = b"") -> str:
        done = subprocess.run(
            self.command(*arguments, user=user), input=data, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def fails(self, *arguments: str | Path, user: str = "alice", status: int = 1) -> str:
        """The one line on standard error."""
        done = subprocess.run(
            self.command(*arguments, user=user), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


def start(directory: Path, *arguments: str) -> Site:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        address = f"\0smallstack-test-{os.getpid()}-{port}"
        notify.bind(address)
        notify.settimeout(60)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "smallstack.cli.smallstack", "imageserver"),
                *("--state-dir", directory / "state", "--listen", "127.0.0.1"),
                *("--port", str(port), "--log-level", "warning"),
                *("--ca-file", directory / "ca/ca.pem"),
                *("--cert-file", directory / "server/cert.pem"),
                *("--key-file", directory / "server/key.pem"),
                *arguments,
            ],
            env={**os.environ, "NOTIFY_SOCKET": "@" + address[1:]},
        )
        assert notify.recv(4096) == b"READY=1"
    return Site(directory, port, process)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    authority = pki.make_ca(directory / "ca")
    pki.issue(authority, "server", server=True).write(directory / "server")
    pki.issue(authority, "alice", methods=["*.*"]).write(directory / "alice")
    pki.issue(authority, "bob").write(directory / "bob")
    running = start(directory)
    yield running
    running.process.terminate()
    assert running.process.wait(30) == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (made / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (made / "large").write_bytes(os.urandom(5 << 20))
    (made / "again").write_bytes((made / "large").read_bytes())
    (made / "link").symlink_to("etc")
    os.setxattr(made / "etc/passwd", "user.a", b"b")
    return made


def test_add_show_get(site: Site, root: Path, tmp_path: Path) -> None:
    site.run("mkdir", "-p", "a/b")
    out = site.run("add", "a/b/one", root)
    assert out == "a/b/one: 4 files (10.0 MiB), 3 objects, 3 of them new (5.0 MiB)\n"
    again = json.loads(site.run("add", "a/b/two", root, "--format", "json", "--tag", "k=v"))
    assert (again["objects"], again["uploaded"], again["uploaded_bytes"]) == (3, 0, 0)
    shown = json.loads(site.run("show", "a/b/two", "--format", "json"))
    assert (shown["created_by"], shown["files"], shown["tags"]) == ("alice", 4, {"k": "v"})
    assert shown["inodes_with_xattrs"] == 1
    assert shown["notes"] == []
    assert "sparse (no filter)" in site.run("show", "a/b/one")
    rows = list(csv.DictReader(io.StringIO(site.run("show", "a/b/one", "--files", "--format=csv"))))
    by_path = {row["path"]: row for row in rows}
    assert by_path["/link"]["content"] == "-> etc"
    assert by_path["/large"]["size"] == str(5 << 20)
    assert by_path["/etc/passwd"]["xattrs"] == "user.a"
    site.run("get", "a/b/one", tmp_path / "out")
    done = subprocess.run(
        ["rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{root}/", f"{tmp_path}/out/"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b""


def test_names_in_every_format(site: Site, root: Path) -> None:
    site.run("mkdir", "names")
    for number in (10, 9, 1):
        site.run("add", f"names/v.{number}", root)
    assert site.run("list", "names") == "names/v.1\nnames/v.9\nnames/v.10\n"
    rows = json.loads(site.run("list", "names/", "--format", "json"))
    assert rows[0] == {"name": "names/v.1"}
    assert site.run("list", "names", "--format", "csv").split() == [
        "name", "names/v.1", "names/v.9", "names/v.10",
    ]  # fmt: skip
    assert '"name": "names/v.9"' in site.run("list", "names", "--format", "yaml")
    assert site.run("list", "--tag", "no=such", "names") == ""
    assert site.run("find-latest", "names") == "names/v.1\n"
    assert site.run("find-latest-image", "names/") == "names/v.1\n"
    site.run("delete", "names/v.1")
    assert json.loads(site.run("find-latest", "names", "--format=json")) == {"name": "names/v.9"}
    assert "names" in site.run("listdirs")


def test_damage_on_the_server_is_told_and_mended(site: Site, root: Path, tmp_path: Path) -> None:
    (root / "etc/hosts").write_text("only here\n")
    site.run("add", "damaged", root)
    digits = hashlib.sha512(b"only here\n").hexdigest()
    place = site.directory / "state/objects" / digits[:2] / digits[2:4] / digits[4:]
    place.chmod(0o644)
    place.write_bytes(b"ONLY here\n")
    line = site.fails("get", "damaged", tmp_path / "out")
    assert f"object {digits} from 127.0.0.1:{site.port} is corrupt" in line
    assert "imagetool add --send-all" in line
    assert not (tmp_path / "out~").exists()
    site.run("add", "mended", root, "--send-all")
    site.run("get", "damaged", tmp_path / "out")
    place.unlink()
    line = site.fails("get", "damaged", tmp_path / "again")
    assert f"are not on 127.0.0.1:{site.port}, the first is {digits}" in line
    site.run("add", "mended-again", root)
    site.run("get", "damaged", tmp_path / "again")


def test_archives(site: Site, root: Path, tmp_path: Path) -> None:
    made = tmp_path / "root.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        archive.add(root, ".")
    out = json.loads(site.run("add", "from-tar", made, "--format", "json"))
    assert out["files"] == 4
    site.run("add", "from-stdin", "-", data=made.read_bytes())
    one, two = (
        site.run("show", name, "--files", "--format=csv") for name in ("from-tar", "from-stdin")
    )
    assert one == two


def test_archive_of_an_image(site: Site, root: Path, tmp_path: Path) -> None:
    os.link(root / "large", root / "etc/linked")
    site.run("add", "archived", root)
    plain = tmp_path / "plain.tar"
    site.run("tar", "archived", plain)
    out = subprocess.run(site.command("tar", "archived"), capture_output=True, check=True).stdout
    assert out == plain.read_bytes()
    site.run("add", "archived-again", plain)
    done = subprocess.run(site.command("diff", "archived", "archived-again"), check=False)
    assert done.returncode == 0
    for compression in ("zstd", "gzip", "xz"):
        packed = tmp_path / compression
        site.run("tar", "archived", packed, "--compress", compression)
        name = f"archived-{compression}"
        added = json.loads(site.run("add", name, packed, "--format", "json"))
        assert added["uploaded"] == 0
        assert site.run("diff", "archived", name) == ""
    assert "No such file or directory" in site.fails("tar", "archived", tmp_path / "none" / "x")
    assert "does not exist" in site.fails("tar", "none", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gzip",
        "plain.tar",
        "root",
        "xz",
        "zstd",
    ]


def test_what_differs(site: Site, root: Path, tmp_path: Path) -> None:
    (tmp_path / "filter").write_text("/large\n")
    site.run("add", "old", root)
    (root / "etc/hosts").write_text("127.0.0.1 other\n")
    (root / "again").unlink()
    (root / "new").mkdir()
    (root / "new/file").write_bytes(b"new content")
    os.utime(root / "etc/passwd", ns=(0, 0))
    site.run("add", "new", root, "--tag", "day=2")
    done = subprocess.run(
        site.command("diff", "old", "new", "--format", "json"), capture_output=True, check=False
    )
    assert done.returncode == 1
    rows = {row["path"]: (row["change"], row["what"]) for row in json.loads(done.stdout)}
    assert rows == {
        "/": ("changed", ["mtime"]),
        "/again": ("removed", []),
        "/etc/hosts": ("changed", ["content", "mtime"]),
        "/etc/passwd": ("changed", ["mtime"]),
        "/new": ("added", []),
        "/new/file": ("added", []),
    }
    sums = subprocess.run(
        site.command("diff", "old", "new", "--stat", "--no-mtime"),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert sums == (
        "2 added, 1 removed, 1 changed; 2 objects are new (27 B), 1 gone (20 B); other tags\n"
    )
    assert "does not exist" in site.fails("diff", "old", "none")


def test_patching_a_directory(site: Site, root: Path, tmp_path: Path) -> None:
    (tmp_path / "filter").write_text("/var/log(|/.*)$\n")
    (root / "usr/bin").mkdir(parents=True)
    site.run("add", "patch-1", root, "--filter", tmp_path / "filter")
    out = tmp_path / "out"
    site.run("get", "patch-1", out)
    (root / "etc/hosts").write_text("127.0.0.1 patched\n")
    (root / "again").unlink()
    site.run("add", "patch-2", root, "--filter", tmp_path / "filter")
    (out / "var").mkdir()
    (out / "var/log").mkdir()
    (out / "var/log/kept").touch()
    before = out.stat().st_mtime_ns
    told = site.run("patch-directory", "patch-2", out, "--dry-run").splitlines()
    assert told == [
        "changed / (mtime)",
        "removed /again",
        "changed /etc/hosts (content, mtime)",
        "removed /var",
    ]
    assert out.stat().st_mtime_ns == before
    done = subprocess.run(
        site.command("patch-directory", "patch-2", out), capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"{out}: 1 made, 1 removed, 0 with other metadata; 1 objects fetched (18 B)\n"
    )
    assert done.stderr == ("imagetool: warning: /var stays: something in it is left alone\n")
    assert (out / "etc/hosts").read_text() == "127.0.0.1 patched\n"
    assert "it is no directory" in site.fails("patch-directory", "patch-2", tmp_path / "none")
    assert "does not exist" in site.fails("patch-directory", "none", out)


def test_checking_an_image(site: Site, root: Path) -> None:
    (root / "etc/hosts").write_text("to be damaged\n")
    (root / "lost").write_text("to be lost\n")
    site.run("add", "checked", root)
    assert site.run("check", "checked") == ""
    assert "there is no image none" in site.fails("check", "none")
    assert "0 missing; contents were not read" in site.run("check", "checked", "--content")
    assert "0 missing, 0 corrupt" in site.run("check", "checked", "--verify")
    digits = [hashlib.sha512(text).hexdigest() for text in (b"to be damaged\n", b"to be lost\n")]
    damaged, lost = (site.directory / "state/objects" / d[:2] / d[2:4] / d[4:] for d in digits)
    damaged.chmod(0o644)
    damaged.write_bytes(b"to BE damaged\n")
    lost.unlink()
    done = subprocess.run(
        site.command("check", "checked", "--verify", "--format", "json"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["missing"], found["corrupt"]) == ([digits[1]], [digits[0]])
    site.run("add", "checked-again", root, "--send-all")
    site.run("check", "checked", "--verify")


def test_an_image_gets_more_time(site: Site, root: Path) -> None:
    site.run("add", "fading", root, "--expires-in", "1h")
    first = site.run("expire", "fading")
    assert site.run("get-image-expiration", "fading") == first
    later = site.run("change-image-expiration", "fading", "10h")
    assert later > first
    assert "cannot shorten" in site.fails("expire", "fading", "1h")
    assert "maximum expiration time is 730h0m0s" in site.fails("expire", "fading", "1000h")
    assert "above 0" in site.fails("expire", "fading", "0", status=2)
    assert site.run("expire", "fading", "--never") == "never\n"
    assert "image not found" in site.fails("expire", "none")


def test_copying_modification_times(site: Site, root: Path) -> None:
    """Only where nothing else has changed: hard links and symlinks too, directories by names."""
    os.link(root / "large", root / "etc/hard")
    (root / "opt").mkdir()
    site.run("add", "times-1", root)
    (root / "etc/hosts").write_text("127.0.0.1 other\n")
    (root / "etc/passwd").chmod(0o600)
    (root / "opt/new").write_text("new\n")
    for path in (root, *root.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)
    option = "--copy-mtimes-from"
    site.run("add", "times-2", root, option, "times-1")
    diff = site.command("diff", "times-1", "times-2", "--format", "json")
    done = subprocess.run(diff, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    changed = {row["path"]: set(row["what"]) for row in json.loads(done.stdout)}
    assert changed.keys() == {"/etc/hosts", "/etc/passwd", "/opt", "/opt/new"}
    assert changed["/etc/hosts"] == {"content", "mtime"}
    assert changed["/etc/passwd"] == {"mode", "mtime"}
    assert changed["/opt"] == {"mtime"}
    assert "image 'none': it does not exist" in site.fails("add", "times-3", root, option, "none")
    refused = ("add", "times-3", "debootstrap:bookworm", option, "times-1")
    done = subprocess.run(site.command(*refused), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is for a directory or an archive" in done.stderr


def test_the_next_day_stores_only_what_changed(site: Site, tmp_path: Path) -> None:
    """A root of 2,000 files in 50 packages; a day later two packages and some logs are new."""
    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/log").mkdir()

    def package(name: str, version: int) -> int:
        directory = root / "usr/share" / name
        directory.mkdir(parents=True, exist_ok=True)
        size = 0
        for number in range(40):
            data = f"{name} {version} {number}".encode() * (1 + number * 20)
            (directory / f"file-{number}").write_bytes(data)
            size += len(data)
        return size

    day_one = sum(package(f"package-{number}", 1) for number in range(50))
    (root / "var/lib/dpkg/status").write_bytes(b"status of day 1\n" * 1000)
    site.run("add", "day-1", root)
    before = _usage(site)["(together)"]
    changed = package("package-7", 2) + package("package-8", 2)
    (root / "var/lib/dpkg/status").write_bytes(b"status of day 2\n" * 1000)
    (root / "var/log/dpkg.log").write_bytes(b"installed\n")
    for number in range(10, 20):  # installed again: the same bytes at another time
        package(f"package-{number}", 1)
    changed += 16_000 + len(b"installed\n")
    added = json.loads(site.run("add", "day-2", root, "--format", "json"))
    assert (added["uploaded"], added["uploaded_bytes"]) == (82, changed)
    found = _usage(site)
    assert found["(together)"]["unique_bytes"] - before["unique_bytes"] == changed
    assert found["(together)"]["objects"] - before["objects"] == 82
    assert found["day-2"]["exclusive_bytes"] == changed
    assert found["day-2"]["exclusive_objects"] == 82
    assert found["day-1"]["logical_bytes"] == day_one + 16_000
    together = {r["name"]: r for r in _rows(site, "usage", "day-1", "day-2")}["(together)"]
    days = found["day-1"]["logical_bytes"] + found["day-2"]["logical_bytes"]
    assert together["logical_bytes"] == days
    assert together["unique_bytes"] == day_one + 16_000 + changed
    assert together["stored_bytes"] >= together["unique_bytes"]
    # Whole blocks of 4 KiB, one at least.
    assert together["stored_bytes"] <= together["unique_bytes"] + 4096 * together["objects"]
    assert "image not found: none" in site.fails("usage", "none")
    site.run("delete", "day-1")
    assert _usage(site)["day-2"]["exclusive_bytes"] == found["day-2"]["unique_bytes"]
    gone = _rows(site, "listunrefobj")
    assert len(gone) >= 81
    assert sum(row["size"] for row in gone) >= changed - len(b"installed\n")
    site.run("delunrefobj", "100")  # but for what was added in the last seconds
    site.run("check", "day-2", "--verify")


def _rows(site: Site, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(site.run(*arguments, "--format", "json"))
    return rows


def _usage(site: Site) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in _rows(site, "usage")}


def test_the_disk_an_image_needs(site: Site, root: Path) -> None:
    site.run("add", "sized", root)
    found = json.loads(site.run("estimate-usage", "sized", "--format", "json"))
    usage = found["usage_bytes"]
    assert usage >= 10 << 20
    least = usage + usage // 8 + (256 << 20) + (1 << 20)
    assert found["bios_disk_bytes"] == -(-least // (1 << 24)) << 24
    assert found["uefi_disk_bytes"] > found["bios_disk_bytes"]
    assert "there is no image none" in site.fails("estimate-usage", "none")


def test_filters_and_triggers(site: Site, root: Path, tmp_path: Path) -> None:
    (tmp_path / "filter").write_text("/large\n# a comment\n")
    (tmp_path / "triggers").write_text('[{"MatchLines": ["/etc/hosts"], "Service": "dns"}]')
    line = site.fails("add", "filtered", root, "--filter", tmp_path / "filter")
    assert "/usr is not in it: leave the filter out" in line
    (root / "usr/bin").mkdir(parents=True)
    site.run(
        *("add", "filtered", root, "--filter", tmp_path / "filter"),
        *("--trigger", tmp_path / "triggers", "--expires-in", "1h"),
    )
    shown = json.loads(site.run("show", "filtered", "--format", "json"))
    assert shown["kind"] == "whole machine (has a filter)"
    assert shown["filter"] == ["/large"]
    assert shown["triggers"] == ["dns"]
    assert shown["expires_at"]
    assert shown["files"] == 3
    assert site.run("list", "filtered", "--ignore-expiring") == ""


def test_one_line_errors(site: Site, root: Path, tmp_path: Path) -> None:
    site.run("add", "taken", root)
    assert site.fails("add", "taken", root) == (
        "imagetool: image 'taken': it exists; images never change, name a new one\n"
    )
    assert "there is no directory 'none': `imagetool mkdir none`" in site.fails(
        "add", "none/x", root
    )
    assert "is no name for an image" in site.fails("add", "../x", root)
    assert "No such file or directory" in site.fails("add", "x", tmp_path / "none")
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    assert "it is no tar archive" in site.fails("add", "x", tmp_path / "no.tar")
    assert "No such file" in site.fails("add", "x", root, "--filter", tmp_path / "none")
    assert "15 minutes at least" in site.fails("add", "x", root, "--expires-in", "1m")
    assert "is no tag" in site.fails("add", "x", root, "--tag", "nonsense", status=2)
    assert "does not exist: check `imagetool list`" in site.fails("show", "none")
    assert "does not exist" in site.fails("get", "none", tmp_path / "out")
    assert "there is something already" in site.fails("get", "taken", root)
    assert "image does not exist" in site.fails("delete", "none")
    (tmp_path / "digests").write_text("00\n")
    digests = site.fails("import-objects", "http://h/", tmp_path / "digests", status=2)
    assert "'00' is no SHA-512 in hex" in digests
    assert "write http://HOST/" in site.fails("import-objects", "h", "/dev/null")
    assert "closed the connection" in site.fails("test-bandwidth", "--chunk-size", "1M")
    assert "directory: none does not exist" in site.fails("rmdir", "none")
    assert 'no metadata for: "none"' in site.fails("chown", "none", "crew")
    assert "image: none does not exist" in site.fails("get-archive", "none", tmp_path / "out")
    assert "cannot write" in site.fails("get-archive", "taken", tmp_path / "none/out")
    assert "cannot read" in site.fails("restore-archive", tmp_path / "none")
    assert "ends too early" in site.fails("restore-archive", root / "etc/passwd")
    assert "unknown directory: none" in site.fails("find-latest", "none")
    assert "directory: . already exists" in site.fails("mkdir", ".")
    assert "access to method denied" in site.fails("add", "x", root, user="bob")
    assert "no access to image" in site.fails("delete", "taken", user="bob")
    assert "no certificate in" in site.fails("list", user="nobody")
    nowhere = Site(site.directory, 1, site.process)
    assert "cannot connect to 127.0.0.1:1" in nowhere.fails("list")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out~").exists()


def test_a_terminal_sees_progress_and_a_pipe_does_not(site: Site, root: Path) -> None:
    for number in range(200):
        (root / f"file{number}").write_bytes(os.urandom(20_000))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        site.command("add", "progress", root), stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:
        pass  # the terminal's other end is closed
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"reading " in seen
    assert b"MiB" in seen
    assert out.startswith(b"progress: 204 files")


def test_settings_are_shown(tmp_path: Path) -> None:
    base = [sys.executable, "-m", "smallstack.cli.smallstack", "imageserver"]
    done = subprocess.run(
        [*base, "--port", "1234", "--show-config"], capture_output=True, text=True, check=True
    )
    assert "port = 1234" in done.stdout
    assert "# --port" in done.stdout
    for arguments, text in (
        (["--port", "x"], "'x' is no value for port"),
        (["--config", str(tmp_path / "none.toml")], "cannot read the settings file"),
        (["--log-level", "loud"], "unknown log level"),
    ):
        bad = subprocess.run([*base, *arguments], capture_output=True, text=True, check=False)
        assert bad.returncode == 2
        assert text in bad.stderr
        assert bad.stderr.count("\n") == 1
    missing = subprocess.run(
        [*base, "--state-dir", tmp_path / "state", "--ca-file", tmp_path / "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert not any(tmp_path.iterdir())


def test_a_second_daemon_does_not_touch_the_store(site: Site, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "smallstack.cli.smallstack", "imageserver", "--insecure"),
            *("--state-dir", site.directory / "state", "--port", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is in use by another process" in done.stderr


@pytest.mark.root
def test_build(site: Site, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLSTACK_CACHE", str(tmp_path / "cache"))
    (root / "usr/bin").mkdir(parents=True)
    shell = shutil.which("busybox")
    assert shell is not None
    shutil.copy(shell, root / "usr/bin/sh")
    (root / "bin").symlink_to("usr/bin")
    site.run("mkdir", "-p", "built/base")
    (tmp_path / "filter").write_text("/var/log/\n")
    site.run("add", "built/base/1", root, "--filter", tmp_path / "filter")
    manifest = tmp_path / "manifest"
    for name in ("scripts", "files/etc"):
        (manifest / name).mkdir(parents=True)
    (manifest / "manifest").write_text('{"SourceImage": "built/base"}')
    (manifest / "files/etc/hosts").write_text("127.0.0.1 built\n")
    (manifest / "files/etc/computed").touch()
    (manifest / "computed-files").write_text("/etc/computed localhost:6977\n")
    (manifest / "filter.add").write_text("/home/\n")
    (manifest / "tags.json").write_text('{"kind": "built"}')
    (manifest / "scripts/10-make").write_text("#!/bin/sh\necho made >/etc/made; echo said\n")
    (manifest / "scripts/10-make").chmod(0o755)
    git = ["git", "-C", str(manifest), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q", "-b", "trunk"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    steps = site.run("build", "built/one", manifest, "--dry-run").splitlines()
    assert steps == [
        "lay out the image the newest of built/base",
        "lay files/ over it",
        "run scripts/10-make",
        "normalise",
        "upload built/one",
    ]
    one = json.loads(site.run("build", "built/one", manifest, "--format", "json"))
    two = json.loads(site.run("build", "built/two", manifest, "--format", "json"))
    assert one["tree"] == two["tree"]
    assert two["uploaded"] <= 1  # the log, if anything
    shown = json.loads(site.run("show", "built/two", "--format", "json"))
    assert shown["source_image"] == "built/base/1"
    assert shown["filter"] == ["/var/log/", "/home/"]
    assert shown["tags"] == {"kind": "built"}
    assert shown["computed_files"] == 1
    assert shown["build"].startswith("trunk ")
    site.run("get", "built/two", tmp_path / "got")
    assert (tmp_path / "got/etc/made").read_text() == "made\n"
    assert (tmp_path / "got/etc/hosts").read_text() == "127.0.0.1 built\n"
    error = site.fails("build", "built/one", manifest)
    assert error == (
        "imagetool: image 'built/one': it exists; images never change, name a new one\n"
    )
    (manifest / "manifest").write_text('{"SourceImage": "built/nothing"}')
    error = site.fails("build", "built/three", manifest)
    assert "SourceImage: there is no image 'built/nothing'" in error
