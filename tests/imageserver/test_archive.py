"""Archives over real connections: given away, taken back, forged, cut."""

import asyncio
import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from smallstack.client.imageserver import ImageServerClient
from smallstack.imageserver.archive import SECRET
from smallstack.proto import imageserver as proto
from smallstack.proto.kinds import Time
from smallstack.srpc.errors import AccessDeniedError
from smallstack.srpc.gob import NEED_MORE, Decoder, Encoder
from tests.imageserver.conftest import Running, Serve
from tests.imageserver.test_images import HOUR, contents, image, refused, upload


def in_an_hour() -> Time:
    return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + HOUR)


def opened(archive: bytes) -> tuple[proto.ImageArchive, bytes]:
    decoder = Decoder()
    decoder.feed(archive)
    held = decoder.decode(proto.ImageArchive)
    assert held is not NEED_MORE
    return held, decoder.take_rest()


async def test_a_deleted_image_comes_back(serve: Serve, tmp_path: Path) -> None:
    data = contents(3)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.make_directory("a")
        await upload(client, data)
        await images.add_image("a/one", image(data, tags={"k": "v"}))
        before = await images.get_image("a/one")
        archive = await images.get_image_archive("a/one")
        held, digest = opened(archive)
        assert (held.image_name, held.image) == ("a/one", before)
        secret = tmp_path / "images" / SECRET
        assert len(secret.read_bytes()) == 32
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert digest == hmac.digest(secret.read_bytes(), archive[:-64], "sha512")
        text = await refused(images.restore_image(archive))
        assert text.endswith("image: a/one already exists")
        await images.delete_image("a/one")
        assert "previously deleted" in await refused(images.add_image("a/one", image(data)))
        await images.restore_image(archive)
        assert await images.get_image("a/one") == before, "who made it and when are kept"
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        assert await images.get_image("a/one") == before, "also after a restart"
        assert await images.get_image_archive("a/one") == archive, "by the same secret"


async def test_an_archive_of_another_server_is_the_callers(serve: Serve, tmp_path: Path) -> None:
    made = image([], created_by="somebody", created_on=Time.from_nanoseconds(7))
    gob = Encoder().encode(proto.ImageArchive(image_name="one", image=made))
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        for number, told in enumerate((b"", bytes(64), hashlib.sha512(gob).digest(), b"\n" * 99)):
            name = f"image{number}"
            gob = Encoder().encode(proto.ImageArchive(image_name=name, image=made))
            await images.restore_image(gob + told)
            got = await images.get_image(name)
            assert got is not None
            assert got.file_system == made.file_system
            assert got.created_by == "operator"
            assert got.created_on != made.created_on
            await images.delete_image(name)
            text = await refused(images.restore_image(gob + told))
            assert "previously deleted" in text
            secret = (tmp_path / "images" / SECRET).read_bytes()
            assert hmac.digest(secret, gob, "sha512").hex() not in text, "nor how to forge it"
        assert await images.list_images() == []


async def test_what_expires_is_restored_once_it_has(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        expiring = image([], expires_at=in_an_hour())
        gob = Encoder().encode(proto.ImageArchive(image_name="one", image=expiring))
        assert "cannot restore before it expires" in await refused(images.restore_image(gob))
        expired = image([], expires_at=Time.from_nanoseconds(7))
        gob = Encoder().encode(proto.ImageArchive(image_name="one", image=expired))
        text = await refused(images.restore_image(gob, Time.from_nanoseconds(8)))
        assert "already expired" in text
        far = Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + 10000 * HOUR)
        assert "maximum expiration time" in await refused(images.restore_image(gob, far))
        until = in_an_hour()
        await images.restore_image(gob, until)
        assert await images.get_image_expiration("one") == until


async def test_what_is_no_archive(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.add_image("one", image([]))
        archive = await images.get_image_archive("one")
        await images.delete_image("one")
        assert "does not exist" in await refused(images.get_image_archive("one"))
        for cut in (0, 1, 40, len(archive) - 65):
            assert "ends too early" in await refused(images.restore_image(archive[:cut]))
        for bad in (b"\n", b"\xff" * 100, bytes(1000), archive[:50] + bytes(500)):
            await refused(images.restore_image(bad))
        nothing = Encoder().encode(proto.ImageArchive(image_name="two"))
        assert "nil file-system" in await refused(images.restore_image(nothing))
        data = contents(1)
        missing = proto.ImageArchive(image_name="two", image=image(data))
        text = await refused(images.restore_image(Encoder().encode(missing)))
        assert "is not available" in text
        for name in ("", "../two", ".secret", "none/two"):
            gob = Encoder().encode(proto.ImageArchive(image_name=name, image=image([])))
            await refused(images.restore_image(gob))
        assert await images.list_images() == []
        await images.restore_image(archive)


async def test_a_damaged_image_is_put_right(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.add_image("one", image([]))
        archive = await images.get_image_archive("one")
        before = await images.get_image("one")
    (tmp_path / "images" / "one").write_bytes(b"damage")
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        assert running.inside.trouble() == "1 image(s) are damaged"
        await images.restore_image(archive)
        assert await images.get_image("one") == before
        assert running.inside.trouble() == ""


async def test_a_secret_is_made_once(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await ImageServerClient(client).add_image("one", image([]))
        archives = running.inside.archives
        made = await asyncio.gather(
            *(asyncio.to_thread(archives._archive, "one") for _ in range(20))
        )
        assert len(set(made)) == 1
    (tmp_path / "images" / SECRET).unlink()
    (tmp_path / "images" / SECRET).mkdir()
    async with serve(tmp_path) as running, running.operator.connect() as client:
        text = await refused(ImageServerClient(client).get_image_archive("one"))
        assert "no secret for archives" in text
        assert "Is a directory" in text


async def test_rights(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        async with running.operator.connect() as client:
            await ImageServerClient(client).add_image("one", image([]))
        await as_user(running)


async def as_user(running: Running) -> None:
    async with running.as_user("user").connect() as client:
        images = ImageServerClient(client)
        archive = await images.get_image_archive("one")
        with pytest.raises(AccessDeniedError):
            await images.restore_image(archive)
