from hypothesis import given
from hypothesis import strategies as st

from smallstack.machine.agent_port import LINE_LIMIT, Reader, Request, Word, request


def test_requests() -> None:
    assert [request(asked) for asked in Request] == [b"stop\n", b"reboot\n", b"ping\n"]


def test_words() -> None:
    reader = Reader()
    assert reader.feed(b"ready\npong\r\nstopping\nrebooting\n") == [
        Word.READY,
        Word.PONG,
        Word.STOPPING,
        Word.REBOOTING,
    ]
    assert reader.skipped == 0


def test_what_is_no_word_is_counted() -> None:
    reader = Reader()
    assert reader.feed(b"\n Ready\nREADY\nready \n\xff\x00\n") == []
    assert reader.skipped == 5
    assert reader.feed(b"ready\n") == [Word.READY]


def test_an_endless_line_takes_no_memory_and_is_one_mistake() -> None:
    reader = Reader()
    for _ in range(1000):
        assert reader.feed(b"x" * 1000) == []
        assert len(reader._line) <= LINE_LIMIT
    assert reader.feed(b"ready\nready\n") == [Word.READY]
    assert reader.skipped == 1


@given(
    st.lists(st.sampled_from([b"ready\n", b"stopping\n", b"junk\n", b"x" * 200 + b"\n", b"\n"])),
    st.lists(st.integers(1, 40)),
)
def test_it_does_not_matter_where_the_bytes_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(lines)
    whole, cut = Reader(), Reader()
    expected = whole.feed(data)
    words = []
    for length in cuts:
        words += cut.feed(data[:length])
        data = data[length:]
    words += cut.feed(data)
    assert words == expected
    assert cut.skipped == whole.skipped
