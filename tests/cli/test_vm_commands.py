"""What vm-control and hyper-control make of their command lines, without a Hypervisor."""

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from smallstack.cli.breakdown import picture, stages, table
from smallstack.cli.hyper.add_address import make_addresses
from smallstack.cli.hyper_control import group as hyper_control
from smallstack.cli.tags import parse_tags
from smallstack.cli.transcript import Transcript
from smallstack.cli.vm.create_vm import MAX_OVERLAY, read_overlay, read_user_data
from smallstack.cli.vm_control import COMMANDS
from smallstack.cli.vm_control import group as vm_control
from smallstack.control.create import Created
from smallstack.telemetry.timeline import Phase


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create-vm", "--image-name", "x"], "a VM needs a name"),
        (["create-vm", "--hostname", "x"], "no image"),
        (
            ["create-vm", "--hostname", "x", "--image-name", "a", "--image-url", "http://h/"],
            "several images: leave --image-url out",
        ),
        (
            ["create-vm", "--hostname", "x", "--image-file", "a", "--overlay-directory", "/etc"],
            "an overlay goes only over --image-name",
        ),
        (["create-vm", "--hostname", "x", "--image-format", "vhdx"], "--image-format"),
        (["create-vm", "--hostname", "x", "--image-name", "x", "--tag", "k"], "'--tag': 'k' is no"),
        (["create-vm", "--memory", "some"], "'--memory': 'some' is no size"),
        (["create-vm", "--memory", "-5M"], "'--memory': '-5M' is no size"),
        (["create-vm", "--min-free-bytes", "100000000T"], "'--min-free-bytes': "),
        (["create-vm", "--milli-cpus", "-4"], "'--milli-cpus': -4 is not in"),
        (["create-vm", "--virtual-cpus", "99999999999999999999"], "'--virtual-cpus': 999"),
        (["create-vm", "--roundup-power", "-1"], "'--roundup-power': -1 is not in"),
        (["create-vm", "--dhcp-timeout", "-1s"], "'--dhcp-timeout': '-1s' is no duration"),
        (["get-vm-info"], "Missing argument 'IP'"),
        (["get-vm-info", "bogus"], "'IP': 'bogus' is no IPv4 address"),
        (["start-vm", "198.51.100.300"], "'IP': '198.51.100.300' is no IPv4 address"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(vm_control, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.endswith(f"; see `vm-control {words[0]} --help`\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["no-such-command"], ["--no-such-option"]])
def test_what_a_tool_does_not_have_is_named(words: list[str]) -> None:
    result = CliRunner().invoke(vm_control, words)
    assert result.exit_code == 2
    assert f"'{words[0]}'; see `vm-control --help`\n" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_tool_alone_shows_its_help() -> None:
    result = CliRunner().invoke(vm_control, [])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: vm-control [OPTIONS] COMMAND")


def test_every_command_can_be_asked_for_help() -> None:
    for name in COMMANDS:
        result = CliRunner().invoke(vm_control, [name, "--help"])
        assert result.exit_code == 0, (name, result.output)


def test_hyper_control_refuses_nonsense() -> None:
    for words, said in (
        (["add-address", "", ""], "needs a MAC, an IP or both"),
        (["add-address", "52:54:00:00:00:01", "x"], "'x' is no IPv4 address"),
        (["add-subnet", "lan", "x", "y", "z"], "'GATEWAY': 'x' is no IPv4 address"),
        (["add-subnet", "lan", "198.51.100.1", "y", "z"], "'MASK': 'y' is no IPv4 address"),
    ):
        result = CliRunner().invoke(hyper_control, words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_no_certificate_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smallstack.cli.vm_control"]
    done = subprocess.run(
        [*command, "--cert-directory", str(tmp_path), "list-vms"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"vm-control: no certificate in {tmp_path}")
    assert done.stderr.count("\n") == 1


def test_what_a_tool_writes_is_out_before_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smallstack.cli.vm_control", "--help"]
    with (tmp_path / "help").open("w") as file:
        assert subprocess.run(command, stdout=file, check=True).returncode == 0
    assert (tmp_path / "help").read_text().endswith("one of these logs\n")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"vm-control: cannot write the output: No space left on device\n"


def test_client_tools_stay_light() -> None:
    """What is imported at the start of every create."""
    code = (
        "import sys, smallstack.cli.vm_control, smallstack.cli.vm.create_vm\n"
        "heavy = {'aiohttp', 'pyroute2', 'matplotlib', 'cryptography', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_address_ranges() -> None:
    found = make_addresses("", "198.51.100.2-198.51.100.4")
    assert [a.ip_address for a in found] == ["198.51.100.2", "198.51.100.3", "198.51.100.4"]
    assert found[0].mac_address == "52:54:c6:33:64:02"
    for wrong in ("198.51.100.4-198.51.100.2", "198.51.100", "0.0.0.0-255.255.255.255"):
        with pytest.raises(click.BadParameter):
            make_addresses("", wrong)


def test_tags_and_overlay(tmp_path: Path) -> None:
    assert parse_tags(("a=1", "a=2", "b=x=y")) == {"a": ["1", "2"], "b": ["x=y"]}
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "motd").write_bytes(b"hello\n")
    assert read_overlay(tmp_path) == (["/etc"], {"/etc/motd": b"hello\n"})
    assert read_overlay(None) == ([], {})


def test_what_has_no_end_is_not_read_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read_user_data(Path("/dev/zero"))
    assert "user data /dev/zero has over 256 MiB" in capsys.readouterr().err
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(SystemExit):
        read_overlay(tmp_path)
    assert "neither a directory nor a regular file" in capsys.readouterr().err


def test_an_overlay_has_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_OVERLAY + 1)
    with pytest.raises(SystemExit):
        read_overlay(tmp_path)
    assert "over 32 MiB: make an image" in capsys.readouterr().err


def test_transcript_has_time_stamps() -> None:
    stream = io.StringIO()
    Transcript(stream).line("getting image")
    stamp, _, text = stream.getvalue().partition(" getting ")
    assert len(stamp) == len("2026/01/31 10:02:07")
    assert text == "image\n"


def example() -> Created:
    second = 10**9
    return Created(
        ip="198.51.100.2",
        connect_started_ns=5 * second,
        acknowledged_ns=5 * second + 400_000_000,
        messages=[
            (0.01, "getting image"),
            (0.02, "unpacking image: x"),
            (0.05, "starting VM 198.51.100.2"),
        ],
        timeline=[Phase("tap", 5 * second + 30_000_000, 5 * second + 34_000_000)],
    )


def test_breakdown_adds_up() -> None:
    parts = stages(example())
    assert [name for name, _ in parts] == ["connect", "get image", "unpack", "start to DHCP ACK"]
    assert sum(seconds for _, seconds in parts) == pytest.approx(0.4)
    text = table(example(), 0.5)
    assert "1.216 s" in text
    assert "tap" in text
    assert "350.0 ms" in text


def test_picture_is_drawn(tmp_path: Path) -> None:
    picture(example(), tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")
