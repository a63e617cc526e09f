"""The image server when its disk is full: one clear line, nothing left behind, nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command

PROGRAM = """
import asyncio, hashlib, os, sys
from pathlib import Path
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import ObjectServerClient
from smallstack.control.image_server import ImageServer as Remote
from smallstack.control.images import NewImage, Progress, add_image
from smallstack.daemon.hosts import HostPolicy
from smallstack.daemon.listener import Listener, bind
from smallstack.imageserver.daemon import ImageServer
from smallstack.srpc.server import Server
from smallstack.telemetry.errors import SmallStackError

root = Path(sys.argv[1])
source = Path(sys.argv[2])
filler = root / "filler"


def leave(free):
    os.sync()
    space = os.statvfs(root)
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, max(1, space.f_bavail * space.f_frsize - free))
    os.close(fd)


async def main():
    hosts = HostPolicy(("127.0.0.1",))
    inside = ImageServer(root / "images", root / "objects", import_hosts=hosts)
    inside.load()
    server = Server(insecure=True)
    inside.register(server)
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    remote = Remote(f"127.0.0.1:{listener.addresses[0][1]}", None)
    await add_image(remote, NewImage("first", source / "etc"), Progress())
    said = set()
    for number, free in enumerate(range(8192, 4 << 20, 250_000)):
        leave(free)
        try:
            await add_image(remote, NewImage(f"image{number}", source), Progress())
        except SmallStackError as error:
            text = str(error)
            assert "\\n" not in text
            assert "o space left on" in text, text
            said.add(text.partition(":")[0])
            assert f"image{number}" not in inside.catalogue
            assert not list((root / "images").glob("image*"))
            assert not list((root / "objects/.incoming").iterdir())
        filler.unlink(missing_ok=True)
        inside.references.delete_unreferenced(0, 0)
        for hash_, _ in inside.references.unreferenced():
            inside.store.delete(hash_)
    assert said
    await imports(inside, remote)
    assert "first" in inside.catalogue
    await add_image(remote, NewImage("last", source), Progress())
    for name in inside.catalogue.names():
        for hash_ in inside.catalogue.get(name).file_system.objects():
            inside.store.verify(hash_)
    await listener.close(grace=1)
    await inside.close()
    print("said", sorted(said))


async def imports(inside, remote):
    data = os.urandom(3 << 20)
    digest = hashlib.sha512(data).digest()
    # One directory with one file, and the directory's own text: some object finds no room.
    line = f"large/0/420/0/0/{len(data)}/{digest.hex()}\\n".encode()
    root_digest = hashlib.sha512(line).digest()
    files = {f"/blob/{digest.hex()}": data, f"/tree/{root_digest.hex()}": line}

    async def answer(reader, writer):
        path = (await reader.readuntil(b"\\r\\n\\r\\n")).split()[1].decode()
        head = f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(files[path])}\\r\\n\\r\\n"
        writer.write(head.encode() + files[path])
        await writer.drain()
        writer.close()

    web = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}"
    refused = 0
    async with remote.connect() as client:
        for free in (8192, 1 << 20, 2 << 20):
            leave(free)
            reply = await ObjectServerClient(client).import_objects(f"{url}/blob", [digest])
            assert "o space left on" in reply.error, reply
            try:
                await ImageServerClient(client).import_tree(".", f"{url}/tree/{root_digest.hex()}")
            except SmallStackError as error:
                assert "o space left on" in str(error), error
                refused += 1
            assert not list((root / "objects/.incoming").iterdir())
            filler.unlink()
        assert refused == 3
        await ImageServerClient(client).import_tree(".", f"{url}/tree/{root_digest.hex()}")
    web.close()
    assert root_digest.hex() in inside.catalogue


asyncio.run(main())
"""


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    source, image, mount = tmp_path / "source", tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    (source / "etc").mkdir(parents=True)
    for number in range(30):
        (source / f"etc/{number}").write_bytes(bytes([number]) * 20_000)
    (source / "large").write_bytes(b"L" * (2 << 20))
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    script = 'mount -o loop "$0" "$1" && exec "$2" -c "$3" "$1" "$4"'
    done = subprocess.run(
        private_mounts_command(
            ["sh", "-c", script, str(image), str(mount), sys.executable, PROGRAM, str(source)]
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("said")
