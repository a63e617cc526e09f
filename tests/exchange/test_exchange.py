"""Every message both ways between this project's gob and Go's own, over generated values.

Both ends tell each value field by field, and what they tell is compared as well, so that an error
which an encoder and its own decoder share is seen. What this cannot see is a field that the schema
names wrongly, since the declarations are written from it: captures and vectors hold those.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.proto.filesystem import FileSystem
from smallstack.srpc.gob import Decoder, Encoder
from smallstack.srpc.schema import node_of
from tests.exchange.declarations import every_message
from tests.exchange.peer import Peer, PeerError, build, tell
from tests.proto.strategies import values

TYPES: list[Any] = [*every_message(), FileSystem]
AT_A_TIME = 3
"""Values of one type behind each other in a stream, with one description of it."""
STREAMS = int(os.environ.get("SMALLSTACK_EXCHANGE_STREAMS", "4"))
"""Of each type, each way."""


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with Peer(build()) as found:
        yield found


def decoded(stream: bytes, type_: Any, count: int) -> list[Any]:
    decoder = Decoder(keep_mapped=True)
    decoder.feed(stream)
    found = [decoder.decode(type_) for _ in range(count)]
    assert decoder.take_rest() == b""
    return found


def without_zero_pointers(told: list[str]) -> list[str]:
    """Go sends no number that is zero, behind a pointer neither."""
    return [re.sub(r"=&0(?= )", "=nil", line) for line in told]


def test_go_knows_every_type(peer: Peer) -> None:
    assert set(peer.types()) == {node_of(type_).go for type_ in TYPES}


def test_every_message_both_ways(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    sent = received = 0

    def ours_to_go(type_: Any) -> None:
        node = node_of(type_)

        @settings(
            max_examples=STREAMS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(values(node), min_size=AT_A_TIME, max_size=AT_A_TIME))
        def exchange(originals: list[Any]) -> None:
            nonlocal sent
            encoder = Encoder()
            stream = b"".join(encoder.encode(value, type_) for value in originals)
            answer = peer.decode(node.go, len(originals), stream)
            told = [tell(value, node) for value in originals]
            assert answer.told == told
            back = decoded(answer.stream, type_, len(originals))
            assert [tell(value, node) for value in back] == without_zero_pointers(told)
            sent += len(originals)

        exchange()

    def go_to_ours(type_: Any, seed: int) -> None:
        nonlocal received
        node = node_of(type_)
        made = peer.make(node.go, AT_A_TIME, seed)
        found = decoded(made.stream, type_, AT_A_TIME)
        told = [tell(value, node) for value in found]
        assert told == without_zero_pointers(made.told)
        encoder = Encoder()
        stream = b"".join(encoder.encode(value, type_) for value in found)
        assert peer.decode(node.go, AT_A_TIME, stream).told == told
        received += len(found)

    for type_ in TYPES:
        ours_to_go(type_)
        for seed in range(STREAMS):
            go_to_ours(type_, seed)
    with capsys.disabled():
        print(
            f"\ngob exchanged with Go: {len(TYPES)} types, {sent} values from here to there and"
            f" back, {received} from there to here and back"
        )


def test_another_declaration_is_noticed() -> None:
    changed = {
        "hypervisor.VmInfo.Hostname": "[]string",
        "hypervisor.Volume.Size": "uint16",
        "imageserver.CheckImageRequest.ImageName": "string; Unsaid bool",
    }
    with Peer(build(changed)) as peer:

        def exchange(type_: Any, **fields: Any) -> str:
            value = type_(**fields)
            answer = peer.decode(node_of(type_).go, 1, Encoder().encode(value))
            return "" if answer.told == [tell(value, node_of(type_))] else "told otherwise"

        by_name = {node_of(type_).go: type_ for type_ in TYPES}
        with pytest.raises(PeerError, match=r"wrong type.*VmInfo\.Hostname"):
            exchange(by_name["hypervisor.VmInfo"], hostname="a")
        with pytest.raises(PeerError, match="out of range"):
            exchange(by_name["hypervisor.Volume"], size=1 << 16)
        assert exchange(by_name["hypervisor.Volume"], size=1) == ""
        assert exchange(by_name["imageserver.CheckImageRequest"], image_name="a")
