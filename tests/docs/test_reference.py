"""docs/api.json and docs/api.md: current, valid, and true of all messages that JSON is made of."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator

from docs.generate import facts
from docs.generate.schema import name_of
from smallstack.proto.kinds import Message
from smallstack.proto.methods import METHODS
from smallstack.srpc.errors import LocalProtocolError
from smallstack.srpc.json_coder import to_json
from smallstack.srpc.schema import node_of
from tests.docs.strict import complaints, described
from tests.proto.strategies import messages

HERE = Path(__file__).parents[2]
NODES = facts.all_nodes()
MESSAGES: list[type[Message]] = [
    node.cls for go, node in NODES.items() if node.kind == "struct" and not go.startswith("srpc.")
]


def generate(*words: str, at: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "docs.generate", *words],
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_committed_is_current() -> None:
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_current_is_named_and_made(tmp_path: Path) -> None:
    shutil.copytree(HERE / "docs", tmp_path / "docs")
    (tmp_path / "tests").symlink_to(HERE / "tests")
    (tmp_path / "docs" / "api.md").write_text("old")
    stale = generate("--check", at=tmp_path)
    assert (stale.returncode, stale.stderr) == (1, "docs/api.md not current: run ./dev docs\n")
    made = generate(at=tmp_path)
    assert (made.returncode, made.stdout) == (0, "wrote docs/api.md\n")
    assert generate("--check", at=tmp_path).returncode == 0


def test_the_document_is_openapi() -> None:
    OpenAPIV31SpecValidator(described()).validate()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_described(name: str) -> None:
    method = METHODS[name]
    if method.service:
        operation = described()["paths"][f"/{name}"]["post"]
        assert operation["x-shape"] == method.shape.value
        assert ("requestBody" in operation) == (method.request is not None)


def test_every_number_says_what_it_counts() -> None:
    mute = [
        f"{go}.{field.wire_name}"
        for go, node in NODES.items()
        for field in node.fields
        if facts.is_number(field.node)
        and not facts.unit_of(field)
        and not facts.doc_of_field(node.cls, field.attribute)
    ]
    assert mute == []


def test_every_message_says_what_it_is() -> None:
    assert [cls for cls in MESSAGES if not facts.doc_of(cls)] == []


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: f"{cls.go_package}.{cls.__name__}")
def test_what_the_coder_writes_is_as_described(cls: type[Message]) -> None:
    component = name_of(node_of(cls))

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages(cls))
    def check(value: Message) -> None:
        try:
            text = to_json(value)
        except LocalProtocolError:
            return  # a year that RFC 3339 has no text for
        assert complaints(component, json.loads(text)) == []

    check()


@pytest.mark.parametrize(
    ("component", "value", "complaint"),
    [
        ("ListVMsResponse", {}, "$: 'IpAddresses' is a required property"),
        ("ListVMsResponse", {"IpAddresses": None}, "None is not of type 'array'"),
        ("ListVMsResponse", {"IpAddresses": ["198.51.100"]}, "not valid under any"),
        ("ListVMsRequest", {"IgnoreStateMask": -1}, "-1 is less than the minimum of 0"),
        ("StartVmRequest", {"Dhcp": 1}, "'Dhcp' was unexpected"),
        ("CreateVmRequest", {"State": "asleep"}, "'asleep' is not one of"),
        ("GetImageExpirationResponse", {"Error": "", "ExpiresAt": "soon"}, "is not a 'date-time'"),
    ],
)
def test_what_is_wrong_is_noticed(component: str, value: Any, complaint: str) -> None:
    assert complaint in "\n".join(complaints(component, value))
