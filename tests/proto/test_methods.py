"""The method table, against the lists that other implementations print of themselves."""

from pathlib import Path

import pytest

from smallstack.proto.kinds import Message
from smallstack.proto.methods import METHODS, Shape
from smallstack.srpc.schema import node_of

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"

shared = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured lists in {VECTORS}"),
]


def listed(kind: str, server: str, *services: str) -> set[str]:
    lines = (VECTORS / f"{kind}-{server}.txt").read_text().split()
    return {line for line in lines if line.partition(".")[0] in services}


@pytest.mark.parametrize(
    ("server", "services"),
    [
        pytest.param("hypervisor", ("Hypervisor", "Logger"), marks=shared),
        pytest.param("imageserver", ("ImageServer", "ObjectServer", "Logger"), marks=shared),
    ],
)
def test_every_method_is_known_and_as_public(server: str, services: tuple[str, ...]) -> None:
    ours = [
        method
        for method in METHODS.values()
        if method.service in services and not method.rights_of  # those are this project's own
    ]
    assert {method.name for method in ours} == listed("methods", server, *services)
    assert {method.name for method in ours if method.public} == listed("public", server, *services)


def test_unauthenticated_reads() -> None:
    found = {m.short_name for m in METHODS.values() if m.unauthenticated_read}
    assert {"ListVMs", "GetVmInfo", "GetCapacity", "GetImage", "CheckObjects"} <= found
    assert not found & {"CreateVm", "AddImage", "AddObjects", "DeleteImage", "GetVmUserData"}


def test_shapes() -> None:
    assert METHODS["Hypervisor.CreateVm"].shape is Shape.RAW
    assert METHODS["Hypervisor.ReplaceVmUserData"].shape is Shape.REQUEST_REPLY
    assert METHODS["ObjectServer.GetObjects"].shape is Shape.RAW
    assert METHODS["Hypervisor.StartVm"].service == "Hypervisor"
    assert METHODS["Hypervisor.StartVm"].short_name == "StartVm"


def test_methods_of_our_own_take_the_rights_of_known_ones() -> None:
    own = [method for method in METHODS.values() if method.rights_of]
    assert [method.short_name for method in own] == ["GetCompressedObjects"]
    for method in own:
        known = METHODS[method.rights_of]
        assert method.power == known.power == known.name
        assert method.public == known.public
        assert method.unauthenticated_read == known.unauthenticated_read


def test_messages_have_defaults_and_documentation() -> None:
    for method in METHODS.values():
        for cls in (method.request, method.response):
            if cls is None:
                continue
            assert issubclass(cls, Message)
            assert cls() == cls()
            assert cls.__doc__
            assert node_of(cls).go == f"{cls.go_package}.{cls.go_type or cls.__name__}"


def test_lists_of_two_messages_are_two_lists() -> None:
    cls = METHODS["Hypervisor.ListVMs"].response
    assert cls is not None
    one, other = cls(), cls()
    one.ip_addresses.append("198.51.100.7")  # type: ignore[attr-defined]
    assert other == cls()
