"""Words of the command line become numbers, or one clear line."""

import click
import pytest

from smallstack.cli.options import parse_bytes, parse_duration, parse_mib, run, with_port
from smallstack.srpc.client import split_address
from smallstack.telemetry.errors import SmallStackError


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("500ms", 5 * 10**8),
        ("10s", 10**10),
        ("1m", 6 * 10**10),
        ("2h", 72 * 10**11),
        ("3", 3 * 10**9),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "m", "1d", "ten", "1 0x", "-5s", "nan", "inf", "3000000h"])
def test_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 500ms"):
        parse_duration(text)


def test_sizes() -> None:
    assert parse_mib("128") == 128
    assert parse_mib("128M") == parse_mib("128MiB") == 128
    assert parse_mib("1G") == 1024
    assert parse_bytes("16K") == 16384
    assert parse_bytes("7") == 7
    for text in ("", "M", "lots", "1e999G", "nan", "-5M", "100000000T"):
        with pytest.raises(click.BadParameter, match="write 128M"):
            parse_bytes(text)


def test_memory_is_at_least_a_mebibyte() -> None:
    for text in ("0", "512K"):
        with pytest.raises(click.BadParameter, match="less than 1 MiB"):
            parse_mib(text)


@pytest.mark.parametrize(
    ("address", "whole", "split"),
    [
        ("host", "host:6976", ("host", 6976)),
        ("host:1", "host:1", ("host", 1)),
        ("198.51.100.1", "198.51.100.1:6976", ("198.51.100.1", 6976)),
        ("::1", "[::1]:6976", ("::1", 6976)),
        ("2001:db8::6971", "[2001:db8::6971]:6976", ("2001:db8::6971", 6976)),
        ("[::1]", "[::1]:6976", ("::1", 6976)),
        ("[::1]:1", "[::1]:1", ("::1", 1)),
        ("host*rack-7", "host*rack-7:6976", ("host", 6976)),
        ("host*rack-7:1", "host*rack-7:1", ("host", 1)),
        ("198.51.100.1*a*b:1", "198.51.100.1*a*b:1", ("198.51.100.1", 1)),
    ],
)
def test_ports(address: str, whole: str, split: tuple[str, int]) -> None:
    assert with_port(address, 6976) == whole
    assert split_address(whole) == split


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        raise SmallStackError(detail="it did\nnot work")

    with pytest.raises(SystemExit) as status:
        run(work())
    assert status.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(": it did not work\n")
    assert err.count("\n") == 1
