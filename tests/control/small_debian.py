"""A tree that real apt-get and dpkg work in, and packages for it: no mirror, no network."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

PROGRAMS = (
    *("/usr/bin/apt-get", "/usr/bin/apt-mark", "/usr/bin/dpkg", "/usr/bin/dpkg-deb"),
    *("/usr/bin/dpkg-query", "/usr/bin/dpkg-split", "/bin/tar", "/sbin/start-stop-daemon"),
    *("/usr/bin/diff", "/usr/lib/apt/methods/file", "/usr/lib/apt/methods/copy"),
    "/usr/lib/apt/methods/store",
)
COMMANDS = ("sh", "rm", "cat", "ls", "date", "hostname", "sleep", "mkdir", "grep", "id", "true")
NEWER = 1_700_000_001
"""When the packages were built, in s; the base is older."""


def make_base(root: Path, repository: Path) -> None:
    """This machine's apt and dpkg with their libraries, busybox for the rest."""
    for program in PROGRAMS:
        _copy(root, Path(program).resolve(), Path(program))
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
        for word in listed.stdout.split():
            if word.startswith("/"):
                _copy(root, Path(word).resolve(), Path(word))
    busybox = shutil.which("busybox")
    assert busybox is not None
    _copy(root, Path(busybox), Path("/bin/busybox"))
    for name in COMMANDS:
        (root / "bin" / name).symlink_to("busybox")
    shutil.copytree("/usr/share/dpkg", root / "usr/share/dpkg", dirs_exist_ok=True)
    for name in (
        *("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc/ssh"),
        *("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"),
        *("etc/apt/apt.conf.d", "etc/apt/preferences.d"),
        *("usr/sbin", "root", "var/tmp", "mnt", "etc/dpkg", "usr/share/keyrings"),
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "usr/sbin/ldconfig").symlink_to("/bin/true")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n_apt:x:42:65534::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/shadow").write_text("root:*:99999:0:99999:7:::\n")
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    for where, directories, files in os.walk(root):
        for name in (*directories, *files):
            os.utime(Path(where, name), (1_600_000_000,) * 2, follow_symlinks=False)
    os.utime(root, (1_600_000_000,) * 2)


def _copy(root: Path, source: Path, place: Path) -> None:
    target = root / place.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def make_repository(directory: Path) -> None:
    """``hello``, whose postinst writes down when and as which process it ran, needs ``words``."""
    directory.mkdir()
    postinst = (
        "#!/bin/sh\nset -e\n"
        "date +%s.%N >/var/log/hello.log\necho $$ $(date +%s%N) >/var/cache/debconf/templates-old\n"
        "echo 0123 >/etc/machine-id\necho key >/etc/ssh/ssh_host_rsa_key\n"
        "/usr/sbin/policy-rc.d || echo policy $? >/etc/policy\n"
    )
    _package(directory, "words", "1.0", "", {"usr/share/words": "hello\n"})
    hello = {"usr/bin/hello": "#!/bin/sh\ncat /usr/share/words\n", "etc/ssh/sshd_config": "\n"}
    hello["var/cache/debconf/config.dat"] = ""
    _package(directory, "hello", "2:1.5-1", "Depends: words\n", hello, postinst)
    index = ""
    for path in sorted(directory.glob("*.deb")):
        control = subprocess.run(
            ["dpkg-deb", "-f", path], capture_output=True, text=True, check=True
        ).stdout.strip()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        index += f"{control}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\n"
        index += f"SHA256: {digest}\n\n"
    (directory / "Packages").write_text(index)


def _package(
    directory: Path, name: str, version: str, extra: str, files: dict[str, str], postinst: str = ""
) -> None:
    tree = directory / f"{name}.tree"
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        (tree / path).chmod(0o755 if "/bin/" in path else 0o644)
    control = tree / "DEBIAN"
    control.mkdir(parents=True)
    (control / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nInstalled-Size: 7\n"
        f"Maintainer: Nobody <nobody@example.org>\n{extra}Description: for a test\n"
    )
    if postinst:
        (control / "postinst").write_text(postinst)
        (control / "postinst").chmod(0o755)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, directory],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(NEWER)},
    )
    shutil.rmtree(tree)
