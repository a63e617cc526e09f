"""The appliance as a guest: what it says, does, runs, and how it ends."""

import http.client
import http.server
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guest import (
    GUEST_IP,
    KERNEL_ARGUMENTS,
    OUR_IP,
    OUR_MAC,
    Guest,
    Wire,
    file_system_problems,
    make_disk,
)

pytestmark = pytest.mark.qemu

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
METADATA_NET = "net=169.254.0.0/16,host=169.254.0.2,dns=169.254.0.3,dhcpstart=169.254.10.15"


@pytest.fixture(scope="session")
def kernel(appliance: Path) -> Path:
    return next((appliance / "root" / "boot").glob("vmlinuz-*"))


@pytest.fixture(scope="session")
def plain_disk(appliance: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    disk = tmp_path_factory.mktemp("disk") / "plain.raw"
    make_disk(appliance / "root", disk)
    return disk


@pytest.fixture
def disk(plain_disk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(plain_disk, tmp_path / "disk.raw"))


class Metadata(http.server.ThreadingHTTPServer):
    """A metadata server on the loopback interface; `pages` by path, others are 404."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        self.cut: dict[str, int] = {}
        """Bytes after which the first answer for a path ends too early."""
        asked, cut = self.asked, self.cut

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                body = pages.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write((body or b"")[: cut.pop(self.path, None)])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def netdev(self) -> str:
        forward = "guestfwd=tcp:169.254.169.254:80-cmd:"
        forward += f"/bin/busybox nc 127.0.0.1 {self.server_port}"
        return f"user,id=net0,{METADATA_NET},{forward}"


Serve = Callable[[dict[str, bytes]], Metadata]
DOCUMENT = b'{\n    "Address": {\n        "IpAddress": "169.254.10.15"\n    }\n}\n'
DOCUMENT_PATH = "/latest/dynamic/instance-identity/document"


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[Metadata, threading.Thread]] = []

    def start(pages: dict[str, bytes]) -> Metadata:
        server = Metadata({DOCUMENT_PATH: DOCUMENT} | pages)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ready_identity_shell_and_page(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    server, port = serve({}), free_port()
    netdev = server.netdev + f",hostfwd=tcp:127.0.0.1:{port}-169.254.10.15:80"
    with Guest(kernel, disk, tmp_path, netdev=netdev) as guest:
        ready = guest.wait_line("smallstack: ready ")
        assert ready.startswith("ip=169.254.10.15 boot_ms=")
        begin, end = "smallstack: identity-begin\n", "smallstack: identity-end\n"
        guest.wait_console(end)
        assert guest.console.split(begin)[1].split(end)[0] == DOCUMENT.decode()
        assert server.asked == ["/latest/user-data", DOCUMENT_PATH]
        assert "no user data" not in guest.console

        assert guest.run("hostname").strip() == "appliance"
        mounts = guest.run("mount")
        for mount in (
            "/dev/root on / type ext4 (rw,",
            "on /proc type proc",
            "on /sys type sysfs",
            "on /dev type devtmpfs",
            "on /dev/pts type devpts",
            "on /dev/shm type tmpfs",
            "on /run type tmpfs",
            "on /tmp type tmpfs",
        ):
            assert mount in mounts
        assert "job control" not in guest.console
        assert guest.run("ps -o stat= | grep -c Z").strip() == "0"
        assert "127.0.0.1/8" in guest.run("ip addr show lo")

        page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        page.request("GET", "/")
        assert b"SmallStack" in page.getresponse().read()
        page.close()
        page.request("GET", "/cgi-bin/status")
        assert b"address  169.254.10.15/16" in page.getresponse().read()
        page.close()


def test_the_shell_comes_again(kernel: Path, disk: Path, tmp_path: Path, serve: Serve) -> None:
    with Guest(kernel, disk, tmp_path, netdev=serve({}).netdev) as guest:
        guest.wait_console("# ")
        guest.type("exit\n")
        guest.wait_console("# ", count=2)


@pytest.mark.parametrize(
    ("asked", "said"), [("stop", "stopping"), ("reboot", "rebooting"), ("STOP\r", "stopping")]
)
def test_the_agent_ends_the_guest(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve, asked: str, said: str
) -> None:
    with Guest(kernel, disk, tmp_path, netdev=serve({}).netdev) as guest:
        guest.connect_agent()
        assert guest.agent_line() == "ready"
        guest.agent_say("ping")
        assert guest.agent_line() == "pong"
        guest.agent_say("nonsense")
        guest.run("echo something > /root/file; trap '' TERM HUP")
        guest.agent_say(asked)
        assert guest.agent_line() == said
        assert guest.agent_line() == ""
        assert guest.wait_end() == 0
        assert "smallstack: going down\n" in guest.console
        assert "panic" not in guest.console
    assert file_system_problems(disk) == ""


def test_an_agent_that_comes_late_or_twice(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    with Guest(kernel, disk, tmp_path, netdev=serve({}).netdev) as guest:
        guest.wait_console("# ")
        guest.connect_agent()
        assert guest.agent_line() == "ready"
        for _ in range(3):
            assert guest.agent is not None
            guest.agent.close()
            guest.connect_agent()
            guest.agent_say("ping")
            # A connection that ends and begins between two looks of the guest gets no greeting.
            assert guest.agent_line() in {"ready", "pong"}


@pytest.mark.parametrize(("command", "said"), [("poweroff", "stopping"), ("reboot", "rebooting")])
def test_busybox_can_end_the_guest(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve, command: str, said: str
) -> None:
    with Guest(kernel, disk, tmp_path, netdev=serve({}).netdev) as guest:
        guest.connect_agent()
        guest.wait_console("# ")
        guest.type(command + "\n")
        assert [guest.agent_line(), guest.agent_line()] == ["ready", said]
        assert guest.wait_end() == 0
    assert file_system_problems(disk) == ""


def test_a_process_that_will_not_end_is_killed(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    script = b"#!/bin/sh\ntrap '' TERM HUP INT\necho now-deaf\nwhile :; do sleep 1000; done\n"
    server = serve({"/latest/user-data": script})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        guest.connect_agent()
        guest.wait_console("now-deaf")
        guest.agent_say("stop")
        assert [guest.agent_line(), guest.agent_line()] == ["ready", "stopping"]
        assert guest.wait_end() == 0
    assert file_system_problems(disk) == ""


def test_a_script_as_user_data(kernel: Path, disk: Path, tmp_path: Path, serve: Serve) -> None:
    script = b"#!/bin/sh\necho out of $0 on $(hostname)\n(sleep 0 &)\nexit 3\n"
    server = serve({"/latest/user-data": script})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        guest.wait_console("out of /run/user-data on appliance")
        guest.wait_console("smallstack: /run/user-data ended with status 3")
        assert guest.run("ps -o stat= | grep -c Z").strip() == "0"


PROGRAM = """
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>
int main(int count, char **arguments)
{
    struct utsname name;
    uname(&name);
    printf("%s as %d of %d under %s\\n", arguments[0], getuid(), count, name.sysname);
    return 0;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary static program."""
    directory = tmp_path_factory.mktemp("program")
    (directory / "program.c").write_text(PROGRAM)
    subprocess.run(
        ["gcc", "-static", "-O1", "-o", str(directory / "program"), str(directory / "program.c")],
        check=True,
    )
    return directory / "program"


def test_a_program_as_user_data(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve, program: Path
) -> None:
    server = serve({"/latest/user-data": program.read_bytes()})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        guest.wait_console("/run/user-data as 0 of 1 under Linux")
        guest.wait_console("smallstack: /run/user-data ended with status 0")


def test_a_transfer_that_is_cut_begins_anew(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    script = b"#!/bin/sh\n" + b"# padding\n" * 2000 + b"echo has $(wc -c <$0) bytes\n"
    server = serve({"/latest/user-data": script})
    server.cut.update({"/latest/user-data": 7000, DOCUMENT_PATH: 20})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        guest.wait_console(f"has {len(script)} bytes")
        assert server.asked.count("/latest/user-data") == 2
        assert server.asked.count(DOCUMENT_PATH) == 2
        begin, end = "smallstack: identity-begin", "smallstack: identity-end"
        printed = guest.console.partition(begin)[2].partition(end)[0]
        assert printed.replace("\r", "").strip() == DOCUMENT.decode().strip()


def test_other_user_data_is_only_kept(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    server = serve({"/latest/user-data": b"#cloud-config\n"})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        assert guest.run("cat /run/user-data") == "#cloud-config\n"
        assert "ended" not in guest.console


def test_the_program_of_the_image(
    appliance: Path, kernel: Path, tmp_path: Path, serve: Serve, program: Path
) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk.raw"
    shutil.copytree(appliance / "root", root, symlinks=True)
    shutil.copy(program, root / "etc" / "smallstack" / "run")
    (root / "etc" / "smallstack" / "run").chmod(0o755)
    make_disk(root, disk)
    with Guest(kernel, disk, tmp_path, netdev=serve({}).netdev) as guest:
        guest.wait_console("/etc/smallstack/run as 0 of 1 under Linux")
        guest.wait_console("smallstack: /etc/smallstack/run ended with status 0")


def test_without_a_metadata_server_the_shell_comes_all_the_same(
    kernel: Path, disk: Path, tmp_path: Path
) -> None:
    netdev = f"user,id=net0,{METADATA_NET}"
    with Guest(kernel, disk, tmp_path, netdev=netdev) as guest:
        guest.wait_console("smallstack: ready ")
        guest.wait_console("# ")


def test_an_endless_document_is_refused(
    kernel: Path, disk: Path, tmp_path: Path, serve: Serve
) -> None:
    server = serve({DOCUMENT_PATH: b"x" * 100_000})
    with Guest(kernel, disk, tmp_path, netdev=server.netdev) as guest:
        guest.wait_console("smallstack: no identity document (error 7)")
        guest.wait_console("# ")


def test_a_panic_resets_without_a_word(kernel: Path, disk: Path, tmp_path: Path) -> None:
    arguments = KERNEL_ARGUMENTS.replace("init=/sbin/init", "init=/nothing")
    with Guest(kernel, disk, tmp_path, arguments=arguments) as guest:
        guest.connect_agent()
        assert guest.agent_line() == ""
        assert guest.wait_end() == 0
        assert "Kernel panic - not syncing: Requested init /nothing failed" in guest.console


LEASE = (
    (1, socket.inet_aton("255.255.255.0")),
    (3, socket.inet_aton(OUR_IP)),
    (6, socket.inet_aton(OUR_IP)),
    (12, b"vm-7"),
    (15, b"example.org"),
    (26, struct.pack(">H", 1400)),
)


def seconds(number: int) -> tuple[int, bytes]:
    return (51, struct.pack(">I", number))


def test_the_lease_is_taken_over_and_renewed(kernel: Path, disk: Path, tmp_path: Path) -> None:
    with Wire(tmp_path) as wire, Guest(kernel, disk, tmp_path, netdev=wire.netdev) as guest:
        query = wire.next_dhcp()
        assert (query.kind, query.source) == (DISCOVER, bytes(4))
        assert query.to_mac == b"\xff" * 6
        wire.answer(query, OFFER, *LEASE, seconds(8))
        query = wire.next_dhcp()
        assert query.kind == REQUEST
        assert query.options[50] == socket.inet_aton(GUEST_IP)
        wire.answer(query, ACK, *LEASE, seconds(8))
        assert guest.wait_line("smallstack: ready ").startswith(f"ip={GUEST_IP} ")

        query = wire.next_dhcp()  # at T1: from the address, to the server alone
        assert (query.kind, query.client) == (REQUEST, socket.inet_aton(GUEST_IP))
        assert query.source == socket.inet_aton(GUEST_IP)
        assert query.to_mac == OUR_MAC
        wire.answer(query, ACK, *LEASE, seconds(3600))

        assert guest.run("hostname").strip() == "vm-7"
        assert guest.run("cat /etc/resolv.conf") == f"search example.org\nnameserver {OUR_IP}\n"
        routes = guest.run("ip route")
        assert f"default via {OUR_IP} dev eth0" in routes
        assert "169.254.169.254 dev eth0 scope link" in routes
        assert "mtu 1400" in guest.run("ip link show eth0")
        assert guest.console.count("smallstack: ready") == 1


def test_a_refused_renewal_begins_anew(kernel: Path, disk: Path, tmp_path: Path) -> None:
    with Wire(tmp_path) as wire, Guest(kernel, disk, tmp_path, netdev=wire.netdev) as guest:
        query = wire.next_dhcp()
        wire.answer(query, ACK, *LEASE, seconds(4), (80, b""))  # rapid commit
        guest.wait_console("smallstack: ready ")
        query = wire.next_dhcp()
        assert query.kind == REQUEST
        wire.answer(query, NAK)
        query = wire.next_dhcp()
        assert (query.kind, query.source) == (DISCOVER, bytes(4))
        wire.answer(query, ACK, *LEASE, seconds(3600), (80, b""))
        assert f"inet {GUEST_IP}/24" in guest.run("ip addr show eth0")


def test_silence_and_refusals_before_a_lease(kernel: Path, disk: Path, tmp_path: Path) -> None:
    with Wire(tmp_path) as wire, Guest(kernel, disk, tmp_path, netdev=wire.netdev) as guest:
        first, second = wire.next_dhcp(), wire.next_dhcp()
        assert (first.kind, second.kind) == (DISCOVER, DISCOVER)
        assert first.xid == second.xid
        wire.answer(second, OFFER, *LEASE)
        query = wire.next_dhcp()
        while query.kind != REQUEST:  # one more may have been on its way
            query = wire.next_dhcp()
        wire.answer(query, NAK)
        query = wire.next_dhcp()
        assert query.kind == DISCOVER
        assert query.xid != first.xid
        wire.answer(query, ACK, *LEASE, (80, b""))
        assert guest.wait_line("smallstack: ready ").startswith(f"ip={GUEST_IP} ")
