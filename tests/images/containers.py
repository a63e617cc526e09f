"""Container images for tests, made here: layers, layouts, archives of every known form."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image"
MEDIA = {"": f"{OCI}.layer.v1.tar", "gzip": f"{OCI}.layer.v1.tar+gzip", "zstd": ""}
MEDIA["zstd"] = f"{OCI}.layer.v1.tar+zstd"


@dataclass
class Thing:
    """One member of a layer."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000
    pax: dict[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755, **more: Any) -> Thing:
    return Thing(name, kind=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Thing:
    return Thing(name, kind=tarfile.SYMTYPE, target=target, mode=0o777)


def link(name: str, target: str) -> Thing:
    return Thing(name, kind=tarfile.LNKTYPE, target=target)


def layer(*things: Thing) -> bytes:
    """An uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for thing in things:
            info = tarfile.TarInfo(thing.name)
            info.type, info.linkname, info.mode = thing.kind, thing.target, thing.mode
            info.uid, info.gid, info.mtime = thing.uid, thing.gid, thing.mtime
            info.devmajor, info.devminor = thing.device
            info.size, info.pax_headers = len(thing.data), thing.pax
            made.addfile(info, io.BytesIO(thing.data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def packed(data: bytes, form: str) -> bytes:
    if form == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.ZstdCompressor(level=1).compress(data) if form == "zstd" else data


class Layout:
    """The files of an OCI image layout, by name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.entries: list[dict[str, Any]] = []

    def blob(self, data: bytes, media: str = "", **more: Any) -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        name = digest(data)
        self.files["blobs/" + name.replace(":", "/")] = data
        return {"mediaType": media, "digest": name, "size": len(data), **more}

    def document(self, value: object, media: str, **more: Any) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media, **more)

    def image(
        self,
        layers: Sequence[bytes],
        config: Mapping[str, Any] | None = None,
        *,
        form: str = "gzip",
        architecture: str = "amd64",
    ) -> dict[str, Any]:
        """Keep an image; its manifest's descriptor."""
        described = self.document(
            {
                "architecture": architecture,
                "os": "linux",
                "config": config or {},
                "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
            },
            f"{OCI}.config.v1+json",
        )
        blobs = [self.blob(packed(one, form), MEDIA[form]) for one in layers]
        manifest = {"schemaVersion": 2, "config": described, "layers": blobs}
        return self.document(manifest, f"{OCI}.manifest.v1+json")

    def add(self, descriptor: dict[str, Any], tag: str = "", **more: Any) -> "Layout":
        """Name an image in the index."""
        if tag:
            more["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.entries.append({**descriptor, **more})
        return self

    def all_files(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "manifests": self.entries}
        return {**self.files, "index.json": json.dumps(index).encode()}

    def archive(self) -> bytes:
        return archive_of(self.all_files())

    def write(self, path: Path) -> None:
        for name, data in self.all_files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)


def archive_of(files: Mapping[str, bytes], *more: Thing) -> bytes:
    return layer(*(Thing(name, data) for name, data in files.items()), *more)


def image_archive(
    *layers: bytes, config: Mapping[str, Any] | None = None, form: str = "gzip"
) -> bytes:
    """An OCI archive of one image."""
    layout = Layout()
    return layout.add(layout.image(layers, config, form=form)).archive()


def docker_save(
    layers: Sequence[bytes], config: Mapping[str, Any] | None = None, tag: str = "app:latest"
) -> bytes:
    """What `docker save` wrote before it had layouts: one directory a layer."""
    described = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
        }
    ).encode()
    files: dict[str, bytes] = {}
    names, links = [], []
    for number, data in enumerate(layers):
        above = hashlib.sha256(b"layer %d" % number).hexdigest()
        names.append(f"{above}/layer.tar")
        files[f"{above}/VERSION"] = b"1.0"
        if data in layers[:number]:
            same = names[list(layers).index(data)]
            links.append(symlink(names[-1], f"../{same}"))
        else:
            files[names[-1]] = data
    name = hashlib.sha256(described).hexdigest() + ".json"
    files[name] = described
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": names}]
    files["manifest.json"] = json.dumps(manifest).encode()
    return archive_of(files, *links)
