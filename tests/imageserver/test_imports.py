"""ImportObjects and ImportTree over real connections, from a web server that does as it is told."""

import asyncio
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import ObjectServerClient
from smallstack.imageserver import fetch
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import Time
from smallstack.srpc.client import Client
from smallstack.srpc.errors import AccessDeniedError
from tests.hypervisor.web import Server, file, head, redirect, says, serving
from tests.imageserver.conftest import Serve
from tests.imageserver.test_images import HOUR, refused, running_delete_unreferenced

HERE = ("*", "127.0.0.1")


def digest(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


def offer(server: Server, data: bytes, base: str = "/o") -> bytes:
    """Let a server have an object; its digest."""
    server.answers[f"{base}/{digest(data).hex()}"] = file(data)
    return digest(data)


def line(name: str, kind: int, mode: int, data: bytes, uid: int = 0, gid: int = 0) -> str:
    return f"{name}/{kind}/{mode}/{uid}/{gid}/{len(data)}/{digest(data).hex()}\n"


class Tree:
    """Trees on a web server, made from below."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def file(self, name: str, data: bytes, mode: int = 0o644, **owner: int) -> str:
        if data:
            offer(self._server, data, "/fs/blob")
        return line(name, 0, mode, data, **owner)

    def link(self, name: str, target: bytes) -> str:
        offer(self._server, target, "/fs/blob")
        return line(name, 2, 0, target)

    def directory(self, name: str, lines: Sequence[str], mode: int = 0o755) -> str:
        return line(name, 1, mode, self.text(lines))

    def text(self, lines: Sequence[str]) -> bytes:
        text = "".join(lines).encode()
        if text:
            offer(self._server, text, "/fs/tree")
        return text

    def url(self, lines: Sequence[str]) -> str:
        return self._server.url(f"/fs/tree/{digest(self.text(lines)).hex()}")


def listed(tree: FileSystem) -> dict[bytes, tuple[int, int, int, bytes]]:
    """Mode, uid, gid and what it holds of every path."""
    found = {}
    for path, index in tree.walk():
        inode = tree.inode(index)
        found[path] = (inode.mode, inode.uid, inode.gid, inode.target or inode.hash)
    return found


async def stored(client: Client, digests: Sequence[bytes]) -> list[int]:
    return await ObjectServerClient(client).check_objects(digests)


async def test_objects(serve: Serve, tmp_path: Path) -> None:
    data = [b"x" * number for number in range(1, 40)] + [os.urandom(3_000_000)]
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        running.operator.connect() as client,
        serving() as web,
    ):
        objects = ObjectServerClient(client)
        digests = [offer(web, one) for one in data]
        sizes = [len(one) for one in data]
        reply = await objects.import_objects(web.url("/o/"), digests[:20], sizes[:5])
        assert (reply.error, reply.objects_added, reply.bytes_added) == ("", 20, sum(sizes[:20]))
        reply = await objects.import_objects(web.url("/o"), digests)
        assert (reply.error, reply.objects_added, reply.bytes_added) == ("", 20, sum(sizes[20:]))
        assert await stored(client, digests) == sizes
        assert len(web.asked) == len(data), "what is there is not asked for"
        await running_delete_unreferenced(client)
        assert await stored(client, digests) == sizes, "they are held for an image to come"
        for path in tmp_path.glob("objects/.incoming/*"):
            pytest.fail(f"{path} is left")


async def test_the_first_failure_is_told_and_what_came_stays(serve: Serve, tmp_path: Path) -> None:
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        running.operator.connect() as client,
        serving() as web,
    ):
        objects = ObjectServerClient(client)
        one, two = offer(web, b"one"), offer(web, b"two")
        reply = await objects.import_objects(web.url("/o"), [one])
        for answer, why in (
            (says(head("404 Not Found", "Content-Length: 0")), "404 Not Found"),
            (file(b"two, but not this"), "17 bytes, not 3"),
            (file(b"owt"), "SHA-512"),
            (file(b"two", length=30), "30 bytes, not 3"),
            (file(b"two", cut=[1]), "it was cut off"),
            (file(b"two", chunked=True), "its server does not say how long it is"),
            (says(b"HTTP/1.1 nonsense\r\n\r\n"), "cannot get"),
            (says(b""), "cannot get"),
            (redirect("ftp://127.0.0.1/"), "it leads to ftp:"),
            (redirect(""), "it redirects more than 5 times"),
            (redirect("http://169.254.169.254/"), "its address is this machine's own or a link"),
        ):
            web.answers[f"/o/{two.hex()}"] = answer
            reply = await objects.import_objects(web.url("/o"), [one, two], [3, 3])
            assert why in reply.error
            assert "\n" not in reply.error
            assert reply.failed_index == 1
            assert await stored(client, [one, two]) == [3, 0]
        reply = await objects.import_objects(web.url("/o"), [one], [4])
        assert f"existing size: 3 != 4 for: {one.hex()}" in reply.error
        assert reply.failed_index == 0
        web.answers["/moved"] = file(b"two")
        web.answers[f"/o/{two.hex()}"] = redirect("/moved")
        assert (await objects.import_objects(web.url("/o"), [two])).error == ""
        assert await stored(client, [two]) == [3]
        assert list(tmp_path.glob("objects/.incoming/*")) == []


async def test_a_server_that_stalls_or_a_caller_that_goes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        serving() as web,
    ):
        wanted, held = digest(b"abc" * 100_000), asyncio.Event()
        asked = asyncio.Event()
        sending = file(b"abc" * 100_000, cut=[200_000] * 2, stall=held)

        async def answer(*words: object) -> None:
            asked.set()
            await sending(*words)  # type: ignore[arg-type]

        web.answers[f"/o/{wanted.hex()}"] = answer
        async with running.operator.connect() as client:
            importing = asyncio.ensure_future(
                ObjectServerClient(client).import_objects(web.url("/o"), [wanted])
            )
            await asked.wait()
            importing.cancel()
        monkeypatch.setattr(fetch, "STALL_SECONDS", 0.2)
        async with running.operator.connect() as client:
            reply = await ObjectServerClient(client).import_objects(web.url("/o"), [wanted])
            assert "nothing came for 0.2 s" in reply.error
        held.set()
        assert list(tmp_path.glob("objects/.incoming/*")) == []


async def test_hosts(serve: Serve, tmp_path: Path) -> None:
    async with serving() as web:
        for hosts, why in (
            (("*",), "its address is this machine's own"),
            (("none",), "127.0.0.1 is not allowed, see --import-hosts"),
        ):
            async with (
                serve(tmp_path, import_hosts=hosts) as running,
                running.operator.connect() as client,
            ):
                objects = ObjectServerClient(client)
                reply = await objects.import_objects(web.url("/o"), [offer(web, b"a")])
                assert why in reply.error
                if hosts == ("*",):
                    url = web.url("/o", "localhost")
                    assert why in (await objects.import_objects(url, [offer(web, b"a")])).error
                for url in (
                    "",
                    "/o",
                    "ftp://h/",
                    "http://",
                    "http://h/?q",
                    "http://h/#f",
                    "http://[/",
                ):
                    assert "write http" in (await objects.import_objects(url, [])).error
        assert web.asked == []


async def test_a_tree(serve: Serve, tmp_path: Path) -> None:
    large = os.urandom(1_500_000)
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        running.operator.connect() as client,
        serving() as web,
    ):
        tree, images = Tree(web), ImageServerClient(client)
        shared = [tree.file("b", b"b"), tree.file("a", large, 0o4755, uid=7, gid=8)]
        below = [
            tree.directory("again", shared),
            tree.link("link", b"../x"),
            tree.file("empty", b""),
        ]
        lines = [tree.directory("usr", below, 0o1777), tree.directory("bare", []), *shared]
        await images.make_directory("site")
        before = Time.now().nanoseconds_since_epoch
        reply = await images.import_tree("site", tree.url(lines))
        assert reply.image_name == f"site/{digest(tree.text(lines)).hex()}"
        assert (reply.file_objects_added, reply.file_bytes_added) == (2, len(large) + 1)
        assert reply.tree_objects_added == 4, "three directories that have entries, one target"
        image = await images.get_image(reply.image_name)
        assert image is not None
        assert (image.created_by, image.filter) == ("operator", None)
        assert image.file_system is not None
        b = (stat.S_IFREG | 0o644, 0, 0, digest(b"b"))
        a = (stat.S_IFREG | 0o4755, 7, 8, digest(large))
        found = listed(image.file_system)
        assert found.pop(b"/usr/empty")[:3] == (stat.S_IFREG | 0o644, 0, 0)
        assert {path: one for path, one in found.items() if stat.S_ISREG(one[0])} == {
            b"/a": a,
            b"/b": b,
            b"/usr/again/a": a,
            b"/usr/again/b": b,
        }
        assert found[b"/usr/link"][3] == b"../x"
        assert found[b"/usr"][0] == stat.S_IFDIR | 0o1777
        assert b"/bare" in found
        assert image.file_system.num_regular_inodes == 5
        mtime = next(
            image.file_system.inode(index).mtime_sec
            for path, index in image.file_system.walk()
            if path == b"/a"
        )
        assert abs(mtime - before // 10**9) < 600
        assert await stored(client, [digest(large), digest(b"b")]) == [len(large), 1]
        text = await refused(images.import_tree("site", tree.url(lines)))
        assert "already exists" in text
        web.asked.clear()
        more = await images.import_tree(".", tree.url([*lines, tree.file("c", b"c")]))
        assert (more.tree_objects_added, more.file_objects_added) == (1, 1)
        assert len(web.asked) == 2, "what is there is not asked for"


async def test_what_is_no_tree(serve: Serve, tmp_path: Path) -> None:
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        running.operator.connect() as client,
        serving() as web,
    ):
        tree, images = Tree(web), ImageServerClient(client)
        good = tree.file("a", b"a")
        for lines, why in (
            (["a/0/420\n"], "line 1: 3 fields, not 7"),
            ([good[:-1]], "line 1: it is cut off"),
            ([good, good], "it names b'a' twice"),
            ([good.replace("a/0/", "../0/", 1)], "is no name of a file"),
            ([good.replace("a/0/", "/0/", 1)], "is no name of a file"),
            ([good.replace("a/0/", "a/3/", 1)], "b'3' is no type"),
            ([good.replace("/420/", "/-1/", 1)], "b'-1' is no permissions"),
            ([good.replace("/0/0/1/", "/0/4294967296/1/", 1)], "is no gid"),
            ([good.replace("/0/0/1/", "/0/0/9223372036854775808/", 1)], "is no size"),
            ([good[:-3] + "zz\n"], "is not hex"),
            ([good[:-3] + "\n"], "a digest of 126 digits"),
            ([tree.link("a", b"b\0c")], "symlink target"),
            ([line("a", 2, 0, b"t" * 4096)], "404"),
            ([line("a", 2, 0, b"")], "a symlink without a target"),
            ([good, line("b", 0, 0, b"a").replace("/1/", "/2/", 1)], "has two sizes"),
            ([line("a", 1, 0, b"not there")], "404"),
            ([line("a", 0, 0, b"not there")], "404"),
        ):
            web.answers.setdefault(f"/fs/blob/{digest(b't' * 4096).hex()}", MISSING)
            for place in ("tree", "blob"):
                web.answers[f"/fs/{place}/{digest(b'not there').hex()}"] = MISSING
            text = await refused(images.import_tree(".", tree.url(lines)))
            assert why in text, text
        for url in (
            "",
            "http://127.0.0.1/tree/",
            web.url("/fs/blob/" + "00" * 64),
            tree.url([])[:-1],
        ):
            assert "write " in await refused(images.import_tree(".", url))
        assert "none does not exist" in await refused(images.import_tree("none", tree.url([good])))
        expired = images.import_tree(".", tree.url([good]), Time.from_nanoseconds(7))
        assert "already expired" in await refused(expired)
        assert await images.list_images() == []
        until = Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + HOUR)
        name = (await images.import_tree(".", tree.url([good]), until)).image_name
        assert await images.get_image_expiration(name) == until
        lying = tree.url([tree.file("b", b"b")])
        web.answers[lying.partition(f":{web.port}")[2]] = file(b"another")
        assert "SHA-512" in await refused(images.import_tree(".", lying)), "the root is checked too"


MISSING = says(head("404 Not Found", "Content-Length: 0"))


async def test_a_tree_that_would_have_no_end(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallstack.imageserver.imports.MAX_INODES", 10_000)
    async with (
        serve(tmp_path, import_hosts=HERE) as running,
        running.operator.connect() as client,
        serving() as web,
    ):
        tree, images = Tree(web), ImageServerClient(client)
        lines = [tree.file("a", b"a")]
        for _ in range(40):  # 2^40 inodes of 41 objects
            lines = [tree.directory("one", lines), tree.directory("two", lines)]
        text = await refused(images.import_tree(".", tree.url(lines)))
        assert "more than 10000 inodes" in text
        monkeypatch.setattr("smallstack.imageserver.imports.MAX_DEPTH", 30)
        lines = [tree.file("a", b"a")]
        for _ in range(31):
            lines = [tree.directory("one", lines)]
        assert "more than 30 levels" in await refused(images.import_tree(".", tree.url(lines)))
        assert await images.list_images() == []


async def test_rights(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.as_user("user").connect() as client:
        with pytest.raises(AccessDeniedError):
            await ObjectServerClient(client).import_objects("http://h/", [])
        with pytest.raises(AccessDeniedError):
            await ImageServerClient(client).import_tree(".", "http://h/")
    async with serve(tmp_path) as running, running.operator.connect() as client:
        with pytest.raises(ServiceError, match="write http"):
            await ImageServerClient(client).import_tree(".", "file:///etc/tree/" + "00" * 64)
