"""What the init makes of a container's description: imagetool's own, and any other bytes."""

import subprocess

import pytest

from smallstack.images.container import MAX_ARGUMENTS, MAX_GROUPS, describe_container
from smallstack.images.oci_layout import Execution

from .conftest import Build

FIRST = b"smallstack-container=1\0"
REFUSED = "error 74\n"


def parsed(host_program: Build, data: bytes) -> str:
    program = host_program("container_tool", ["container", "text"])
    done = subprocess.run([str(program)], input=data, check=True, capture_output=True)
    return done.stdout.decode()


def test_what_imagetool_writes(host_program: Build) -> None:
    execution = Execution(
        user="app",
        env=["A=b c", "EMPTY=", "PATH=/bin::/opt/bin:" + "x" * 80 + ":/last"],
        entrypoint=["serve", "--port"],
        cmd=["80", "two\nlines", ""],
        working_dir="/srv",
        stop_signal="SIGQUIT",
        labels={"argument": "not one"},
        exposed_ports={},
    )
    files = {
        b"/etc/passwd": b"app:x:1000:50::/home/app:/bin/sh\n",
        b"/etc/group": b"a:x:60:app\nb:x:50:app\nc:x:70:other,app\nd:x:80:apps\n",
    }
    data = describe_container(execution, files, "restart")
    assert parsed(host_program, data) == (
        "end 1 signal 3 user 1000 group 50 directory /srv\n"
        "more 60\nmore 70\n"
        "argument serve\nargument --port\nargument 80\nargument two\nlines\nargument \n"
        f"environment A=b c\nenvironment EMPTY=\n"
        f"environment PATH=/bin::/opt/bin:{'x' * 80}:/last\nenvironment HOME=/home/app\n"
        "path /bin/serve\npath serve\npath /opt/bin/serve\npath \npath /last/serve\n"
    )
    absolute = describe_container(Execution(cmd=["/app"]), {}, "stay")
    assert parsed(host_program, absolute).startswith("end 2 signal 15 user 0 group 0 directory /\n")
    assert parsed(host_program, absolute).endswith("\nenvironment HOME=/\npath /app\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        FIRST,
        FIRST[:-1],
        b"smallstack-container=2\0argument=a\0",
        b"argument=a\0" + FIRST,
        FIRST + b"argument=a",
        FIRST + b"argument=\0",
        FIRST + b"argument=a\0user=\0",
        FIRST + b"argument=a\0user=-1\0",
        FIRST + b"argument=a\0user=4294967295\0",
        FIRST + b"argument=a\0group=99999999999999999999\0",
        FIRST + b"argument=a\0signal=0\0",
        FIRST + b"argument=a\0signal=65\0",
        FIRST + b"argument=a\0directory=srv\0",
        FIRST + b"argument=a\0at-end=never\0",
        FIRST + b"argument=a\0" * (MAX_ARGUMENTS + 1),
        FIRST + b"argument=a\0" + b"environment=A=b\0" * 513,
        FIRST + b"argument=a\0" + b"more-group=1\0" * (MAX_GROUPS + 1),
        FIRST + b"argument=" + b"a" * 65535 + b"\0",
    ],
)
def test_what_is_refused(host_program: Build, data: bytes) -> None:
    assert parsed(host_program, data) == REFUSED


def test_the_bounds_are_those_of_imagetool(host_program: Build) -> None:
    most = Execution(
        cmd=["a"] * MAX_ARGUMENTS, env=[f"V{number}=" for number in range(510)], user="1"
    )
    data = describe_container(most, {}, "stop")
    assert parsed(host_program, data).count("argument a\n") == MAX_ARGUMENTS
