"""Container images: their layers against a slow reference, every known form, every hostile one."""

import gzip
import io
import json
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.images import oci_archive, oci_layers, oci_layout, tar
from smallstack.images.build import Report
from smallstack.images.errors import OciError, SourceError, TarError
from smallstack.images.filter import PathFilter
from smallstack.images.oci import from_container
from smallstack.images.oci_archive import ArchiveFiles, archive, find_files
from smallstack.images.oci_layout import Choice, find_image
from smallstack.images.source import ContainerChoice, from_source
from smallstack.proto.filesystem import FileSystem
from tests.images.containers import (
    MEDIA,
    OCI,
    Layout,
    Thing,
    archive_of,
    digest,
    directory,
    docker_save,
    image_archive,
    layer,
    link,
    packed,
    symlink,
)
from tests.images.trees import MemorySink, describe


def read(data: bytes, sink: MemorySink | None = None, choice: Choice | None = None) -> FileSystem:
    files = find_files(io.BytesIO(data))
    assert files is not None
    return from_container(find_image(files, choice or Choice()), sink or MemorySink())


def read_layers(*layers: bytes) -> FileSystem:
    return read(image_archive(*layers, form=""))


def refused(data: bytes, choice: Choice | None = None) -> str:
    with pytest.raises((OciError, TarError)) as caught:
        read(data, choice=choice)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(tree: FileSystem, sink: MemorySink) -> dict[str, Any]:
    """Path to content, None for a directory, "→ target" for a symlink."""
    found: dict[str, Any] = {}
    for path, index in tree.walk():
        inode = tree.inode(index)
        kind = stat.S_IFMT(inode.mode)
        found[path.decode()] = (
            None
            if kind == stat.S_IFDIR
            else "→ " + inode.target.decode()
            if kind == stat.S_IFLNK
            else sink.contents.get(inode.hash, b"")
        )
    return found


# Layers, one over the other.


class RefusedError(Exception):
    pass


def reference(layers: list[list[Thing]]) -> dict[str, tuple[str, int]]:
    """Path to (what it is, the number that makes it one inode), slowly and on a flat dict."""
    tree: dict[str, tuple[str, int]] = {"/": ("directory", -1)}
    number = 0
    for things in layers:
        words = [one for one in things if posixpath.basename(one.name).startswith(".wh.")]
        for word in words:
            above, name = posixpath.split("/" + word.name)
            if tree.get(above, ("",))[0] != "directory":
                continue
            hidden = above.rstrip("/") + "/" + name[4:]
            prefix = above.rstrip("/") + "/" if name == ".wh..wh..opq" else hidden + "/"
            for path in list(tree):
                if path != "/" and (path.startswith(prefix) or path == hidden):
                    del tree[path]
        files, directories = set(), set()
        for one in things:
            number += 1
            if one in words:
                continue
            path = "/" + one.name
            if path in files:
                raise RefusedError
            above = posixpath.dirname(path)
            ancestors = []
            while above != "/":
                ancestors.append(above)
                above = posixpath.dirname(above)
            for ancestor in reversed(ancestors):
                if tree.setdefault(ancestor, ("directory", -number))[0] != "directory":
                    raise RefusedError
                directories.add(ancestor)
            what = ("directory" if one.kind == tarfile.DIRTYPE else one.data.hex(), number)
            if one.kind == tarfile.LNKTYPE:
                what = tree.get("/" + one.target, ("directory", 0))
                if what[0] == "directory":
                    raise RefusedError
            if one.kind == tarfile.DIRTYPE:
                directories.add(path)
            else:
                if path in directories:
                    raise RefusedError
                for below in list(tree):
                    if below.startswith(path + "/"):
                        del tree[below]
                files.add(path)
            tree[path] = what
    return tree


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
words = st.builds(
    lambda above, name: Thing(f"{above}/.wh.{name}" if above else f".wh.{name}"),
    st.one_of(st.just(""), names),
    st.sampled_from(["a", "b", "c", ".wh..opq"]),
)
things = st.one_of(
    st.builds(lambda name, data: Thing(name, b"%d" % data), names, st.integers(0, 9)),
    st.builds(directory, names),
    st.builds(link, names, names),
    words,
)


def possible(layers: list[list[Thing]]) -> list[list[Thing]]:
    """The layers without what the reference refuses: most of what is generated would be."""
    kept: list[list[Thing]] = []
    for things in layers:
        kept.append([])
        for one in things:
            kept[-1].append(one)
            try:
                reference(kept)
            except RefusedError:
                kept[-1].pop()
    return kept


@settings(max_examples=250, deadline=None)
@given(st.lists(st.lists(things, max_size=8), min_size=2, max_size=4), st.booleans())
def test_layers_come_to_what_the_slow_reference_says(
    layers: list[list[Thing]], as_generated: bool
) -> None:
    layers = layers if as_generated else possible(layers)
    made = [layer(*one) for one in layers]
    try:
        expected = reference(layers)
    except RefusedError:
        refused(image_archive(*made, form=""))
        return
    sink = MemorySink()
    tree = read(image_archive(*made, form=""), sink)
    found = {}
    for path, index in tree.walk():
        inode = tree.inode(index)
        is_directory = stat.S_ISDIR(inode.mode)
        content = sink.contents.get(inode.hash, b"").hex()
        found[path.decode()] = ("directory" if is_directory else content, index)
    assert {path: what for path, (what, _) in found.items()} == {
        path: what for path, (what, _) in expected.items()
    }
    files = [path for path, (what, _) in found.items() if what != "directory"]
    for one in files:
        for other in files:
            assert (found[one][1] == found[other][1]) == (expected[one][1] == expected[other][1])


def test_what_a_layer_keeps_of_each_kind() -> None:
    below = layer(
        directory("etc", uid=5, gid=6, mtime=77, pax={"SCHILY.xattr.user.note": "a value"}),
        Thing("etc/passwd", b"root", mode=0o4750, uid=70000, pax={"mtime": "12.000000034"}),
        Thing("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        Thing("pipe", kind=tarfile.FIFOTYPE),
        symlink("sh", "/bin/busybox"),
    )
    above = layer(directory("./", mode=0o700, mtime=5), directory("etc", uid=9, mtime=78))
    found = describe(read_layers(below, above))
    assert found[b"/"][0] == "0o40700"
    assert found[b"/etc"][:3] == ("0o40755", 9, 0)
    assert (found[b"/etc"][7], found[b"/etc"][8]) == (78 * 10**9, ())
    assert found[b"/etc/passwd"][:3] == ("0o104750", 70000, 0)
    assert found[b"/etc/passwd"][7] == 12 * 10**9 + 34
    assert (found[b"/null"][0], found[b"/null"][6]) == ("0o20666", os.makedev(1, 3))
    assert found[b"/pipe"][0] == "0o10644"
    assert found[b"/sh"][5] == b"/bin/busybox"
    assert describe(read_layers(below))[b"/etc"][8] == ((b"user.note", b"a value"),)


def test_what_is_hidden_does_not_reach_the_sink() -> None:
    sink = MemorySink()
    below = layer(Thing("a", b"old a"), Thing("d/b", b"old b"), Thing("keep", b"kept"))
    above = layer(Thing("a", b"new a"), Thing("d/.wh.b"))
    read(image_archive(below, above), sink)
    assert sorted(sink.contents.values()) == [b"kept", b"new a"]


def test_a_hard_link_keeps_what_its_name_has_lost() -> None:
    sink = MemorySink()
    layers = (layer(Thing("a", b"one")), layer(link("b", "a")), layer(Thing(".wh.a")))
    tree = read(image_archive(*layers), sink)
    assert shown(tree, sink) == {"/": None, "/b": b"one"}


def test_symlinks_of_lower_layers_are_not_followed() -> None:
    """A name behind one leads nowhere, and a directory takes its place."""
    below = layer(symlink("lib", "/etc"), directory("etc"), Thing("etc/passwd", b"ours"))
    assert "something below 'lib', which is no directory" in refused(
        image_archive(below, layer(Thing("lib/passwd", b"theirs")))
    )
    sink = MemorySink()
    above = layer(directory("lib"), Thing("lib/passwd", b"theirs"), Thing("x/.wh.y"))
    tree = read(image_archive(below, above, layer(Thing("lib/.wh.passwd"))), sink)
    assert shown(tree, sink) == {"/": None, "/etc": None, "/etc/passwd": b"ours", "/lib": None}
    assert "/etc/passwd" in shown(
        read(image_archive(below, layer(Thing("lib/.wh.passwd"))), sink), sink
    )


def test_a_filter_and_the_report() -> None:
    sink, report = MemorySink(), Report()
    data = image_archive(layer(Thing("a/b", b"b"), Thing("c", b"c"), Thing(".subd/x", b"x")))
    files = find_files(io.BytesIO(data))
    assert files is not None
    image = find_image(files, Choice())
    tree = from_container(image, sink, PathFilter(["/a$"]), report)
    assert shown(tree, sink) == {"/": None, "/c": b"c"}
    assert (report.files, report.file_bytes) == (1, 1)


# Forms.

LAYERS = (
    layer(directory("bin"), Thing("bin/app", os.urandom(300_000)), Thing("old", b"old")),
    layer(Thing(".wh.old"), Thing("new", b"new" * 1000)),
    layer(Thing("last", b"last")),
)
EXPECTED = describe(read_layers(*LAYERS))


def from_bytes(data: bytes, path: Path, choice: Choice | None = None) -> FileSystem:
    path.write_bytes(data)
    container = ContainerChoice(choice or Choice())
    return from_source(path, MemorySink(), None, Report(), container)


def every_form() -> dict[str, bytes]:
    plain = image_archive(*LAYERS, form="")
    layout = Layout()
    inner = layout.image(LAYERS, form="zstd")
    nested = layout.document({"manifests": [inner]}, f"{OCI}.index.v1+json")
    layout.add(nested, platform={"architecture": "amd64", "os": "linux"})
    both = {**layout.all_files(), "manifest.json": b"not looked at", "repositories": b"{}"}
    with_top = layer(directory("./"), *(Thing(f"./{n}", d) for n, d in layout.all_files().items()))
    return {
        "plain": plain,
        "gzip layers": image_archive(*LAYERS, form="gzip"),
        "zstd layers": image_archive(*LAYERS, form="zstd"),
        "compressed": gzip.compress(plain, 1),
        "compressed twice over": packed(image_archive(*LAYERS, form="gzip"), "zstd"),
        "nested index": layout.archive(),
        "docker's too": archive_of(both),
        "names with ./": with_top,
        "docker save": docker_save(LAYERS),
        "docker save, compressed": gzip.compress(docker_save(LAYERS), 1),
    }


@pytest.mark.parametrize("name", list(every_form()))
def test_every_form_gives_the_same_tree(tmp_path: Path, name: str) -> None:
    data = every_form()[name]
    trees = [from_bytes(data, tmp_path / "image.tar") for _ in range(2)]
    assert describe(trees[0]) == EXPECTED
    assert (trees[0].inodes, trees[0].blob) == (trees[1].inodes, trees[1].blob)


def test_a_directory_and_a_pipe(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(layout.image(LAYERS)).write(tmp_path / "layout")
    tree = from_source(tmp_path / "layout", MemorySink(), None, Report(), ContainerChoice())
    assert describe(tree) == EXPECTED
    ours, theirs = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(ours, 0)
        os.set_blocking(theirs, False)
        small = image_archive(layer(Thing("a", b"a")))
        assert os.write(theirs, small) == len(small)
        os.close(theirs)
        tree = from_source(Path("-"), MemorySink(), None, Report(), ContainerChoice())
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(ours)
    assert [path for path, _ in tree.walk()] == [b"/", b"/a"]


def test_the_same_layer_twice_in_a_docker_archive() -> None:
    """It is a symlink to the first one there."""
    again = [LAYERS[0], LAYERS[1], LAYERS[0]]
    assert describe(read(docker_save(again))) == describe(read_layers(*again))


@pytest.mark.parametrize(
    "things",
    [
        [Thing("etc/passwd", b"x")],
        [directory("./"), directory("./blobs"), Thing("./blobs/mine", b"x")],
        [Thing("manifest.jsonx", b"[]")],
        [directory("blobs")],
        [Thing("index.json", b"{}"), Thing("home/index.json", b"{}")],
    ],
)
@pytest.mark.parametrize("form", ["", "gzip"])
def test_the_archive_of_a_root_stays_one(tmp_path: Path, things: list[Thing], form: str) -> None:
    tree = from_bytes(packed(layer(*things), form), tmp_path / "root.tar")
    assert {"/" + one.name.removeprefix("./").rstrip("/") for one in things} <= {
        path.decode() for path, _ in tree.walk()
    }
    with pytest.raises(SourceError, match="it is no container image"):
        from_bytes(packed(layer(*things), form), tmp_path / "root.tar", Choice("a"))


def test_which_image_of_several() -> None:
    layout = Layout()
    layout.add(layout.image([layer(Thing("one", b"1"))]), "one:latest")
    layout.add(layout.image([layer(Thing("two", b"2"))]), "two:latest")
    arm = layout.image([layer(Thing("arm", b"3"))], architecture="arm64")
    layout.add(arm, "one:latest", platform={"architecture": "arm64", "os": "linux"})
    empty = layout.document({}, "application/vnd.oci.empty.v1+json")
    signature = {"schemaVersion": 2, "config": empty, "layers": []}
    layout.add(layout.document(signature, f"{OCI}.manifest.v1+json"), "one:latest")
    layout.add(layout.blob(b"anything", "text/plain"), "one:latest")
    data = layout.archive()
    assert "2 images for linux/amd64: name one of 'one:latest', 'two:latest' by --oci-tag" in (
        refused(data)
    )
    for choice, name in (
        (Choice("one:latest"), b"/one"),
        (Choice("two:latest"), b"/two"),
        (Choice("", "arm64"), b"/arm"),
    ):
        assert read(data, choice=choice).lookup(name) is not None
    assert "no image of the tag 'three': it has 'one:latest', 'two:latest'" in (
        refused(data, Choice("three"))
    )
    assert "no image for linux/riscv64: it has linux/amd64, linux/arm64" in (
        refused(data, Choice("", "riscv64"))
    )
    saved = docker_save(LAYERS, tag="app:1")
    assert describe(read(saved, choice=Choice("app:1"))) == EXPECTED
    assert "it has 'app:1'" in refused(saved, Choice("app:2"))
    assert "it has linux/amd64" in refused(saved, Choice("", "arm64"))


# Damaged and hostile ones.


def test_a_changed_byte_anywhere_never_gives_another_tree() -> None:
    """A byte of every part of every form, each with one bit turned."""
    layers = (layer(Thing("a", b"content a")), layer(Thing("b", b"content b"), Thing("c", b"")))
    expected = describe(read_layers(*layers))
    for data in (
        image_archive(*layers, form=""),
        image_archive(*layers, form="zstd"),
        docker_save(layers),
    ):
        for at in range(0, len(data), 13):
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            try:
                files = find_files(io.BytesIO(bytes(changed)))
                if files is None:  # a name of the outer archive: a root, which the user then sees
                    continue
                tree = from_container(find_image(files, Choice()), MemorySink())
            except (OciError, TarError) as error:
                assert "\n" not in str(error)
            else:
                assert describe(tree) == expected, at


def test_an_archive_cut_anywhere_is_refused() -> None:
    layers = (layer(Thing("a", b"content a")), layer(Thing("b", b"content b")))
    for data in (image_archive(*layers), docker_save(layers)):
        for end in range(0, len(data) - 20 * 512, 509):
            with pytest.raises((OciError, TarError)):
                read(data[:end])


def one_layer(*things: Thing) -> bytes:
    return image_archive(layer(Thing("file", b"f"), directory("dir")), layer(*things), form="")


@pytest.mark.parametrize(
    ("things", "message"),
    [
        ([Thing("../a")], "layer 2: it has the name '../a', which leads out of it"),
        ([Thing("a/../../b")], "leads out of it"),
        ([Thing("/etc/passwd")], "the absolute name '/etc/passwd'"),
        ([link("a", "../../etc/shadow")], "leads out of it"),
        ([link("a", "/etc/shadow")], "the absolute name"),
        ([link("a", "dir")], "'a' is a hard link to the directory 'dir'"),
        ([link("a", "b")], "'a' is a hard link to 'b', which does not stand before it"),
        ([link("a", "a")], "does not stand before it"),
        ([link("a", "b"), link("b", "a")], "does not stand before it"),
        ([Thing("a"), Thing("a")], "it has 'a' twice"),
        ([Thing("a"), Thing("./a")], "it has 'a' twice"),
        ([Thing("a"), directory("a")], "it has 'a' twice"),
        ([directory("a"), Thing("a")], "'a' twice, once as a directory"),
        ([Thing("a/b/c"), Thing("a")], "'a' twice, once as a directory"),
        ([Thing("a"), Thing("a/b")], "something below 'a', which is no directory"),
        ([Thing("file/b")], "something below 'file', which is no directory"),
        ([symlink("a", "."), Thing("a/a")], "something below 'a', which is no directory"),
        ([Thing("n" * 300)], "a name of 300 bytes"),
        ([Thing("d/" * 2100 + "e")], "a path of 4201 bytes"),
        ([Thing(".")], "its top is no directory"),
        ([Thing(".wh.")], "hides nothing that can be"),
        ([Thing("dir/.wh..")], "hides nothing that can be"),
        ([Thing("dir/.wh...")], "hides nothing that can be"),
        ([Thing(".wh.dir/a")], "below a mark that hides something"),
        ([symlink("a", "")], "symlink target"),
    ],
)
def test_hostile_members(things: list[Thing], message: str) -> None:
    assert message in refused(one_layer(*things))


def test_what_aufs_left_in_layers_is_passed_over() -> None:
    tree = read(one_layer(directory(".wh..wh.plnk"), Thing(".wh..wh.plnk/1.2"), Thing(".wh..wh.x")))
    assert [path for path, _ in tree.walk()] == [b"/", b"/dir", b"/file"]


def test_an_absurd_size() -> None:
    header = tarfile.TarInfo("huge")
    header.size = 1 << 60
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert f"layer 1: 'huge' claims to have {1 << 60} bytes" in refused(image_archive(data))
    header.size = 1 << 40
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert "ends in the middle of 'huge'" in refused(image_archive(data))


def test_a_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = layer(Thing("zeros", bytes(20 << 20)))
    for form in ("gzip", "zstd"):
        files = find_files(io.BytesIO(image_archive(bomb, bomb, form=form)))
        assert files is not None
        image = find_image(files, Choice())
        assert from_container(image, MemorySink(), most=41 << 20)
        with pytest.raises(OciError, match="layers unpack to more than 31457280 bytes"):
            from_container(image, MemorySink(), most=30 << 20)
    monkeypatch.setattr(oci_archive, "MAX_SPOOLED", 1 << 20)
    with (
        pytest.raises(OciError, match="GiB uncompressed"),
        archive(io.BytesIO(gzip.compress(image_archive(bomb, form="")))),
    ):
        pass


def test_many_deep_paths_are_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each names some 2,000 directories, and all of those again by their whole paths."""
    monkeypatch.setattr(tar, "MAX_PATHS", 8 << 20)
    deep = [Thing(f"{number}/" + "a/" * 2000 + "file") for number in range(3)]
    assert "its paths take more than 8 MiB" in refused(image_archive(layer(*deep)))
    assert len(read(image_archive(layer(deep[0])))) == 2003


def test_numbers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_layers, "MAX_ENTRIES", 5)
    three = layer(Thing("a"), Thing("b"), Thing("c"))
    assert "layer 2: with it the layers have more than 5 members" in (
        refused(image_archive(three, three))
    )
    monkeypatch.setattr(oci_layout, "MAX_LAYERS", 3)
    assert "4 layers; 3 are the most" in refused(image_archive(*[layer()] * 4))
    monkeypatch.setattr(oci_archive, "MAX_FILES", 2)
    assert "more than 2 members" in refused(image_archive(three))


def broken(change: Callable[[Layout, dict[str, Any]], object]) -> str:
    """The error for a layout of which something was changed."""
    layout = Layout()
    manifest = layout.image([layer(Thing("a", b"a"))], form="")
    change(layout, manifest)
    layout.entries = layout.entries or [manifest]
    return refused(layout.archive())


def edited(layout: Layout, manifest: dict[str, Any], **changes: Any) -> None:
    """Put a changed manifest in place of the right one."""
    name = "blobs/" + manifest["digest"].replace(":", "/")
    body = {**json.loads(layout.files[name]), **changes}
    layout.add(layout.document(body, f"{OCI}.manifest.v1+json"))


def first_layer(layout: Layout, manifest: dict[str, Any]) -> dict[str, Any]:
    name = "blobs/" + manifest["digest"].replace(":", "/")
    found: dict[str, Any] = json.loads(layout.files[name])["layers"][0]
    return found


def config_of(layout: Layout, **changes: Any) -> dict[str, Any]:
    body = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}, **changes}
    return layout.document(body, f"{OCI}.config.v1+json")


HOSTILE: dict[str, tuple[Callable[[Layout, dict[str, Any]], object], str]] = {
    "blob missing": (
        lambda layout, m: edited(
            layout, m, layers=[{**first_layer(layout, m), "digest": "sha256:" + "0" * 64}]
        ),
        "it lacks the file 'blobs/sha256/0000",
    ),
    "size too small": (
        lambda layout, m: edited(layout, m, layers=[{**first_layer(layout, m), "size": 10239}]),
        "layer 1",
    ),
    "size too large": (
        lambda layout, m: edited(layout, m, layers=[{**first_layer(layout, m), "size": 10241}]),
        "layer 1 does not have the 10241 bytes that are named",
    ),
    "size absurd": (
        lambda layout, m: edited(layout, m, layers=[{**first_layer(layout, m), "size": 1 << 70}]),
        "is not as it should be",
    ),
    "size negative": (
        lambda layout, m: edited(layout, m, layers=[{**first_layer(layout, m), "size": -1}]),
        "is not as it should be",
    ),
    "digest leads elsewhere": (
        lambda layout, m: edited(
            layout, m, layers=[{**first_layer(layout, m), "digest": "sha256:../../../etc/passwd"}]
        ),
        "is no SHA-256 or SHA-512 digest",
    ),
    "no layer": (
        lambda layout, m: edited(layout, m, layers=[{**first_layer(layout, m), "mediaType": "x"}]),
        "layer 1 is of the type 'x', which is no file-system layer",
    ),
    "layers and diff_ids": (
        lambda layout, m: edited(layout, m, layers=[]),
        "it has 0 layers, but digests of 1",
    ),
    "another diff_id": (
        lambda layout, m: edited(
            layout,
            m,
            config=config_of(layout, rootfs={"diff_ids": [digest(b"another")]}),
        ),
        "layer 1, unpacked, is damaged",
    ),
    "diff_id no digest": (
        lambda layout, m: edited(layout, m, config=config_of(layout, rootfs={"diff_ids": ["x"]})),
        "'x' is no SHA-256",
    ),
    "no rootfs": (
        lambda layout, m: edited(layout, m, config=layout.document({}, f"{OCI}.config.v1+json")),
        "its configuration is not as it should be",
    ),
    "manifest no JSON": (
        lambda layout, m: layout.add(layout.blob(b"{", f"{OCI}.manifest.v1+json")),
        "is not as it should be",
    ),
    "deep JSON": (
        lambda layout, m: (
            layout.add(layout.blob(b'{"layers":' + b"[" * 100_000, f"{OCI}.manifest.v1+json"))
            and None
        ),
        "is not as it should be",
    ),
    "huge document": (
        lambda layout, m: (
            layout.add(layout.blob(b" " * ((4 << 20) + 1), f"{OCI}.manifest.v1+json")) and None
        ),
        "has 4194305 bytes; 4194304 are the most",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_documents(name: str) -> None:
    change, message = HOSTILE[name]
    assert message in broken(change)


def test_a_changed_blob_under_its_old_name() -> None:
    layout = Layout()
    layout.add(layout.image([layer(Thing("a", b"a"))], form=""))
    for name in [name for name in layout.files if name.startswith("blobs/")]:
        kept = layout.files[name]
        layout.files[name] = kept[:-1] + bytes([kept[-1] ^ 1])
        assert "damaged: it has another digest" in refused(layout.archive())
        layout.files[name] = kept + b"\0"
        assert "bytes" in refused(layout.archive())
        layout.files[name] = kept


def test_indexes_in_indexes_end() -> None:
    """A digest cannot hold itself, so a loop is a deep nesting or a wrong digest."""
    layout = Layout()
    inner = layout.image([layer()])
    for _ in range(6):
        inner = layout.document({"manifests": [inner]}, f"{OCI}.index.v1+json")
    assert "nested more than 4 deep" in refused(layout.add(inner).archive())
    layout = Layout()
    itself = digest(b"itself")
    one = {"mediaType": f"{OCI}.index.v1+json", "digest": itself, "size": 300}
    body = json.dumps({"manifests": [one]}).encode().ljust(300)
    layout.files["blobs/" + itself.replace(":", "/")] = body
    layout.entries = [one]
    assert "damaged" in refused(layout.archive())
    layout = Layout()
    wide = layout.document({"manifests": [layout.image([layer()])] * 600}, f"{OCI}.index.v1+json")
    layout.entries = [wide, wide]
    assert "more than 1024 manifests" in refused(layout.archive())


def test_hostile_outer_archives() -> None:
    layout = Layout()
    files = layout.add(layout.image([layer()])).all_files()
    assert "it has 'index.json' twice" in refused(archive_of(files, Thing("index.json", b"{}")))
    files.pop("index.json")
    for target in ("oci-layout/../index.json", "../../etc/passwd", "index.json"):
        assert "neither index.json nor manifest.json" in (
            refused(archive_of(files, symlink("index.json", target)))
        )
    saved = docker_save([layer(Thing("a", b"a"))])
    found = find_files(io.BytesIO(saved))
    assert isinstance(found, ArchiveFiles)
    for config in ("../../../etc/passwd", "/etc/passwd", "manifest.json", "none.json"):
        body: list[dict[str, object]] = [{"Config": config, "Layers": []}]
        refused(archive_of({"manifest.json": json.dumps(body).encode()}))


def test_a_directory_layout_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"[]")
    layout = Layout()
    layout.add(layout.image([layer()])).write(tmp_path / "layout")
    blob = next((tmp_path / "layout" / "blobs" / "sha256").iterdir())
    blob.unlink()
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(OciError, match="it lacks the file"):
        from_source(tmp_path / "layout", MemorySink(), None, Report(), ContainerChoice())


def test_media_types_of_docker() -> None:
    layout = Layout()
    manifest = layout.image([layer(Thing("a", b"a"))])
    one = {**first_layer(layout, manifest)}
    one["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert MEDIA["gzip"] != one["mediaType"]
    edited(layout, manifest, layers=[one])
    assert read(layout.archive()).lookup(b"/a") is not None
