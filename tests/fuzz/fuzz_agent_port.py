"""What a guest writes on the agent's port: any bytes, cut anywhere, give the same words."""

from smallstack.machine.agent_port import LINE_LIMIT, Reader


def one_input(data: bytes) -> None:
    if not data:
        return
    cut, data = data[0] + 1, data[1:]
    whole, pieces = Reader(), Reader()
    expected = whole.feed(data)
    words = []
    for start in range(0, len(data), cut):
        words += pieces.feed(data[start : start + cut])
        assert len(pieces._line) <= LINE_LIMIT
    assert words == expected
    assert pieces.skipped == whole.skipped
