"""The init's HTTP response reader, compiled for this machine under sanitizers."""

import subprocess

import pytest

from .conftest import Build

TOO_LONG, BAD = "error 7", "error 74"


def read(host_program: Build, *pieces: bytes, most: int = 1000) -> str:
    program = host_program("http_tool", ["http_response", "text"])
    done = subprocess.run(
        [str(program), str(most), *(piece.hex() for piece in pieces)],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


WHOLE = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-LENGTH:  5 \r\n\r\nhello"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_response_in_pieces(host_program: Build, size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    assert read(host_program, *pieces) == "200 1 0 hello"


def test_a_body_up_to_the_end_of_the_connection(host_program: Build) -> None:
    assert read(host_program, b"HTTP/1.0 200 OK\n\nab", b"cd") == "200 0 0 abcd"


def test_an_interim_response_is_passed_over(host_program: Build) -> None:
    assert read(host_program, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE) == "200 1 0 hello"


def test_a_response_that_is_cut_off(host_program: Build) -> None:
    assert read(host_program, WHOLE[:-1]) == "200 0 74 hell"
    assert read(host_program, WHOLE[:20]).startswith("200 0 74")
    assert read(host_program, b"") == "0 0 74 "


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/2 200 OK\r\n\r\n", BAD),
        (b"HTTP/1.1 20 OK\r\n\r\n", BAD),
        (b"HTTP/1.1 2000 OK\r\n\r\n", BAD),
        (b"HTTP/1.1 999 OK\r\n\r\n", BAD),
        (b"SSH-2.0-OpenSSH\r\n", BAD),
        (b"\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\n: x\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", TOO_LONG),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", TOO_LONG),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", BAD),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1001, TOO_LONG),
        (b"HTTP/1.1 200 " + b"x" * 2000, TOO_LONG),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000, TOO_LONG),
    ],
)
def test_what_is_refused(host_program: Build, data: bytes, expected: str) -> None:
    assert read(host_program, data).strip() == expected
