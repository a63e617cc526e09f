import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from smallstack.images import tar
from smallstack.images.build import Report, from_directory
from smallstack.images.errors import TarError
from smallstack.images.filter import PathFilter
from smallstack.images.posix_acl import parse_acl
from smallstack.images.tar import from_tar
from smallstack.proto.filesystem import FileSystem
from tests.images.trees import ACL, MemorySink, describe, make_tree


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as made:  # type: ignore[call-overload]
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = target
    return made


def read(data: bytes) -> FileSystem:
    return from_tar(io.BytesIO(data), MemorySink())


def refused(data: bytes) -> str:
    with pytest.raises(TarError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_stored(facts: tuple[object, ...], seconds: bool) -> tuple[object, ...]:
    mtime = facts[7]
    assert isinstance(mtime, int)
    return (*facts[:7], mtime // 10**9 if seconds else mtime, *facts[8:])


@pytest.mark.root
@pytest.mark.parametrize("form", ["gnu", "posix", "ustar"])
def test_an_archive_gives_the_tree_that_the_directory_gives(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    make_tree(root, special=form != "ustar")
    if form == "ustar":
        (root / os.fsdecode(b"na\xffme\n")).unlink()
        (root / "long").unlink()
        os.removexattr(root / "etc/passwd", "user.note")
        os.removexattr(root / "etc", "user.note")
        subprocess.run(["rm", "-r", root / ("d" * 20)], check=True)
    extra = ["--xattrs", "--xattrs-include=*", "--acls"] if form == "posix" else []
    made = tmp_path / "root.tar"
    subprocess.run(
        ["tar", f"--format={form}", "--numeric-owner", *extra, "-C", root, "-cf", made, "."],
        check=True,
    )
    sink, report = MemorySink(), Report()
    with made.open("rb") as file:
        found = describe(from_tar(file, sink, report=report))
    expected = describe(from_directory(root, MemorySink()))
    if not extra:
        expected = {path: (*facts[:8], (), facts[9]) for path, facts in expected.items()}
    assert {p: as_stored(f, not extra) for p, f in found.items()} == {
        p: as_stored(f, not extra) for p, f in expected.items()
    }
    assert report.files == len(
        {f[9] for f in found.values() if f[0].startswith("0o10") and len(f[0]) == 8}
    )
    assert set(sink.contents) == {facts[4] for facts in expected.values() if facts[4]}


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "plain": bytes,
}


@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_compressed_archives(name: str) -> None:
    data = archive((info("a"), os.urandom(700_000)), (info("b"), b"B" * 3_000_000))
    packed = COMPRESSORS[name](data)
    tree = read(packed)
    assert describe(read(data)) == describe(tree)
    if name != "plain":
        half = len(packed) // 2
        assert describe(read(COMPRESSORS[name](data[:5000]) + COMPRESSORS[name](data[5000:]))) == (
            describe(tree)
        )
        refused(packed[:half])
        flipped = bytearray(packed)
        flipped[half] ^= 0xFF
        refused(bytes(flipped))


def test_zeros_that_expand_without_end_take_no_memory() -> None:
    member = info("zeros")
    member.size = 1 << 40
    data = member.tobuf() + bytes(64 << 20)
    assert "ends in the middle" in refused(gzip.compress(data, 1))


def test_xz_that_wants_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    packed = lzma.LZMACompressor(filters=filters)
    data = packed.compress(archive(info("a"))) + packed.flush()
    assert "xz data is damaged" in refused(data)


def test_an_archive_cut_anywhere_is_an_error() -> None:
    data = archive((info("a"), b"x" * 700), info("d/", tarfile.DIRTYPE), (info("d/b"), b"y"))
    end = data.rindex(b"y") + 512 - data.rindex(b"y") % 512
    for cut in range(0, end + 1, 64):
        refused(data[:cut])
    assert len(read(data[: end + 512])) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "the absolute name '/etc/passwd'"),
        ("../etc/passwd", "which leads out of it"),
        ("a/../../b", "which leads out of it"),
        ("a/..", "which leads out of it"),
        ("x" * 300, "a name of 300 bytes"),
        ("a/" * 2500 + "a", "a path of 5001 bytes"),
    ],
)
def test_names_that_lead_elsewhere(name: str, message: str) -> None:
    assert message in refused(archive(info(name), format=tarfile.PAX_FORMAT))
    assert message in refused(archive(info(name), format=tarfile.GNU_FORMAT))


def test_hard_links() -> None:
    link = info("b", tarfile.LNKTYPE, "./a")
    tree = read(archive((info("a"), b"1"), link))
    assert describe(tree)[b"/a"][9] == (b"/a", b"/b")
    assert tree.num_regular_inodes == 1
    for members, message in (
        ([link], "a hard link to './a', which does not stand before it"),
        ([info("a", tarfile.DIRTYPE), link], "a hard link to the directory './a'"),
        ([info("b", tarfile.LNKTYPE, "b")], "does not stand before it"),
        ([info("b", tarfile.LNKTYPE, "/a")], "the absolute name"),
        ([info("b", tarfile.LNKTYPE, "../a")], "leads out of it"),
        ([info("b", tarfile.LNKTYPE, "")], "a member without a name"),
    ):
        assert message in refused(archive(*members))


def test_what_stands_where_it_cannot() -> None:
    for members, message in (
        ([info("a"), info("./a")], "it has './a' twice"),
        ([info("a", tarfile.SYMTYPE, "/etc"), info("a/passwd")], "below 'a', which is no dir"),
        ([info("a"), info("a/b/c")], "below 'a', which is no directory"),
        ([info("a/b"), info("a")], "twice, once as a directory"),
        ([info("a"), info("a", tarfile.DIRTYPE)], "twice"),
        ([info(".")], "twice, once as a directory"),
        ([info("a", tarfile.SYMTYPE, "")], "symlink target"),
        ([info("a", tarfile.GNUTYPE_SPARSE)], "stored as a sparse file"),
        ([info("a", b"M")], "unknown type b'M'"),
    ):
        assert message in refused(archive(*members))


def test_directories_may_be_stated_late_twice_or_never() -> None:
    top, again = info(".", tarfile.DIRTYPE), info("a", tarfile.DIRTYPE)
    top.mode, top.uid, again.mode, again.mtime = 0o711, 7, 0o750, 99
    found = describe(read(archive(info("a/b/c"), again, again, top)))
    assert found[b"/"][:2] == ("0o40711", 7)
    assert found[b"/a"][0] == "0o40750"
    assert found[b"/a"][7] == 99 * 10**9
    assert found[b"/a/b"][:3] == ("0o40755", 0, 0)
    assert found[b"/a/b"][7] is None


def test_numbers_beyond_octal() -> None:
    member = info("a")
    member.uid, member.gid, member.mtime = 3_000_000, 4_000_000, -5
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        facts = describe(read(archive(member, format=form)))[b"/a"]
        assert facts[1:3] == (3_000_000, 4_000_000)
        assert facts[7] == -5 * 10**9


def raw(field: slice, value: bytes) -> bytes:
    header = bytearray(info("a").tobuf(tarfile.GNU_FORMAT))
    header[field] = value.ljust(field.stop - field.start, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (slice(124, 136), b"\xff" * 12, "negative size"),
        (slice(124, 136), b"\x80" + b"\x7f" * 11, "claims to have"),
        (slice(124, 136), b"77777777777", "ends in the middle of 'a'"),
        (slice(124, 136), b"12x", "a size that is no number"),
        (slice(108, 116), b"\x80" + b"\xff" * 7, "has the uid"),
        (slice(100, 108), b"-7", "a mode that is no number"),
        (slice(136, 148), b"\x80" + b"\x7f" * 11, "a time out of range"),
    ],
)
def test_absurd_numbers(field: slice, value: bytes, message: str) -> None:
    assert message in refused(raw(field, value))


def pax(records: bytes, name: str = "a") -> bytes:
    header = info("pax", tarfile.XHDTYPE)
    header.size = len(records)
    padding = bytes(-len(records) % 512)
    return header.tobuf() + records + padding + info(name).tobuf() + bytes(1024)


def record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def test_extended_headers() -> None:
    tree = read(
        pax(
            record("mtime", b"1.5")
            + record("SCHILY.xattr.user.a%3Db", b"v\0\n=")
            + record("SCHILY.xattr.btrfs.compression", b"zstd")
            + record(
                "SCHILY.acl.access", b"user::rwx,user:x:r-x:70001,group::r-x,mask::r-x,other::r-x"
            )
            + record("path", b"new/\xffname")
        )
    )
    facts = describe(tree)[b"/new/\xffname"]
    assert facts[7] == 1_500_000_000
    assert facts[8] == ((b"system.posix_acl_access", ACL), (b"user.a=b", b"v\0\n="))
    negative = describe(read(pax(record("mtime", b"-1.25"))))[b"/a"]
    assert negative[7] == -1_250_000_000


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"99 path=x\n", "damaged"),
        (b"path=x\n", "damaged"),
        (b"9 path=x\n\n", "damaged"),
        (b"0 =\n", "damaged"),
        (b"5 x\n\n", "damaged"),
        (record("path", b"a\0b"), "has a zero byte"),
        (record("size", b"-1"), "a size that is no number"),
        (record("size", b"9" * 30), "a size that is no number"),
        (record("uid", b"4294967295"), "has the uid 4294967295"),
        (record("mtime", b"soon"), "a time that is no number"),
        (record("mtime", b"9" * 18), "a time out of range"),
        (record("GNU.sparse.major", b"1"), "stored as a sparse file"),
        (record("SCHILY.acl.access", b"user:no such user:rwx"), "is not known here"),
        (record("SCHILY.acl.access", b"nonsense"), "no entry of an access control list"),
        (record("path", b""), "a member without a name"),
        (record("SCHILY.xattr.user." + "n" * 300, b"v"), "extended attribute"),
        (record("SCHILY.xattr.user.n", b"v" * 70_000), "extended attribute"),
    ],
)
def test_extended_headers_that_are_wrong(records: bytes, message: str) -> None:
    assert message in refused(pax(records))


def test_an_extended_header_of_absurd_size() -> None:
    header = info("pax", tarfile.XHDTYPE)
    header.size = 1 << 33
    absurd = header.tobuf(tarfile.GNU_FORMAT)
    assert "an extended header of 8589934592 bytes" in refused(absurd + bytes(4096))
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = info("pax", kind)
        data = record("path", b"b") if kind == tarfile.XHDTYPE else b"b"
        header.size = len(data)
        alone = header.tobuf() + data.ljust(512, b"\0") + bytes(1024)
        assert "belongs to nothing" in refused(alone)


def test_what_is_no_archive() -> None:
    assert "it is empty" in refused(b"")
    assert "it is no tar archive" in refused(os.urandom(2048))
    assert "it is no tar archive" in refused(b"#!/bin/sh\n" * 1000)
    data = bytearray(archive(info("a"), info("b")))
    data[512 + 100] ^= 1
    assert "a header in it is damaged" in refused(bytes(data))


def test_the_filter_applies() -> None:
    data = archive((info("a"), b"a"), (info("b/c"), b"c"), (info(".subd/x"), b"x"), info(".subd"))
    sink = MemorySink()
    tree = from_tar(io.BytesIO(data), sink, PathFilter(["/b"]))
    assert [path for path, _ in tree.walk()] == [b"/", b"/a"]
    assert list(sink.contents.values()) == [b"a"]


def test_access_control_lists() -> None:
    assert parse_acl("u::rwx\nuser:70001:r-x\ng::r-x\nm::r-x\no::r-x # all") == ACL
    assert parse_acl("user::rwx,user:70001:r-x,group::r-x,mask:r-x,other:r-x") == ACL
    assert parse_acl("user:root:rwx,group:root:r-x") == parse_acl("u:0:rwx,g:0:r-x")
    for text in (
        "user:rwx:q:1:2",
        "g:no such group:r",
        "user::rwz",
        "mask:5:rwx",
        "user:4294967295:rwx",
    ):
        with pytest.raises(ValueError, match=r"is no|are no|is not known|out of range"):
            parse_acl(text)


def test_many_deep_paths_are_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_PATHS", 8 << 20)
    deep = [info(f"{number}/" + "a/" * 2000 + "file") for number in range(3)]
    assert len(read(archive(deep[0]))) == 2003
    with pytest.raises(TarError, match="its paths take more than 8 MiB"):
        read(archive(*deep))
