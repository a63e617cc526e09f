import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.images.catalogue import METADATA, ImageCatalogue
from smallstack.images.errors import CatalogueError, ImageNameError, RefusedError
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.image import Filter, Image
from smallstack.proto.kinds import Time

HOUR = 3600 * 10**9


def tree(count: int = 3) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=1)
    for number in range(count):
        content = b"%d" % number
        inode = builder.add(mode=0o100644, size=1, hash=hashlib.sha512(content).digest())
        builder.link(0, b"f%d" % number, inode)
    return builder.build()


def image(created: int = 0, **fields: object) -> Image:
    return Image(file_system=tree(), created_on=Time(created), **fields)  # type: ignore[arg-type]


def loaded(directory: Path) -> ImageCatalogue:
    catalogue = ImageCatalogue(directory)
    catalogue.load()
    return catalogue


def from_now(nanoseconds: int) -> Time:
    return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + nanoseconds)


def test_an_image_is_a_gob_and_its_digest(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    made = image(5, created_by="alice", filter=Filter(filter_lines=["/tmp"]), tags={"a": "b"})
    entry = catalogue.add("one", made)
    data = (tmp_path / "one").read_bytes()
    assert hashlib.sha512(data[:-64]).digest() == data[-64:] == entry.checksum
    assert entry.files == entry.data_bytes == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
    seen: dict[str, Image] = {}
    again = ImageCatalogue(tmp_path)
    again.load(seen.__setitem__)
    assert again.names() == ["one"]
    assert seen["one"] == made
    assert again.get("one") == made
    assert again.get("one") == made, "kept in memory"
    kept = again.entry("one")
    assert kept is not None
    assert kept.image.file_system is None
    assert kept.image.created_by == "alice"
    assert "one" in again
    assert again.get("two") is None
    assert again.entry("two") is None


def test_names_are_used_once(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.add("one", image())
    with pytest.raises(RefusedError, match="image: one already exists"):
        catalogue.add("one", image())
    catalogue.delete("one")
    assert (tmp_path / "one").stat().st_size == 0
    assert catalogue.names() == []
    for one in (catalogue, loaded(tmp_path)):
        with pytest.raises(RefusedError, match="cannot add previously deleted image: one"):
            one.add("one", image())
        with pytest.raises(RefusedError, match="image: one does not exist"):
            one.delete("one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "it is empty"),
        ("/a", "begins or ends with a slash"),
        ("a//b", "two in a row"),
        ("a/../b", "has a component '..'"),
        ("./a", "has a component '.'"),
        (".metadata", "begins with a dot"),
        ("a/.x", "begins with a dot"),
        ("a~", "ends with '~'"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("a\udcffb", "not valid Unicode"),
        ("x" * 251, "more than 250 bytes"),
        ("x/" * 600 + "x", "more than 1024 bytes"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    catalogue = loaded(tmp_path)
    with pytest.raises(ImageNameError) as caught:
        catalogue.add(name, image())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if message not in {"it is empty"} and name not in {"/a", "a//b", "a/../b", "./a"}:
        with pytest.raises(ImageNameError):
            catalogue.make_directory(name)
    assert list(tmp_path.iterdir()) == []


def test_images_go_into_directories_that_are_there(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    with pytest.raises(RefusedError, match="directory: a/b does not exist: make it first"):
        catalogue.add("a/b/one", image())
    assert catalogue.make_directory("a/b/", make_all=True) == ["a", "a/b"]
    assert catalogue.make_directory("a/b", make_all=True) == []
    catalogue.add("a/b/one", image())
    for name, text in (
        ("a/b", "directory: a/b already exists"),
        ("x/y", "no metadata for: x"),
        (".", r"directory: \. already exists"),
        ("a/b/one", "image: a/b/one already exists"),
    ):
        with pytest.raises(RefusedError, match=text):
            catalogue.make_directory(name)
    with pytest.raises(RefusedError, match="cannot create root directory"):
        catalogue.make_directory(".", make_all=True)
    with pytest.raises(ImageNameError, match="it is a directory"):
        catalogue.add("a/b", image())
    with pytest.raises(ImageNameError):
        catalogue.make_directory("../up", make_all=True)
    assert [d.name for d in loaded(tmp_path).directories()] == [".", "a", "a/b"]
    catalogue.delete("a/b/one")
    with pytest.raises(RefusedError, match="cannot add previously deleted image"):
        catalogue.make_directory("a/b/one")


def test_owner_groups_are_inherited_and_kept(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.make_directory("a")
    catalogue.set_owner("a", "ops")
    data = (tmp_path / "a" / METADATA).read_bytes()
    assert hashlib.sha512(data[:-64]).digest() == data[-64:]
    catalogue.make_directory("a/b")
    again = loaded(tmp_path)
    owners = {d.name: d.metadata.owner_group for d in again.directories()}
    assert owners == {".": "", "a": "ops", "a/b": "ops"}
    again.set_owner("a", "")
    assert not (tmp_path / "a" / METADATA).exists()
    with pytest.raises(RefusedError, match='no metadata for: "none"'):
        again.set_owner("none", "ops")
    (tmp_path / "a/b" / METADATA).write_bytes(b"damaged")
    found = loaded(tmp_path).metadata("a/b")
    assert found is not None
    assert found.owner_group == ""


def test_directories_are_deleted_when_empty(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.make_directory("a")
    catalogue.set_owner("a", "ops")
    catalogue.add("a/one", image())
    with pytest.raises(RefusedError, match="Directory not empty"):
        catalogue.delete_directory("a")
    catalogue.make_directory("b")
    catalogue.set_owner("b", "ops")
    catalogue.delete_directory("b")
    assert catalogue.metadata("b") is None
    assert not (tmp_path / "b").exists()
    for name in ("b", "."):
        with pytest.raises(RefusedError, match="does not exist"):
            catalogue.delete_directory(name)


def test_the_latest_image_of_a_directory(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.make_directory("d/e", make_all=True)
    catalogue.add("d/1", image(1, tags={"os": "a"}))
    catalogue.add("d/2", image(2, build_commit_id="c0ffee", tags={"os": "b"}))
    catalogue.add("d/3", image(3, build_branch="main", expires_at=from_now(HOUR)))
    catalogue.add("d/e/9", image(9))
    catalogue.add("top", image(1))
    assert catalogue.find_latest("d") == "d/3"
    assert catalogue.find_latest("d", ignore_expiring=True) == "d/2"
    assert catalogue.find_latest("d", "c0ffee") == "d/2"
    assert catalogue.find_latest("d", "main") == "d/3"
    assert catalogue.find_latest("d", "other") == ""
    assert catalogue.find_latest("d", tags={"os": ["a", "x"]}) == "d/1"
    assert catalogue.find_latest("d", tags={"os": []}) == ""
    assert catalogue.find_latest(".") == "top"
    with pytest.raises(RefusedError, match="unknown directory: none"):
        catalogue.find_latest("none")
    assert catalogue.select() == ["d/1", "d/2", "d/3", "d/e/9", "top"]
    assert catalogue.select("d") == ["d/1", "d/2", "d/3", "d/e/9"]
    assert catalogue.select("d/") == ["d/1", "d/2", "d/3"]
    assert catalogue.select(".", ignore_expiring=True, tags={"os": ["b"]}) == ["d/2"]


def test_images_expire(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.add("late", image(expires_at=from_now(HOUR)))
    catalogue.add("soon", image(expires_at=from_now(-1)))
    catalogue.add("never", image())
    assert catalogue.expired(Time.now()) == ["soon"]
    due = catalogue.next_expiry()
    assert due is not None
    assert due.nanoseconds_since_epoch < Time.now().nanoseconds_since_epoch
    assert not catalogue.expire("late")
    assert catalogue.expire("soon")
    assert not catalogue.expire("soon")
    catalogue.add("soon", image(expires_at=from_now(-1)))
    assert loaded(tmp_path).names() == ["late", "never"], "removed at the start"
    assert not (tmp_path / "soon").exists()


def test_expiry_can_be_put_off(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.add("one", image(expires_at=from_now(HOUR)))
    catalogue.add("never", image())
    later = from_now(2 * HOUR)
    assert catalogue.change_expiration("one", later)
    assert not catalogue.change_expiration("one", later)
    with pytest.raises(RefusedError, match="cannot shorten expiration time"):
        catalogue.change_expiration("one", from_now(HOUR))
    with pytest.raises(RefusedError, match="image does not expire"):
        catalogue.change_expiration("never", later)
    with pytest.raises(RefusedError, match="image not found"):
        catalogue.change_expiration("none", later)
    entry = loaded(tmp_path).entry("one")
    assert entry is not None
    assert entry.image.expires_at == later
    assert catalogue.change_expiration("one", Time.zero())
    assert loaded(tmp_path).next_expiry() is None


def test_damaged_files_are_left_alone_and_reported(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path)
    catalogue.add("good", image())
    catalogue.add("bad", image())
    data = bytearray((tmp_path / "bad").read_bytes())
    data[20] ^= 1
    (tmp_path / "bad").write_bytes(data)
    (tmp_path / "short").write_bytes(b"short")
    signed = b"no gob at all"
    (tmp_path / "gob").write_bytes(signed + hashlib.sha512(signed).digest())
    (tmp_path / "left~").write_bytes(b"half an image")
    (tmp_path / ".secret").write_bytes(b"x")
    (tmp_path / "link").symlink_to("good")
    again = loaded(tmp_path)
    assert again.names() == ["good"]
    assert set(again.damaged()) == {"bad", "short", "gob"}
    assert "checksum is wrong" in again.damaged()["bad"]
    assert bytes(data) == (tmp_path / "bad").read_bytes()
    assert not (tmp_path / "left~").exists()
    with pytest.raises(RefusedError, match="image: bad exists but is damaged"):
        again.add("bad", image())
    (tmp_path / "good").write_bytes(b"damaged while it runs" * 10)
    with pytest.raises(CatalogueError, match="checksum is wrong"):
        again.get("good")
    (tmp_path / "good").unlink()
    assert again.get("good") is None


def test_no_tree_no_image(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="nil file-system"):
        loaded(tmp_path).add("one", Image())


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CatalogueError, match="cannot use the images in"):
        loaded(tmp_path / "file")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = loaded(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CatalogueError, match="No space left on device"):
        catalogue.add("one", image())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    catalogue.add("one", image())


def test_killed_at_every_write(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.kill_points", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    print(f"kill points of the image catalogue: {done.stdout.strip()}")
