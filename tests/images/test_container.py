"""A container image with a platform's kernel and init: what is added, and what is not touched."""

import io
import stat
from typing import Any

import pytest

from smallstack.images.container import Platform, describe_container, from_container_vm
from smallstack.images.errors import OciError
from smallstack.images.oci_archive import find_files
from smallstack.images.oci_layout import Choice, Execution, find_image
from smallstack.images.tar import from_tar
from smallstack.proto.filesystem import FileSystem
from tests.images.containers import Thing, directory, image_archive, layer, symlink
from tests.images.trees import MemorySink, describe

PLATFORM = (
    Thing("boot/vmlinuz-6", b"kernel"),
    Thing("boot/config-6", b"config"),
    Thing("sbin/init", b"init", mode=0o755),
    Thing("etc/smallstack/platform", b"1"),
)
FILES = {
    b"/etc/passwd": b"root:x:0:0::/root:/bin/sh\napp:x:70:71::/srv:/x\n77:x:9:9::/n:/x\nbad line\n",
    b"/etc/group": b"root:x:0:\nfirst:x:71:app\nmore:x:80:x,app\nbad:x:nan:app\n",
}


def platform(*things: Thing) -> Platform:
    return Platform("base", from_tar(io.BytesIO(layer(*things)), MemorySink()))


def make(
    *things: Thing,
    base: tuple[Thing, ...] = PLATFORM,
    sink: MemorySink | None = None,
    **config: Any,
) -> FileSystem:
    files = find_files(io.BytesIO(image_archive(layer(*things), config={"Cmd": ["/a"], **config})))
    assert files is not None
    image = find_image(files, Choice())
    return from_container_vm(image, platform(*base), sink or MemorySink())


def test_an_empty_image_gets_all_that_a_machine_needs() -> None:
    sink = MemorySink()
    found = describe(make(sink=sink, WorkingDir="/srv/./data/"))
    assert {path.decode(): facts[0] for path, facts in found.items()} == {
        "/": "0o40755",
        "/.smallstack": "0o40755",
        "/.smallstack/container": "0o100644",
        "/.smallstack/init": "0o100755",
        "/boot": "0o40755",
        "/boot/config-6": "0o100644",
        "/boot/vmlinuz-6": "0o100644",
        "/dev": "0o40755",
        "/etc": "0o40755",
        "/etc/hosts": "0o100644",
        "/etc/resolv.conf": "0o120777",
        "/proc": "0o40555",
        "/run": "0o40755",
        "/srv": "0o40755",
        "/srv/data": "0o40755",
        "/sys": "0o40555",
        "/tmp": "0o41777",
    }
    assert b"kernel" not in sink.contents.values()
    assert b"init" not in sink.contents.values()


def test_nothing_of_the_image_is_touched() -> None:
    own = (
        directory("tmp", mode=0o700),
        Thing("etc/hosts", b"own"),
        Thing("etc/resolv.conf", b"own"),
        Thing("sbin/init", b"own", mode=0o700),
        symlink("run", "elsewhere"),
        Thing("boot/config-6", b"own"),
        symlink("srv", "/nowhere"),
    )
    alone = describe(from_tar(io.BytesIO(layer(*own)), MemorySink()))
    made = describe(make(*own, WorkingDir="/srv/data"))
    assert {path: facts for path, facts in made.items() if path in alone} == alone
    assert (make(*own).inodes, make(*own).blob) == (make(*own).inodes, make(*own).blob)


@pytest.mark.parametrize(
    ("things", "base", "config", "message"),
    [
        ([Thing(".smallstack/x")], PLATFORM, {}, "it has /.smallstack"),
        ([Thing("boot/vmlinuz-5")], PLATFORM, {}, "a kernel of its own in /boot"),
        ([Thing("boot")], PLATFORM, {}, "a kernel of its own in /boot"),
        ([], PLATFORM[:3], {}, "base is no platform for containers: it lacks /etc/smallstack/pl"),
        ([], PLATFORM[1:], {}, "base has not one /boot/vmlinuz-*"),
        ([], PLATFORM, {"WorkingDir": "srv"}, "its WorkingDir 'srv' is not absolute"),
        ([], PLATFORM, {"WorkingDir": "/a/../../b"}, "is no plain path"),
        ([], PLATFORM, {"WorkingDir": "/" + "n" * 300}, "is no plain path"),
        ([], PLATFORM, {"Cmd": []}, "it names no program"),
        ([], PLATFORM, {"Cmd": None, "Entrypoint": [""]}, "it names no program"),
        ([], PLATFORM, {"Cmd": ["a\0b"]}, "a zero byte"),
        ([], PLATFORM, {"Cmd": ["a"] * 257}, "it has 257 arguments; 256 are the most"),
        ([], PLATFORM, {"Env": ["A=b"] * 511}, "it has 513 variables in its Env; 512 are the"),
        ([], PLATFORM, {"Env": ["A"]}, "an entry that is not NAME=VALUE"),
        ([], PLATFORM, {"Labels": {"a": "b" * 65536}}, "65535 are the most"),
        ([], PLATFORM, {"User": "nobody"}, "its User 'nobody' is not in its /etc/passwd"),
        ([], PLATFORM, {"User": "0:crew"}, "its group 'crew' is not in its /etc/group"),
        ([], PLATFORM, {"User": "4294967295"}, "its User '4294967295' is not in"),
        ([], PLATFORM, {"StopSignal": "SIGNOTHING"}, "its StopSignal 'SIGNOTHING' is not known"),
        ([], PLATFORM, {"StopSignal": "65"}, "its StopSignal '65' is not known"),
    ],
)
def test_what_makes_no_vm(
    things: list[Thing], base: tuple[Thing, ...], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(OciError) as caught:
        make(*things, base=base, **config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "user=0 group=0 HOME=/root"),
        ("root", "user=0 group=0 HOME=/root"),
        ("app", "user=70 group=71 more-group=80 HOME=/srv"),
        ("70", "user=70 group=71 more-group=80 HOME=/srv"),
        ("app:root", "user=70 group=0 HOME=/srv"),
        ("app:12", "user=70 group=12 HOME=/srv"),
        ("1234", "user=1234 group=0 HOME=/"),
        ("1234:more", "user=1234 group=80 HOME=/"),
        ("77", "user=9 group=9 HOME=/n"),
    ],
)
def test_users_are_those_of_the_container(user: str, expected: str) -> None:
    described = describe_container(Execution(user=user, cmd=["a"]), FILES, "stop")
    words = [word.removeprefix("environment=") for word in described.decode().split("\0")]
    told = [word for word in words if word.startswith(("user=", "group=", "more-group=", "HOME="))]
    assert " ".join(told) == expected


@pytest.mark.parametrize(
    ("name", "number"),
    [(None, 15), ("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37)],
)
def test_signals(name: str | None, number: int) -> None:
    described = describe_container(Execution(stop_signal=name, cmd=["a"]), {}, "stop")
    assert b"\0signal=%d\0" % number in described


def test_passwd_is_read_from_the_layers() -> None:
    sink = MemorySink()
    account = b"app:x:5:6::/:/\n"
    tree = make(Thing("etc/passwd", account), User="app", sink=sink)
    index = tree.lookup(b"/.smallstack/container")
    assert index is not None
    assert b"\0user=5\0group=6\0" in sink.contents[tree.inode(index).hash]
    assert account in sink.contents.values()
    assert stat.S_ISREG(tree.inode(index).mode)
    with pytest.raises(OciError, match="is not in its /etc/passwd"):
        make(symlink("etc/passwd", "/etc/other"), Thing("etc/other", account), User="app")
