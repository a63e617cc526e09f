"""Which image of a container archive is meant, what it is made of, and its layers, verified.

Image layout, index, manifest and configuration are those of the OCI image specification 1.1; an
archive of ``docker save`` has Docker's ``manifest.json``, the only one where older ones have no
index. Every blob is read against its digest and its size, every layer against the digest of what it
unpacks to (``diff_ids`` of the configuration) as well: a changed byte is an error, whoever changed
it. Documents, their nesting and their numbers are bounded.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from smallstack.images.decompress import CHUNK, Readable, decompressed
from smallstack.images.errors import OciError
from smallstack.images.oci_archive import DOCKER_MANIFEST, INDEX, Files
from smallstack.telemetry.errors import describe

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of an index, a manifest or a configuration; what registries take."""
MAX_MANIFESTS: Final = 1024
MAX_LAYERS: Final = 512
MAX_UNPACKED: Final = 256 << 30
"""Bytes that the layers of an image unpack to."""
_MAX_DEPTH: Final = 4
_INDEXES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS: Final = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_LAYER: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar)([.+](gzip|zstd))?"
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_NAMED_BY_DIGEST: Final = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?")
_REF: Final = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME: Final = "io.containerd.image.name"
Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
T = TypeVar("T")


class Platform(Struct, rename="camel"):
    """What a manifest runs on."""

    architecture: str = ""
    os: str = ""


class Descriptor(Struct, rename="camel"):
    """A blob by its digest."""

    digest: str
    size: Size
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Index(Struct, rename="camel"):
    """Manifests, and further indexes."""

    manifests: list[Descriptor]


class Manifest(Struct, rename="camel"):
    """One image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: list[Descriptor]


class DockerManifest(Struct, rename="pascal"):
    """One image in the ``manifest.json`` of `docker save`: names of files."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class RootFs(Struct):
    """Digests of the unpacked layers, the lowest first."""

    diff_ids: list[str]


class Execution(Struct, rename="pascal"):
    """What a container runs."""

    user: str | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class Config(Struct):
    """An image's configuration."""

    rootfs: RootFs
    architecture: str = ""
    os: str = ""
    config: Execution | None = None


class Layer(Struct):
    """A layer's file; an older `docker save` gives neither its digest nor its size."""

    name: str
    diff_id: str
    digest: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which of an archive's images is meant: the only one for a platform, or the one of a name."""

    tag: str = ""
    architecture: str = "amd64"


class Limited:
    """Bytes that may still be unpacked."""

    def __init__(self, left: int = MAX_UNPACKED) -> None:
        self.most = left
        self.left = left

    def take(self, size: int) -> None:
        """Raises OciError when there are no more."""
        self.left -= size
        if self.left < 0:
            raise OciError(detail=f"its layers unpack to more than {self.most} bytes")


class ContainerImage:
    """One image of an archive."""

    def __init__(self, files: Files, config: Config, layers: list[Layer]) -> None:
        self.config = config
        self.layers = layers
        self._files = files

    @contextmanager
    def layer(self, number: int, limit: Limited) -> Iterator[Readable]:
        """A layer, unpacked. Its end reads what is left and compares; raises OciError, TarError."""
        layer = self.layers[number]
        with self._files.open(layer.name) as (file, size):
            packed = _Checked(file, layer.digest, size if layer.size is None else layer.size)
            plain = _Checked(decompressed(packed), layer.diff_id, None, limit)
            yield plain
            plain.finish(f"layer {number + 1}, unpacked,")
            packed.finish(f"layer {number + 1}")


def find_image(files: Files, choice: Choice) -> ContainerImage:
    """The image that is meant; raises OciError."""
    if INDEX in files:
        return _find_oci(files, choice)
    if DOCKER_MANIFEST in files:
        return _find_docker(files, choice)
    raise OciError(detail=f"it has neither {INDEX} nor {DOCKER_MANIFEST}")


def _find_oci(files: Files, choice: Choice) -> ContainerImage:
    index = _parse(_document(files, INDEX), Index, INDEX)
    found: dict[str, tuple[Descriptor, set[str]]] = {}
    for descriptor, names in _manifests(files, index):
        _, known = found.setdefault(descriptor.digest, (descriptor, set()))
        known |= names
    tags = sorted({name for _, names in found.values() for name in names})
    wanted = list(found.values())
    if choice.tag:
        wanted = [(one, names) for one, names in wanted if choice.tag in names]
        if not wanted:
            has = f"it has {', '.join(map(repr, tags[:8]))}" if tags else "it has none"
            raise OciError(detail=f"it has no image of the tag {choice.tag!r}: {has}")
    images = []
    platforms = set()
    for one, names in wanted:
        if one.platform is not None and not _runs(one.platform, choice):
            platforms.add(f"{one.platform.os}/{one.platform.architecture}")
            continue
        image = _open_manifest(files, one)
        if image is None:
            continue
        if _runs(image.config, choice):
            images.append((image, names))
        else:
            platforms.add(f"{image.config.os}/{image.config.architecture}")
    return _only(images, choice, platforms)


def _manifests(files: Files, index: Index) -> Iterator[tuple[Descriptor, set[str]]]:
    """Every manifest below an index, with the names it and what it is in have."""
    stack: list[tuple[Descriptor, frozenset[str], int]] = [
        (one, frozenset(), 0) for one in reversed(index.manifests)
    ]
    seen = 0
    while stack:
        one, above, depth = stack.pop()
        seen += 1
        if seen > MAX_MANIFESTS:
            raise OciError(detail=f"it has more than {MAX_MANIFESTS} manifests")
        notes = one.annotations or {}
        names = above | {notes[key] for key in (_REF, _CONTAINERD_NAME) if key in notes}
        if one.media_type in _INDEXES:
            if depth >= _MAX_DEPTH:
                raise OciError(detail=f"its indexes are nested more than {_MAX_DEPTH} deep")
            below = _parse(_blob(files, one), Index, f"index {one.digest}")
            stack += [(inner, names, depth + 1) for inner in reversed(below.manifests)]
        elif one.media_type in _MANIFESTS:
            yield one, set(names)


def _open_manifest(files: Files, descriptor: Descriptor) -> ContainerImage | None:
    """What a manifest names; None for one of something else than an image."""
    manifest = _parse(_blob(files, descriptor), Manifest, f"manifest {descriptor.digest}")
    if manifest.config.media_type not in _CONFIGS:
        return None
    config = _parse(_blob(files, manifest.config), Config, "configuration")
    layers = []
    for number, (layer, diff_id) in enumerate(_paired(manifest.layers, config), 1):
        if not _LAYER.fullmatch(layer.media_type):
            raise OciError(
                detail=f"layer {number} is of the type {layer.media_type[:100]!r}, which is no "
                "file-system layer"
            )
        layers.append(Layer(_path(layer), diff_id, layer.digest, layer.size))
    return ContainerImage(files, config, layers)


def _find_docker(files: Files, choice: Choice) -> ContainerImage:
    entries = _parse(_document(files, DOCKER_MANIFEST), list[DockerManifest], DOCKER_MANIFEST)
    images: list[tuple[ContainerImage, set[str]]] = []
    platforms = set()
    for entry in entries[:MAX_MANIFESTS]:
        tags = set(entry.repo_tags or [])
        if choice.tag and choice.tag not in tags:
            continue
        data = _document(files, entry.config)
        named = _NAMED_BY_DIGEST.fullmatch(entry.config)
        if named and hashlib.sha256(data).hexdigest() != named[1]:
            raise OciError(detail=f"its file {entry.config} is damaged: it has another SHA-256")
        config = _parse(data, Config, "configuration")
        if not _runs(config, choice):
            platforms.add(f"{config.os}/{config.architecture}")
            continue
        layers = [Layer(name, diff_id) for name, diff_id in _paired(entry.layers, config)]
        images.append((ContainerImage(files, config, layers), tags))
    if choice.tag and not images and not platforms:
        tags = {tag for entry in entries for tag in entry.repo_tags or []}
        has = ", ".join(map(repr, sorted(tags)[:8]))
        raise OciError(detail=f"it has no image of the tag {choice.tag!r}: it has {has or 'none'}")
    return _only(images, choice, platforms)


def _only(
    images: list[tuple[ContainerImage, set[str]]], choice: Choice, platforms: set[str]
) -> ContainerImage:
    if not images:
        has = f"it has {', '.join(sorted(platforms)[:8])}" if platforms else "it has no image"
        raise OciError(detail=f"it has no image for linux/{choice.architecture}: {has}")
    if len(images) > 1:
        names = sorted({name for _, tags in images for name in tags})
        which = f": name one of {', '.join(map(repr, names[:8]))} by --oci-tag" if names else ""
        raise OciError(detail=f"it has {len(images)} images for linux/{choice.architecture}{which}")
    return images[0][0]


def _runs(on: Platform | Config, choice: Choice) -> bool:
    return on.os == "linux" and on.architecture == choice.architecture


def _paired(layers: list[T], config: Config) -> list[tuple[T, str]]:
    if len(layers) > MAX_LAYERS:
        raise OciError(detail=f"it has {len(layers)} layers; {MAX_LAYERS} are the most")
    diff_ids = config.rootfs.diff_ids
    if len(layers) != len(diff_ids):
        raise OciError(
            detail=f"it has {len(layers)} layers, but digests of {len(diff_ids)} in its "
            "configuration"
        )
    for diff_id in diff_ids:
        _check_digest(diff_id)
    return list(zip(layers, diff_ids, strict=True))


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise OciError(detail=f"{digest[:100]!r} is no SHA-256 or SHA-512 digest")


def _path(descriptor: Descriptor) -> str:
    _check_digest(descriptor.digest)
    return "blobs/" + descriptor.digest.replace(":", "/")


def _blob(files: Files, descriptor: Descriptor) -> bytes:
    """A document by its descriptor; raises OciError."""
    data = _document(files, _path(descriptor))
    if len(data) != descriptor.size:
        raise OciError(
            detail=f"{descriptor.digest} has {len(data)} bytes where {descriptor.size} are named"
        )
    algorithm, _, digest = descriptor.digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != digest:
        raise OciError(detail=f"its file {_path(descriptor)} is damaged: it has another digest")
    return data


def _document(files: Files, name: str) -> bytes:
    with files.open(name) as (file, size):
        if size > MAX_DOCUMENT:
            raise OciError(
                detail=f"its file {name!r} has {size} bytes; {MAX_DOCUMENT} are the most"
            )
        data = b""
        while len(data) < size and (more := file.read(size - len(data))):
            data += more
    if len(data) < size:
        raise OciError(detail=f"its file {name!r} ends too early")
    return data


def _parse(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OciError(detail=f"its {what} is not as it should be: {describe(error)}") from None


class _Checked:
    """Bytes on their way, counted and digested; ``size`` None: as many as there are."""

    def __init__(
        self, file: Readable, digest: str, size: int | None, limit: Limited | None = None
    ) -> None:
        algorithm, _, self._digest = digest.partition(":")
        self._hash = hashlib.new(algorithm) if digest else None
        self._file = file
        self._size = size
        self._limit = limit
        self._count = 0

    def read(self, size: int, /) -> bytes:
        """See `Readable`."""
        if self._size is not None:
            size = min(size, self._size - self._count)
        data = self._file.read(size) if size else b""
        self._count += len(data)
        if self._limit is not None:
            self._limit.take(len(data))
        if self._hash is not None:
            self._hash.update(data)
        return data

    def finish(self, what: str) -> None:
        """Read to the end and compare; raises OciError."""
        while self.read(CHUNK):
            pass
        if self._size is not None and (self._count != self._size or self._file.read(1)):
            raise OciError(detail=f"{what} does not have the {self._size} bytes that are named")
        if self._hash is not None and self._hash.hexdigest() != self._digest:
            raise OciError(detail=f"{what} is damaged: it has another digest")
