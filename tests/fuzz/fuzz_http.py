"""The first bytes of a connection: heads of requests and answers, endpoints, method lines."""

from smallstack.srpc import framing


def one_input(data: bytes) -> None:
    """Parse as everything that could stand there; raises only for a bug."""
    try:
        head = framing.parse_request_head(data)
    except framing.FramingError as error:
        assert "\n" not in str(error)
    else:
        if head is None:
            assert len(data) < framing.MAX_HEAD
        else:
            assert 0 < head.size <= min(len(data), framing.MAX_HEAD)
            assert "\n" not in head.method + head.path + head.query
            framing.find_endpoint(head.path)
            framing.wants_no_powers(head.query)
            assert framing.parse_request_head(data[: head.size]) == head
            for cut in (0, head.size // 2, head.size - 1):
                assert framing.parse_request_head(data[:cut]) is None
    try:
        reply = framing.parse_reply_head(data)
    except framing.FramingError as error:
        assert "\n" not in str(error)
    else:
        assert reply is None or 0 <= reply.code <= 999
    for line in data.split(b"\n")[:4]:
        try:
            framing.split_method(line)
        except framing.MethodLineError as error:
            text = framing.error_line(str(error))
            assert text.count(b"\n") == 1
            assert text.endswith(b"\n")
