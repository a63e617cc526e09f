"""Images become bricks once, whoever asks and however often; what fails leaves nothing."""

import asyncio
import gzip
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from smallstack.durable import boot_id
from smallstack.hypervisor.errors import DiskFullError, SpaceError, StorageIndexError
from smallstack.hypervisor.host import LocalHost, Space
from smallstack.hypervisor.image_url import ImageUrlError, UrlPolicy, parse_image_url
from smallstack.hypervisor.images import Images
from smallstack.hypervisor.imports import ImageWanted, Imports
from smallstack.hypervisor.ledger import Ledger
from smallstack.hypervisor.roots import BRICKS, Roots
from smallstack.network.book import AddressBook
from smallstack.objects.cache import ObjectCache
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.brick import Brick
from smallstack.volumes.brick_check import check_bricks
from smallstack.volumes.errors import DiskImageError, VolumeWriteError
from smallstack.volumes.foreign.formats import DiskFormat
from tests.conftest import PASSES, Watch
from tests.hypervisor.web import HERE, Asked, Server, file, serving
from tests.volumes.disks import run
from tests.volumes.foreign.images import MIB, SIZE, convert, make_raw

pytestmark = pytest.mark.root
ETAG = 'ETag: "one"'
USER = (65534, 65534)


class SmallHost(LocalHost):
    """A machine with so many bytes of room."""

    left = 1 << 40

    def space(self, directory: Path) -> Space:
        found = super().space(directory)
        return Space(1 << 50, self.left, found.device + (directory != Path("/")))


@dataclass
class World:
    """An agent's parts for imports, with two volume directories."""

    place: Path
    limit: int = 64 * MIB
    told: list[str] = field(default_factory=list)
    room: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directories = [self.place / "one", self.place / "two"]
        self.host = SmallHost()
        self.open()

    def open(self, policy: UrlPolicy | None = None) -> None:
        """As an agent that has just been started."""
        cache = ObjectCache(self.place / "cache", MIB)
        loaders = BootLoaders(self.place / "loaders")
        self.roots = Roots(self.directories, cache, cast("Images", None), loaders)
        cache.close()
        self.ledger = Ledger(self.host, cast("AddressBook", None), self.directories)
        policy = policy or UrlPolicy(HERE)
        self.imports = Imports(self.roots, self.ledger, policy, self.limit)

    async def tell(self, text: str) -> None:
        self.told.append(text)

    async def make_room(self, sizes: Sequence[int], within: Path | None) -> None:
        assert within in {None, *self.directories}
        self.room += sizes

    async def get(self, wanted: ImageWanted) -> Brick:
        async with self.imports.get(wanted, self.tell, self.make_room) as brick:
            return brick

    def files(self) -> list[str]:
        """What is among the bricks, but for marks that go by themselves."""
        found = [path for d in self.directories for path in (d / BRICKS).iterdir()]
        return sorted(path.name for path in found if path.suffix != ".pending")

    def clean(self) -> bool:
        """Nothing is kept for anything that is no brick."""
        return not self.ledger._expected and not self.imports._shared


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.roots.close()
    assert made.clean()


class Sent:
    """What a client sends; it goes away after ``until`` bytes."""

    def __init__(self, data: bytes, until: int | None = None) -> None:
        self._data = data
        self._until = until

    async def pieces(self, count: int) -> AsyncGenerator[bytes, None]:
        assert count == len(self._data)
        for at in range(0, count, 100_000):
            if self._until is not None and at >= self._until:
                raise ConnectionClosedError(peer="a client", detail="it went away")
            yield self._data[at : at + 100_000]


def upload(data: bytes, until: int | None = None, **changes: object) -> ImageWanted:
    wanted = ImageWanted(None, USER, sent=Sent(data, until), size=len(data))
    return replace(wanted, **changes)  # type: ignore[arg-type]


def by_url(server: Server, path: str = "/x", **changes: object) -> ImageWanted:
    wanted = ImageWanted(None, USER, url=parse_image_url(server.url(path)))
    return replace(wanted, **changes)  # type: ignore[arg-type]


async def test_the_same_bytes_are_stored_once(world: World, tmp_path: Path) -> None:
    data = make_raw(tmp_path / "raw")
    qcow2 = convert(tmp_path / "raw", tmp_path / "qcow2", "qcow2").read_bytes()
    first = await world.get(upload(data))
    assert first.path.read_bytes() == data
    assert first.size == SIZE
    assert await world.get(upload(data)) == first
    assert await world.get(upload(data, format=DiskFormat.RAW)) == first
    assert world.files() == [first.key]
    other = await world.get(upload(qcow2))
    assert other.path.read_bytes() == data
    assert await world.get(upload(qcow2, format=DiskFormat.QCOW2)) == other
    # The same bytes, of which every one is the disk's, are another disk.
    literal = await world.get(upload(qcow2, format=DiskFormat.RAW))
    assert literal.path.read_bytes() == qcow2
    assert world.files() == sorted([first.key, other.key, literal.key])
    # In the volume directory that was asked for there is another one.
    there = await world.get(upload(data, index=1))
    assert (there.key, there.path.parent.parent) == (first.key, world.directories[1])
    with pytest.raises(StorageIndexError, match=r"storage\[2\]"):
        await world.get(upload(data, index=2))


async def test_a_url_is_fetched_once_for_all_who_wait(world: World, tmp_path: Path) -> None:
    data = make_raw(tmp_path / "raw")
    async with serving() as server:
        go = asyncio.Event()
        answer = file(data, ETAG)

        async def slowly(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            await answer(asked, writer)

        server.answers["/x"] = slowly
        waiting = [asyncio.create_task(world.get(by_url(server))) for _ in range(4)]
        while not server.asked:
            await asyncio.wait(waiting, timeout=0.01)
        # The first one, whose create began it, goes away.
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        go.set()
        made = await asyncio.gather(*waiting[1:])
        assert len(server.asked) == 1
        assert len(set(made)) == 1
        assert made[0].path.read_bytes() == data
        assert world.told[0].startswith("getting image: ")
        assert len(world.told) <= 3 * 10
        # Later it is asked for, and not sent again; a digest that is known needs no question.
        assert await world.get(by_url(server)) == made[0]
        assert server.asked[1].headers["if-none-match"] == '"one"'
        digest = world.imports._sources[(server.url("/x"), "auto")].digests["blake3"]
        checked = parse_image_url(f"{server.url('/x')}#blake3={digest}")
        assert await world.get(by_url(server, url=checked)) == made[0]
        assert len(server.asked) == 2
        # A next agent knows it too, as long as the brick is there.
        await world.roots.close()
        world.open()
        assert await world.get(by_url(server)) == made[0]
        assert "if-none-match" in server.asked[2].headers
        assert world.files() == [made[0].key, made[0].key + ".note"]
        checked_bricks = check_bricks(made[0].path.parent)
        assert (checked_bricks.bricks, checked_bricks.wrong) == (1, [])
        await world.roots.remove_brick(world.directories[0], made[0], [])
        assert world.files() == []
        assert await world.get(by_url(server)) == made[0]
        assert "if-none-match" not in server.asked[3].headers


async def test_the_last_who_waits_ends_it(world: World) -> None:
    async with serving() as server:
        hold = asyncio.Event()
        server.answers["/x"] = file(bytes(10 * MIB), ETAG, cut=[3 * MIB], stall=hold)
        waiting = [asyncio.create_task(world.get(by_url(server))) for _ in range(2)]
        while not world.files():
            await asyncio.wait(waiting, timeout=0.01)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert world.files() == []
        hold.set()


async def test_the_user_of_a_converter_is_kept_from_vms(world: World, tmp_path: Path) -> None:
    """Also when the create is gone that came first, and whose VM's user it is."""
    kept: list[str] = []

    @contextmanager
    def keep() -> Iterator[None]:
        kept.append("kept")
        yield
        kept.append("given back")

    raw = tmp_path / "raw"
    make_raw(raw)
    vdi = convert(raw, tmp_path / "vdi", "vdi").read_bytes()
    async with serving() as server:
        hold = asyncio.Event()

        async def later(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await hold.wait()
            await file(vdi)(asked, writer)

        server.answers["/x"] = later
        first = asyncio.create_task(world.get(by_url(server, keep_user=keep)))
        second = asyncio.create_task(world.get(by_url(server, user=(65533, 65533))))
        while not server.asked:
            await asyncio.wait([first, second], timeout=0.01)
        first.cancel()
        await asyncio.wait([first])
        assert kept == ["kept"]
        hold.set()
        assert (await second).path.read_bytes() == raw.read_bytes()
        assert kept == ["kept", "given back"]


async def test_what_is_refused_leaves_nothing(world: World, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    data = make_raw(raw)
    vmdk = convert(raw, tmp_path / "vmdk", "vmdk").read_bytes()
    vdi = convert(raw, tmp_path / "vdi", "vdi").read_bytes()
    qcow2 = convert(raw, tmp_path / "qcow2", "qcow2").read_bytes()
    packed = gzip.compress(data)
    for image, told in (
        (vmdk[: len(vmdk) // 2], "(qemu-img check)"),
        (vdi[: len(vdi) // 2], "it was cut off"),
        (qcow2[: len(qcow2) // 2], "cannot be a VM's disk"),
        (packed[: len(packed) // 2], "its gzip data ends too early"),
        (gzip.compress(bytes(65 * MIB)), "over 67108864 bytes"),
        (b"vhdxfile" + bytes(100), "VHDX"),
    ):
        with pytest.raises(DiskImageError) as caught:
            await world.get(upload(image))
        assert told in str(caught.value)
        assert str(caught.value).startswith("image sent with the request ")
        assert world.files() == []
    with pytest.raises(ConnectionClosedError):
        await world.get(upload(data, until=SIZE // 2))
    async with serving() as server:
        server.answers = {"/x": file(data, cut=[300_000]), "/none": file(b""), "/y": file(data)}
        with pytest.raises(ImageUrlError, match="it was cut off after"):
            await world.get(by_url(server))
        with pytest.raises(DiskImageError, match="it is empty"):
            await world.get(by_url(server, "/none"))
        server.answers["/x"] = file(bytes(9), length=1 << 40)
        with pytest.raises(DiskImageError, match="it has 1099511627776 bytes: at most 67108864"):
            await world.get(by_url(server))
        wrong = parse_image_url(f"{server.url('/y')}#sha512={'0' * 128}")
        with pytest.raises(DiskImageError, match=r"its sha512 is .* not 000"):
            await world.get(by_url(server, url=wrong))
        encoded = file(packed, "Content-Encoding: gzip")
        server.answers["/z"] = encoded
        with pytest.raises(ImageUrlError, match="its server compresses it"):
            await world.get(by_url(server, "/z", format=DiskFormat.RAW))
        assert world.files() == []
        assert (await world.get(by_url(server, "/z"))).path.read_bytes() == data
    with pytest.raises(DiskImageError, match="at most 67108864 are taken"):
        world.imports.check("", 64 * MIB + 1)
    with pytest.raises(ImageUrlError, match="file: is off"):
        world.imports.check("file:///x", 0)


async def test_space_is_kept_for_what_is_written(world: World, tmp_path: Path) -> None:
    data = make_raw(tmp_path / "raw")
    world.host.left = SIZE
    with pytest.raises(SpaceError, match="not enough free space for 6 MiB volume: 6 MiB are"):
        await world.get(upload(data))
    assert world.room == [SIZE]
    world.host.left = SIZE + 1
    directory = world.directories[0]
    world.ledger.expect(directory, directory / "another", MIB)
    with pytest.raises(SpaceError):
        await world.get(upload(data))
    world.ledger.complete(directory / "another")
    brick = await world.get(upload(data))
    # What is compressed says nothing of its size, and finds its room as it comes out.
    world.host.left = 64 * MIB
    with pytest.raises(SpaceError):
        await world.get(upload(gzip.compress(bytes(20 * MIB))))
    assert world.files() == [brick.key]


async def test_a_brick_that_was_got_stays(world: World, tmp_path: Path) -> None:
    data = make_raw(tmp_path / "raw")
    async with world.imports.get(upload(data), world.tell, world.make_room) as brick:
        await world.roots.remove_brick(world.directories[0], brick, [])
        assert brick.path.exists()
    # Where a record cannot be read any layer may be over it.
    unused = world.roots.unused_bricks
    assert unused([], imported=False)[world.directories[0]] == []
    assert unused([])[world.directories[0]] == [brick]
    assert unused([str(brick.path)])[world.directories[0]] == []
    await world.roots.remove_brick(world.directories[0], brick, [str(brick.path)])
    assert brick.path.exists()


async def test_durable_or_gone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_raw(tmp_path / "raw")
    mark = ".pending"
    brick = await world.get(upload(data))
    await world.roots.durable(brick)
    assert not brick.path.with_name(brick.key + mark).exists()
    other = await world.get(upload(data[:-512]))
    await world.roots.close()
    # The host went down before the second one was safe.
    other.path.with_name(other.key + mark).write_text("another boot")
    (brick.path.parent / "0123.~77").write_bytes(b"of a kill")
    (brick.path.parent / "imported-gone.note").write_bytes(b"{}")
    brick.path.with_name(brick.key + ".note").write_bytes(b"[1]")
    world.open()
    assert world.files() == [brick.key, brick.key + ".note"]
    # A disk that loses what was written to it says so once.
    third = await world.get(upload(data[:-1024]))
    await world.roots.close()
    third.path.with_name(third.key + mark).write_text(boot_id())

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(VolumeWriteError, match="Input/output error"):
        await world.roots.durable(third)
    assert not third.path.exists()


async def test_a_full_disk(world: World) -> None:
    """In the middle of what is sent, of what is unpacked and of what is converted."""
    data = os.urandom(SIZE)
    place = world.directories[0] / BRICKS
    for image in (data, gzip.compress(data, 1)):
        run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place)
        try:
            with pytest.raises(DiskFullError, match=r"^no space left on the disk of [^:]*: free"):
                await world.get(upload(image))
            assert list(place.iterdir()) == []
        finally:
            run("umount", place)


async def test_files_of_this_machine(world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    data = make_raw(images / "raw")
    await world.roots.close()
    world.open(UrlPolicy(local_directory=images))
    wanted = ImageWanted(None, USER, url=parse_image_url(f"file://{images}/raw"))
    brick = await world.get(wanted)
    assert brick.path.read_bytes() == data
    assert await world.get(wanted) == brick
    (images / "raw").write_bytes(data[:-512])
    assert await world.get(wanted) != brick


async def test_an_upload_leaves_the_loop_alone(world: World, keeps_loop_free: Watch) -> None:
    images = [os.urandom(8 * MIB) + bytes([number]) * MIB for number in range(PASSES)]

    async def scenario(number: int) -> None:
        await world.get(upload(images[number]))

    await keeps_loop_free(scenario)
