"""Container images from anywhere: a sound tree, or one line of error.

The first byte says what the rest is: a whole archive; layers (each behind its length in two bytes)
in an archive whose digests are right; or, in one that is right otherwise, the index, the manifest,
Docker's manifest, or the configuration, which then is what a container VM is described by.
"""

import io
import json
import stat

from smallstack.images.container import describe_container
from smallstack.images.errors import OciError, TarError
from smallstack.images.oci import from_container
from smallstack.images.oci_archive import DOCKER_MANIFEST, INDEX, archive
from smallstack.images.oci_layout import Choice, Execution, find_image
from tests.fuzz.fuzz_tar import EnoughError, HashingSink
from tests.images.containers import OCI, Layout, archive_of, layer

MOST = 4 << 20
"""Bytes that layers may unpack to."""


def one_input(data: bytes) -> None:
    """Read an image; whatever comes of it must hold together, and come again."""
    form, body = data[:1], data[1:]
    if form == b"a":
        whole = body
    elif form == b"l":
        whole = _of_layers(body)
    elif form in _DOCUMENTS:
        whole = _DOCUMENTS[form](body)
    else:
        return
    sink = HashingSink()
    try:
        with archive(io.BytesIO(whole)) as (files, _):
            if files is None:
                return
            image = find_image(files, Choice())
            tree = from_container(image, sink, most=MOST)
            execution = image.config.config or Execution()
    except EnoughError:
        return
    except (OciError, TarError) as error:
        assert "\n" not in str(error)
        return
    assert tree.objects() == sink.sizes
    for path, index in tree.walk():
        assert not {b"", b".", b".."} & set(path.split(b"/")[1:]) or path == b"/"
        names = [name for name, _ in tree.children(index)]
        assert names == sorted(set(names))
        assert not names or stat.S_ISDIR(tree.inode(index).mode)
    with archive(io.BytesIO(whole)) as (files, _):
        assert files is not None
        again = from_container(find_image(files, Choice()), HashingSink(), most=MOST)
    assert (again.inodes, again.entries, again.blob) == (tree.inodes, tree.entries, tree.blob)
    try:
        described = describe_container(execution, {b"/etc/passwd": body}, "stop")
    except OciError as error:
        assert "\n" not in str(error)
        return
    assert described.startswith(b"smallstack-container=1\0")
    assert described.endswith(b"\0")


def _of_layers(body: bytes) -> bytes:
    layers: list[bytes] = []
    while len(body) >= 2 and len(layers) < 8:
        end = 2 + int.from_bytes(body[:2], "little")
        layers.append(body[2:end])
        body = body[end:]
    layout = Layout()
    return layout.add(layout.image(layers, form="")).archive()


def _with_index(body: bytes) -> bytes:
    layout = Layout()
    layout.image([layer()])
    return archive_of({**layout.all_files(), INDEX: body})


def _with_manifest(body: bytes) -> bytes:
    layout = Layout()
    layout.image([layer()])
    return layout.add(layout.blob(body, f"{OCI}.manifest.v1+json")).archive()


def _with_docker_manifest(body: bytes) -> bytes:
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}})
    return archive_of({"config.json": config.encode(), DOCKER_MANIFEST: body})


def _with_config(body: bytes) -> bytes:
    layout = Layout()
    config = layout.blob(body, f"{OCI}.config.v1+json")
    manifest = {"schemaVersion": 2, "config": config, "layers": []}
    return layout.add(layout.document(manifest, f"{OCI}.manifest.v1+json")).archive()


_DOCUMENTS = {
    b"i": _with_index,
    b"m": _with_manifest,
    b"d": _with_docker_manifest,
    b"c": _with_config,
}
