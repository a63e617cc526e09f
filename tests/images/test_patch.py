"""A directory patched to an image is the image, whatever it was and wherever it was killed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch as replaced

import pytest

from smallstack.images.build import StoreSink, from_directory
from smallstack.images.diff import differences
from smallstack.images.errors import PatchError
from smallstack.images.patch import Patch, Patched
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.image import Filter, Image

pytestmark = pytest.mark.root


@pytest.fixture
def server(tmp_path: Path) -> ObjectStore:
    """All contents there are."""
    return ObjectStore(tmp_path / "server")


def make_new(root: Path) -> None:
    """What the image is."""
    (root / "etc/deep/er").mkdir(parents=True)
    (root / "etc/deep/er/file").write_bytes(b"content" * 1000)
    (root / "etc/hosts").write_bytes(b"new hosts\n")
    (root / "moved-here").write_bytes(b"moved about" * 500)
    (root / "one").write_bytes(b"several names")
    os.link(root / "one", root / "two")
    (root / "was-directory").write_bytes(b"a file now")
    (root / "was-file").mkdir()
    (root / "was-file/below").write_bytes(b"below")
    (root / "was-link").write_bytes(b"")
    (root / "link").symlink_to("etc/hosts")
    (root / "same").write_bytes(b"the same")
    (root / "program").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "program", 1, 2)
    (root / "program").chmod(0o4755)
    os.setxattr(root / "program", "user.new", b"1")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.utime(root / "etc", ns=(0, 10**18 + 1))
    os.utime(root, ns=(0, 10**18))


def make_old(root: Path) -> None:
    """What is there."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_bytes(b"old hosts\n")
    (root / "etc/gone").write_bytes(b"gone")
    (root / "moved-from").write_bytes(b"moved about" * 500)
    (root / "one").write_bytes(b"several names")
    (root / "two").write_bytes(b"several names")
    (root / "was-directory/with").mkdir(parents=True)
    (root / "was-directory/with/things").write_bytes(b"things")
    (root / "was-file").write_bytes(b"a file")
    (root / "was-link").symlink_to("/etc/passwd")
    (root / "link").symlink_to("nowhere")
    (root / "same").write_bytes(b"the same")
    (root / "program").write_bytes(b"#!/bin/sh\n")
    os.setxattr(root / "program", "user.old", b"1")
    (root / "gone/deep").mkdir(parents=True)
    (root / "gone/deep/file").write_bytes(b"x")


def image_of(root: Path, server: ObjectStore, lines: list[str] | None = None) -> Image:
    chosen = None if lines is None else Filter(filter_lines=lines)
    return Image(file_system=from_directory(root, StoreSink(server)), filter=chosen)


def run(image: Image, directory: Path, server: ObjectStore) -> tuple[Patched, set[bytes]]:
    """Patch; what was done, and the objects that had to be fetched."""
    with Patch(image, directory) as patch:
        if patch.is_done:
            return Patched(), set()
        lacking = patch.begin()
        for hash_ in lacking:
            with server.open(hash_) as file:
                patch.store.put(file)
        return patch.apply(), set(lacking)


def scan(root: Path, tmp_path: Path) -> FileSystem:
    store = ObjectStore(tmp_path / "scan")
    try:
        return from_directory(root, StoreSink(store))
    finally:
        store.close()


def same(image: Image, directory: Path, tmp_path: Path) -> bool:
    assert image.file_system is not None
    return not list(differences(scan(directory, tmp_path), image.file_system))


def test_becomes_the_image(server: ObjectStore, tmp_path: Path) -> None:
    make_new(tmp_path / "new")
    make_old(tmp_path / "old")
    kept = (tmp_path / "old/same").stat().st_ino
    image = image_of(tmp_path / "new", server, [])
    done, fetched = run(image, tmp_path / "old", server)
    assert same(image, tmp_path / "old", tmp_path)
    assert (tmp_path / "old/same").stat().st_ino == kept
    assert done.removed == 7
    names = {server.path(hash_).stat().st_size for hash_ in fetched}
    assert names == {7000, 10, 5}  # neither what was moved, nor what has other names
    done, fetched = run(image, tmp_path / "old", server)
    assert (done, fetched) == (Patched(), set())
    assert (
        subprocess.run(
            ["rsync", "-aHAXnc", "--delete", "-i", f"{tmp_path}/new/", f"{tmp_path}/old/"],
            capture_output=True,
            check=True,
        ).stdout
        == b""
    )


def test_a_sparse_image_removes_nothing(server: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"new")
    (tmp_path / "old/other").mkdir(parents=True)
    (tmp_path / "old/other/file").write_bytes(b"stays")
    image = image_of(tmp_path / "new", server)
    run(image, tmp_path / "old", server)
    assert (tmp_path / "old/file").read_bytes() == b"new"
    assert (tmp_path / "old/other/file").read_bytes() == b"stays"
    (tmp_path / "old/file").unlink()
    (tmp_path / "old/file").mkdir()
    (tmp_path / "old/file/mine").touch()
    with pytest.raises(PatchError, match="file has something in it that is not the image's"):
        run(image, tmp_path / "old", server)
    assert (tmp_path / "old/file/mine").exists()


def test_what_the_filter_matches_is_left_alone(server: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "new/etc").mkdir(parents=True)
    (tmp_path / "new/etc/machine-id").write_bytes(b"of the image")
    (tmp_path / "old/etc").mkdir(parents=True)
    (tmp_path / "old/etc/machine-id").write_bytes(b"of this machine")
    (tmp_path / "old/gone/logs").mkdir(parents=True)
    (tmp_path / "old/gone/logs/kept").write_bytes(b"log")
    image = image_of(tmp_path / "new", server, ["/etc/machine-id$", "/gone/logs(|/.*)$"])
    done, _ = run(image, tmp_path / "old", server)
    assert (tmp_path / "old/etc/machine-id").read_bytes() == b"of this machine"
    assert (tmp_path / "old/gone/logs/kept").read_bytes() == b"log"
    assert done.kept == ["/gone"]


def test_symlinks_lead_nowhere(server: ObjectStore, tmp_path: Path) -> None:
    """A directory of the image that is a symlink here is replaced, not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"outside")
    (tmp_path / "new/dir").mkdir(parents=True)
    (tmp_path / "new/dir/file").write_bytes(b"inside")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/dir").symlink_to(outside)
    run(image_of(tmp_path / "new", server, []), tmp_path / "old", server)
    assert (outside / "file").read_bytes() == b"outside"
    assert not (tmp_path / "old/dir").is_symlink()
    assert (tmp_path / "old/dir/file").read_bytes() == b"inside"


def test_our_own_directory_is_not_followed_either(server: ObjectStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "patch").mkdir(parents=True)
    (victim / "patch/precious").write_bytes(b"precious")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"new")
    (tmp_path / "old").mkdir()
    image = image_of(tmp_path / "new", server, [])
    for link, to in ((".subd", victim), (".subd/patch", victim / "patch")):
        if link != ".subd":
            (tmp_path / "old/.subd").unlink()
            (tmp_path / "old/.subd").mkdir()
        (tmp_path / "old" / link).symlink_to(to)
        with pytest.raises(PatchError, match="is no directory and is in the way"):
            run(image, tmp_path / "old", server)
        assert (victim / "patch/precious").read_bytes() == b"precious"
        assert sorted(path.name for path in (victim / "patch").iterdir()) == ["precious"]


def test_what_a_kill_at_the_very_end_left_is_removed(server: ObjectStore, tmp_path: Path) -> None:
    make_new(tmp_path / "new")
    make_old(tmp_path / "old")
    image = image_of(tmp_path / "new", server, [])
    run(image, tmp_path / "old", server)
    (tmp_path / "old/.subd/patch/objects").mkdir(parents=True)
    run(image, tmp_path / "old", server)
    assert not (tmp_path / "old/.subd").exists()
    assert same(image, tmp_path / "old", tmp_path)


def test_a_directory_that_is_swapped_for_a_link_meanwhile(
    server: ObjectStore, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "new/dir").mkdir(parents=True)
    (tmp_path / "new/dir/file").write_bytes(b"inside")
    (tmp_path / "old/dir").mkdir(parents=True)
    image = image_of(tmp_path / "new", server, [])
    with pytest.raises(PatchError), Patch(image, tmp_path / "old") as patch:
        for hash_ in patch.begin():
            with server.open(hash_) as file:
                patch.store.put(file)
        (tmp_path / "old/dir").rmdir()
        (tmp_path / "old/dir").symlink_to(outside)
        patch.apply()
    assert list(outside.iterdir()) == []


class _KilledError(BaseException):
    pass


CALLS = ("rename", "unlink", "rmdir", "mkdir", "link", "chown", "chmod", "utime", "setxattr")


def test_killed_anywhere_the_next_run_finishes_it(server: ObjectStore, tmp_path: Path) -> None:
    make_new(tmp_path / "new")
    image = image_of(tmp_path / "new", server, [])
    contents = {b"old hosts\n", b"new hosts\n"}
    step = 0
    while True:
        step += 1
        left = step

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise _KilledError
                return real(*arguments, **keywords)

            return call

        directory = tmp_path / "at"
        shutil.rmtree(directory, ignore_errors=True)
        make_old(directory)
        with Patch(image, directory) as first:
            lacking = first.begin()
            for hash_ in lacking:
                with server.open(hash_) as file:
                    first.store.put(file)
            mocks = [replaced.object(os, name, counted(getattr(os, name))) for name in CALLS]
            for mock in mocks:
                mock.start()
            try:
                first.apply()
            except _KilledError:
                pass
            else:
                break
            finally:
                for mock in mocks:
                    mock.stop()
            # As a kill leaves it: nothing is cleaned up.
            first.store.close()
            first._store = None
        assert (directory / "etc/hosts").read_bytes() in contents
        assert (directory / "same").read_bytes() == b"the same"
        run(image, directory, server)
        assert same(image, directory, tmp_path), step
        assert not (directory / ".subd").exists()
    assert step > 40


def test_two_at_once_and_no_directory(server: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"new")
    (tmp_path / "old").mkdir()
    image = image_of(tmp_path / "new", server, [])
    with Patch(image, tmp_path / "old") as one:
        one.begin()
        busy = pytest.raises(PatchError, match="another patch of it is going on")
        with busy, Patch(image, tmp_path / "old") as other:
            other.begin()
    with pytest.raises(PatchError, match="it is no directory"):
        Patch(image, tmp_path / "none")
