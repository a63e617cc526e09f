"""``docs/methods.md``: every method, its shape, who may call it, whether it answers, its test.

What is served is what the daemons' own services register, and what is not done yet is what answers
so. The test is the one that says most of the method; one that stands there already is kept as long
as it speaks of the method, so that no other test's growth changes the page.
"""

import ast
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Final, cast

import smallstack.client
from smallstack.daemon.logger import LoggerService
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.methods.later import LATER, Later
from smallstack.hypervisor.service import Service
from smallstack.imageserver.daemon import ImageServer
from smallstack.proto.methods import METHODS, Method, Shape
from smallstack.srpc.server import Server

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "methods.md"
INTRODUCTION: Final = """\
# Methods

Made by `./dev docs` from the table of methods, from what the daemons register, and from the tests;
do not edit it, but for the last column: a test named there is kept while it speaks of the method.
The messages are in [api.md](api.md). *power*: the method has to be granted, by the certificate or
by trust; *any user*: whoever has a name, and for what belongs to somebody the owner, their groups,
and who has a power.
"""
_SHAPES: Final = {
    Shape.REQUEST_REPLY: "request, reply",
    Shape.RAW: "stream",
    Shape.CODER: "stream of values",
}
_TESTS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("srpc",),
    "Hypervisor": ("hypervisor", "integration"),
    "ImageServer": ("imageserver", "integration"),
    "Logger": ("daemon",),
    "ObjectServer": ("imageserver", "integration"),
}
"""Where the tests of a service are."""
_OF_ALL: Final = ("test_methods.py", "test_rights.py")
"""Tests that go through every method."""
EVERY: Final = "tests/integration/test_methods.py"
"""The test that asks a real agent for every method, of what it refuses for now as well."""
_ROW: Final = re.compile(r"\| `([^`]+)` \|.*\| `(tests/[^`]+)` \|")


def document() -> str:
    """The text of docs/methods.md."""
    kept = dict(_ROW.findall(PAGE.read_text())) if PAGE.is_file() else {}
    served = registered()
    lines = [INTRODUCTION]
    for service in sorted({method.service for method in METHODS.values()}):
        methods = [method for method in METHODS.values() if method.service == service]
        done = sum(status(method, served) == "answers" for method in methods)
        title = service or "Without a service"
        lines += [f"## {title}", "", f"{done} of {len(methods)} answer.", ""]
        lines += ["| method | shape | rights | status | test |", "|---|---|---|---|---|"]
        for method in sorted(methods, key=lambda method: method.name):
            test = test_of(method, kept.get(method.name, ""))
            lines.append(
                f"| `{method.name}` | {_SHAPES[method.shape]} | {rights(method)} "
                f"| {status(method, served)} | {f'`{test}`' if test else 'none'} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


@cache
def registered() -> frozenset[str]:
    """The full names of what both daemons serve."""
    image_server, hypervisor = Server(insecure=True), Server(insecure=True)
    for server in (image_server, hypervisor):
        server.register("Logger", LoggerService().handlers())
    with tempfile.TemporaryDirectory() as place:
        inside = ImageServer(Path(place) / "images", Path(place) / "objects")
        inside.register(image_server)
        inside.store.close()
    # Handlers know their agent only once they are called.
    hypervisor.register("Hypervisor", Service(cast("Agent", None)).handlers())
    return frozenset([*image_server.method_names(), *hypervisor.method_names()])


def status(method: Method, served: Iterable[str]) -> str:
    """Whether it answers, and if not, what to do in its place."""
    if method.name not in served:
        return "not served"
    later = Later(cast("Agent", None)).handlers() if method.service == "Hypervisor" else {}
    if method.short_name in later:
        return f"answers “not supported yet: {LATER[method.short_name]}”"
    return "answers"


def rights(method: Method) -> str:
    """Who may call it."""
    if method.rights_of:
        return f"those of `{method.rights_of}`"
    who = "any user" if method.public else "power"
    if not method.service:
        return "whoever is on the same machine"
    return f"{who}, or anybody with open reads" if method.unauthenticated_read else who


def test_of(method: Method, kept: str) -> str:
    """The path of the test that holds a method; "" when none speaks of it."""
    if method.service == "Hypervisor" and method.short_name in LATER:
        return EVERY
    texts = _texts(_TESTS[method.service])
    said = {path: len(_words(method).findall(text)) for path, text in texts.items()}
    if said.get(kept):
        return kept
    best = max(said, key=lambda path: (said[path], path), default="")
    return best if said.get(best) else EVERY if method.service == "Hypervisor" else ""


@cache
def _texts(directories: tuple[str, ...]) -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for directory in directories
        for path in sorted((ROOT / "tests" / directory).glob("test_*.py"))
        if path.name not in _OF_ALL
    }


def _words(method: Method) -> re.Pattern[str]:
    """How a test calls a method: by its name, by its request, or by a client's function."""
    short = method.short_name
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", short.replace("VMs", "Vms")).lower()
    functions = "|".join(sorted({snake, *_functions().get(method.name, ())}))
    # A single word, such as Print, is a method's name only in quotation marks.
    name = rf"\b{short}\b" if sum(map(str.isupper, short)) > 1 else rf'[".]{short}"'
    return re.compile(rf"{name}|\b{short}Request\b|\.(?:{functions})\(")


@cache
def _functions() -> dict[str, set[str]]:
    """The functions of the clients that name a method, by its full name."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(smallstack.client.__path__[0]).glob("*.py")):
        for client in ast.parse(path.read_text()).body:
            if not isinstance(client, ast.ClassDef):
                continue
            service = next(
                (
                    str(one.value.value)
                    for one in client.body
                    if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
                ),
                "",
            )
            for function in client.body:
                for part in ast.walk(function):
                    if not isinstance(part, ast.Constant) or not isinstance(part.value, str):
                        continue
                    name = part.value if "." in part.value else f"{service}.{part.value}"
                    if name in METHODS and isinstance(function, ast.AsyncFunctionDef):
                        found.setdefault(name, set()).add(function.name)
    return found
