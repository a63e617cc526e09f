"""Go's encoder and decoder as a process: built once by content, kept where builds are kept."""

import hashlib
import ipaddress
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import Time
from smallstack.proto.records import to_record
from smallstack.settings import cache_directory
from smallstack.srpc.schema import Field, Node
from tests.exchange.declarations import declarations

PROGRAM = Path(__file__).parent / "program"
KEPT = 4
"""Builds in the cache: this checkout's and a few of others'."""


class PeerError(Exception):
    """What Go's side says it could not do."""


def build(changed: Mapping[str, str] | None = None) -> Path:
    """The program, with some fields declared otherwise if so asked for."""
    sources = {path.name: path.read_text() for path in PROGRAM.iterdir()} | declarations(changed)
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
    kept = cache_directory() / "exchange"
    program = kept / digest
    if program.exists():
        program.touch()
        return program
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".build-") as made:
        for name, source in sources.items():
            path = Path(made) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        environment = os.environ | {
            "GOCACHE": str(cache_directory() / "go"),
            "GOPATH": str(Path(made) / "path"),
            "GOFLAGS": "-mod=mod",
            "GOPROXY": "off",
            "CGO_ENABLED": "0",
        }
        command = ["go", "build", "-o", f"{made}/.program", "."]
        subprocess.run(command, cwd=made, env=environment, check=True)
        Path(f"{made}/.program").rename(program)
    builds = [path for path in kept.iterdir() if not path.name.startswith(".")]
    for old in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return program


@dataclass
class Answer:
    """Values that Go holds: what it tells of each, and their stream as it writes it."""

    told: list[str]
    stream: bytes


class Peer:
    """One process of the program; a context manager."""

    def __init__(self, program: Path) -> None:
        environment = os.environ | {"TZ": "UTC"}
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def types(self) -> list[str]:
        """Every type there is."""
        return self._ask(b"types\n").split()

    def decode(self, type_: str, count: int, stream: bytes) -> Answer:
        """Values decoded by Go; raises PeerError for a stream that does not fit its type."""
        line = f"decode {type_} {count} {len(stream)}\n"
        return self._answer(self._ask(line.encode() + stream))

    def make(self, type_: str, count: int, seed: int) -> Answer:
        """Values made by Go, the same for the same seed."""
        return self._answer(self._ask(f"make {type_} {count} {seed}\n".encode()))

    def _ask(self, command: bytes) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command)
        self._process.stdin.flush()
        return self._process.stdout.readline().decode()

    def _answer(self, line: str) -> Answer:
        assert self._process.stdout is not None
        verb, _, rest = line.partition(" ")
        if verb != "ok":
            raise PeerError(rest.strip() or "it has ended")
        texts, length = map(int, rest.split())
        told = self._process.stdout.read(texts).decode().splitlines()
        return Answer(told, self._process.stdout.read(length))


def tell(value: Any, node: Node) -> str:
    """All of a value in the words of ``program/tell.go``."""
    match node.kind:
        case "bool":
            return "true" if value else "false"
        case "int" | "uint" | "enum":
            return str(int(value))
        case "string":
            return str(value.encode("utf-8", "surrogateescape").hex())
        case "bytes":
            return bytes(value).hex()
        case "hash":
            return bytes(value).hex()
        case "ip":
            return _address(value).hex()
        case "time":
            return _time(value)
        case "list":
            assert node.elem is not None
            pointer = "&" if node.elem_pointer else ""
            return "[" + "".join(f" {pointer}{tell(each, node.elem)}" for each in value) + " ]"
        case "map":
            assert node.key is not None
            assert node.elem is not None
            pointer = "&" if node.elem_pointer else ""
            entries = sorted(
                f"{tell(key, node.key)}:{pointer}{tell(each, node.elem)}"
                for key, each in value.items()
            )
            return f"{{ {' '.join(entries)} }}"
        case "interface":
            if value is None:
                return "nil"
            name, member = next(
                (name, member) for name, member in node.members.items() if member.cls is type(value)
            )
            return f"{name}&{tell(value, member)}"
        case "tree":
            value = to_record(value) if isinstance(value, FileSystem) else value
    return "(" + "".join(f" {f.wire_name}={_field(value, f)}" for f in node.fields) + " )"


def _field(value: Any, field: Field) -> str:
    found = getattr(value, field.attribute)
    if found is None and field.nullable:
        return "nil"
    return ("&" if field.nullable else "") + tell(found, field.node)


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed if text else b""


def _time(value: Time) -> str:
    zone = "utc" if value.zone_minutes is None else str(value.zone_minutes)
    return f"{value.unix_seconds}.{value.nanoseconds}@{zone}"
