"""Every command of the client tools as a user runs it: a process, over TLS, on real guests."""

import asyncio
import hashlib
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from smallstack.cli.hyper_control import COMMANDS as HYPER_CONTROL
from smallstack.cli.imagetool import COMMANDS as IMAGETOOL
from smallstack.cli.vm_control import COMMANDS as VM_CONTROL
from smallstack.identity import pki
from tests.integration.cloud import BRIDGE, IMAGE, Cloud

pytestmark = [pytest.mark.root, pytest.mark.qemu]

ALL = {"vm-control": VM_CONTROL, "hyper-control": HYPER_CONTROL, "imagetool": IMAGETOOL}
DOCUMENT = "/latest/dynamic/instance-identity/document"
SMALL = ["--image-name", IMAGE, "--memory", "128M", "--milli-cpus", "10", "--min-free-bytes", "16M"]


class Tools:
    """The tools, as the user with every power; remembers which commands were used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.used: set[tuple[str, str]] = set()

    def command(self, tool: str, *words: str | Path) -> list[str]:
        self.used.add((tool, str(words[0])))
        module = f"smallstack.cli.{tool.replace('-', '_')}"
        keys = ["--cert-directory", str(self.directory / "pki" / "user")]
        return [sys.executable, "-m", module, *keys, *map(str, words)]

    def run(self, tool: str, *words: str | Path) -> str:
        """Standard output of a command that succeeds and has nothing else to say."""
        out, err = self.tell(tool, *words)
        assert err == ""
        return out

    def tell(self, tool: str, *words: str | Path) -> tuple[str, str]:
        """Standard output and standard error of a command that succeeds."""
        command = self.command(tool, *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def start(self, tool: str, *words: str | Path) -> subprocess.Popen[str]:
        """A command that goes on; what it says on either stream comes from its ``stdout``."""
        return subprocess.Popen(
            self.command(tool, *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


async def test_every_command_of_every_tool(cloud: Cloud, tmp_path: Path) -> None:
    assert cloud.image_server is not None
    await cloud.image_server.stop()
    await cloud.start_image_server(import_hosts="127.0.0.1")
    tools = Tools(cloud.directory)
    for walk in (
        hypervisor,
        machine,
        changes,
        volumes,
        disk_images,
        display,
        life,
        console,
        metadata,
        images,
        check,
    ):
        await asyncio.to_thread(walk, tools, tmp_path)
    assert tools.used == {(tool, name) for tool, commands in ALL.items() for name in commands}
    async with cloud.client() as client:
        (other,) = [found for found in await client.list_subnets() if found.id == "other"]
    assert (other.ip_gateway, other.ip_mask) == ("203.0.113.1", "255.255.255.0")
    assert (other.domain_name_servers, other.domain_name) == (["203.0.113.53"], "example.test")


def hypervisor(tools: Tools, tmp_path: Path) -> None:
    subnet = ["other", "203.0.113.1", "255.255.255.0", "203.0.113.53"]
    tools.run("hyper-control", "add-subnet", *subnet, "--domain-name", "example.test")
    tools.run("hyper-control", "add-address", "", "203.0.113.10-203.0.113.11")
    capacity = json.loads(tools.run("hyper-control", "get-capacity", "--format", "json"))
    assert capacity["cpus"] >= 1
    assert capacity["memory_mib"] >= capacity["available_memory_mib"] > 128
    stopped = ["--hostname", "other", "--subnet-id", "other", "--do-not-start", *SMALL]
    ip = tools.tell("vm-control", "create-vm", *stopped)[0].strip()
    assert ip in {"203.0.113.10", "203.0.113.11"}
    tools.run("vm-control", "destroy-vm", ip)


def machine(tools: Tools, tmp_path: Path) -> None:
    """The Hypervisor itself."""
    assert tools.run("hyper-control", "list-subnets").splitlines() == [
        "other 203.0.113.1 255.255.255.0",
        "test 198.51.100.1 255.255.255.0",
    ]
    assert tools.run("hyper-control", "list-volume-directories").endswith("/volumes\n")
    assert "BEGIN PUBLIC KEY" in tools.run("hyper-control", "get-public-key")
    assert refused(tools, "hyper-control", "get-identity-provider") == (
        "hyper-control: no identity provider: start the hypervisor with --identity-provider URL\n"
    )
    tools.run("hyper-control", "change-owners", "--user", "boss", "--group", "site")
    tools.run("hyper-control", "change-owners")
    tools.run("hyper-control", "disable")
    told = json.loads(tools.run("hyper-control", "get-updates", "--count", "1"))
    assert told["Disabled"]
    tools.run("hyper-control", "enable")
    tools.run("hyper-control", "register-external-leases", "52:54:00:00:00:01;203.0.113.99")
    tools.run("hyper-control", "register-external-leases")
    tools.run("hyper-control", "hold-lock", "1ms")
    tools.run("hyper-control", "add-subnet", "last", "192.0.2.1", "255.255.255.0")
    tools.run("hyper-control", "add-address", "", "192.0.2.10-192.0.2.13")
    tools.run("hyper-control", "remove-excess-addresses", "3", "last")
    tools.run("hyper-control", "remove-ip-address", "192.0.2.10")
    assert "192.0.2.11" in refused(tools, "hyper-control", "remove-subnet", "last")
    tools.run("hyper-control", "remove-mac-address", "52:54:c0:00:02:0b")
    tools.run("hyper-control", "remove-excess-addresses", "0", "last")
    tools.run("hyper-control", "remove-subnet", "last")
    told = json.loads(tools.run("hyper-control", "get-updates", "--count", "1"))
    assert [subnet["Id"] for subnet in told["Subnets"]] == ["other", "test"]
    assert not [address for address in told["AddressPool"] if "192.0.2." in address["IpAddress"]]


def refused(tools: Tools, tool: str, *words: str) -> str:
    """What a command says that fails."""
    done = subprocess.run(tools.command(tool, *words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def stopped(tools: Tools) -> str:
    """The address of a new VM that was not started."""
    words = ["--hostname", "changes", "--subnet-id", "other", "--do-not-start", *SMALL]
    return tools.tell("vm-control", "create-vm", *words)[0].strip()


def changes(tools: Tools, tmp_path: Path) -> None:
    """What a VM is, and whose."""
    ip = stopped(tools)
    for command, *words in (
        ["change-vm-tags", "Name=other", "a=b"],
        ["change-vm-hostname", "other"],
        ["change-vm-cpu-priority", "5"],
        ["change-vm-destroy-protection", "true"],
        ["change-vm-memory", "192M"],
        ["change-vm-cpus", "20"],
        ["change-vm-vcpus", "1"],
        ["change-vm-console-type", "dummy"],
        ["change-vm-machine-type", "q35"],
        ["change-vm-num-network-queues", "2"],
        ["change-vm-volume-interfaces", "nvme"],
        ["change-vm-owner-users", "olga", "user"],
        ["change-vm-owner-groups", "crew"],
    ):
        assert tools.run("vm-control", command, ip, *words) == ""
    info = json.loads(tools.run("vm-control", "get-vm-info", ip))
    wanted = {
        "Tags": {"Name": "other", "a": "b"},
        "Hostname": "other",
        "CpuPriority": 5,
        "DestroyProtection": True,
        "MemoryInMiB": 192,
        "MilliCPUs": 20,
        "VirtualCPUs": 1,
        "ConsoleType": "dummy",
        "MachineType": "q35",
        "NetworkEntries": [{"NumQueues": 2}],
        "OwnerUsers": ["user", "olga"],
        "OwnerGroups": ["crew"],
    }
    assert {name: info[name] for name in wanted} == wanted
    assert info["Volumes"][0]["Interface"] == "nvme"
    assert "already are the primary owner" in refused(
        tools, "vm-control", "become-primary-vm-owner", ip
    )
    assert len(tools.run("vm-control", "get-vm-access-token", ip, "--lifetime", "1m")) == 65
    tools.run("vm-control", "discard-vm-access-token", ip)
    assert json.loads(tools.run("vm-control", "get-vm-create-request", ip))["Hostname"] == "changes"
    data = tmp_path / "data"
    data.write_text("mine")
    tools.run("vm-control", "replace-vm-user-data", ip, data)
    assert tools.run("vm-control", "get-vm-user-data", ip) == "mine"
    tools.run("vm-control", "get-vm-user-data", ip, tmp_path / "got")
    assert (tmp_path / "got").read_text() == "mine"
    assert "no old user data" in refused(tools, "vm-control", "restore-vm-user-data", ip)
    tools.run("vm-control", "discard-vm-old-user-data", ip)
    robot = pki.issue(pki.make_ca(tmp_path / "others"), "robot").write(tmp_path / "robot")
    tools.run("vm-control", "replace-vm-credentials", ip, *robot)
    assert json.loads(tools.run("vm-control", "get-vm-info", ip))["IdentityName"] == "robot"
    said = refused(tools, "vm-control", "replace-vm-identity", ip, str(robot[0]))
    assert "identity provider" in said, said
    tools.run("hyper-control", "hold-vm-lock", ip, "1ms")
    moved = tools.run("vm-control", "change-vm-subnet", ip, "test").strip()
    assert moved.startswith("198.51.100.")
    tools.run("vm-control", "destroy-vm", moved)


def volumes(tools: Tools, tmp_path: Path) -> None:
    ip = stopped(tools)
    tools.run("vm-control", "add-vm-volumes", ip, "1M", "2M")
    tools.run("vm-control", "reorder-vm-volumes", ip, "2", "1")
    tools.run("vm-control", "delete-vm-volume", ip, "2")
    tools.run("vm-control", "change-vm-volume-size", ip, "1", "4M")
    tools.run("vm-control", "change-vm-volume-storage-index", ip, "1", "0")
    shown = json.loads(tools.run("vm-control", "get-vm-volume-storage-configuration", ip))
    assert shown["VolumeStorageIndices"] == [0, 0]
    tools.run("vm-control", "snapshot-vm", ip, "kept")
    tools.run("vm-control", "restore-vm-from-snapshot", ip, "kept", "--retain")
    tools.run("vm-control", "discard-vm-snapshot", ip, "kept")
    place = tmp_path / "volume"
    for sent in (4 << 20, 4096):
        _, err = tools.tell("vm-control", "get-vm-volume", ip, "1", place)
        assert (place.stat().st_size, err) == (4 << 20, f"{sent} bytes were sent\n")
        os.truncate(place, (4 << 20) - 4096)
    assert "there is no volume 7" in refused(tools, "vm-control", "get-vm-volume", ip, "7", "x")
    tools.run("vm-control", "destroy-vm", ip)


def disk_images(tools: Tools, tmp_path: Path) -> None:
    """A disk from a file, with what is told on the way; files that are none."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"disk" * 1_000_000)
    stopped = ["--hostname", "disk", "--subnet-id", "test", "--do-not-start", *SMALL[2:]]
    words = ["--image-file", str(disk), "--root-size", "8M", *stopped]
    out, err = tools.tell("vm-control", "create-vm", *words)
    assert "getting image" in err
    assert "sent 3 of 3 MiB of the image" in err
    info = json.loads(tools.run("vm-control", "get-vm-info", out.strip()))
    assert info["Volumes"][0]["Size"] == 8 << 20
    tools.run("vm-control", "destroy-vm", out.strip())
    for path, told in ((tmp_path / "none", "No such file"), (Path("/dev/null"), "no regular file")):
        command = tools.command("vm-control", "create-vm", "--image-file", str(path), *stopped)
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert (failed.stderr.count("cannot read"), told in failed.stderr) == (1, True)


def display(tools: Tools, tmp_path: Path) -> None:
    """Of a VM that has nothing to boot; and its monitor, by which it is ended."""
    words = ["--hostname", "display", "--subnet-id", "test", "--do-not-start", *SMALL]
    ip = tools.tell("vm-control", "create-vm", *words)[0].strip()
    assert "no VNC console" in refused(tools, "vm-control", "connect-to-vm-console", ip, "--once")
    tools.run("vm-control", "change-vm-console-type", ip, "vnc")
    tools.run("vm-control", "start-vm", ip, "--dhcp-timeout", "0s")
    showing = tools.start("vm-control", "connect-to-vm-console", ip, "--once")
    assert showing.stdout
    host, _, port = showing.stdout.readline().split()[6].partition(":")
    with socket.create_connection((host, int(port))) as viewer:
        assert viewer.recv(12) == b"RFB 003.008\n"
    assert (showing.stdout.read(), showing.wait()) == ("", 0)
    showing.stdout.close()
    done = subprocess.run(
        tools.command("vm-control", "connect-to-vm-manager", ip),
        input='{"execute": "query-name"}\n{"execute": "quit"}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    told = map(json.loads, done.stdout.splitlines())
    assert next(line for line in told if "event" not in line) == {"return": {"name": ip}}
    tools.run("vm-control", "destroy-vm", ip)


def life(tools: Tools, tmp_path: Path) -> None:
    watching = tools.start("hyper-control", "watch-dhcp", "--max-packets", "1")
    words = ["--hostname", "first", "--subnet-id", "test", "--probe-port", "80", *SMALL]
    out, err = tools.tell("vm-control", "create-vm", *words, "--trace-metadata")
    ip = out.removesuffix("\n")
    for line in ("getting image", f"starting VM {ip}", "Received DHCP ACK", "Port 80 is open"):
        assert line in err
    assert tools.run("vm-control", "list-vms") == f"{ip}\n"
    info = json.loads(tools.run("vm-control", "get-vm-info", ip))
    assert (info["Hostname"], info["State"], info["ImageName"]) == ("first", "running", IMAGE)
    infos = tools.run("vm-control", "get-vm-infos").splitlines()
    assert infos[1].split()[:4] == [ip, "running", "first", IMAGE]
    assert json.loads(tools.run("vm-control", "get-vm-infos", "--format", "json")) == [info]
    out, err = tools.tell("vm-control", "probe-vm-port", ip, "80")
    assert (out, "Port 80 is open" in err) == ("", True)
    shut = tools.command("vm-control", "probe-vm-port", ip, "81", "--timeout", "50ms")
    done = subprocess.run(shut, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"port 81 of {ip}" in done.stderr.lower()
    for name in ("reboot-vm", "start-vm"):
        assert "Port 80 is open" in tools.tell("vm-control", name, ip, "--probe-port", "80")[1]
        if name == "reboot-vm":
            logs = tools.run("vm-control", "list-vm-virtualiser-log-files", ip).split()
            assert logs[::2] == ["qemu.log", "qemu.log.old"]
            tools.run("vm-control", "get-vm-virtualiser-log-file", ip, "qemu.log")
            tools.run("vm-control", "stop-vm", ip)
            assert json.loads(tools.run("vm-control", "get-vm-info", ip))["State"] == "stopped"
    assert watching.stdout
    bridge, packet = watching.stdout.read().split()
    assert (bridge, watching.wait()) == (BRIDGE, 0)
    assert bytes.fromhex(packet)[:3] == b"\x01\x01\x06", "a client's request, over Ethernet"
    watching.stdout.close()


def console(tools: Tools, tmp_path: Path) -> None:
    """On a terminal: it says how to leave, shows the console's history, leaves by the key.

    Without one, and nothing to type, it shows what there is until the VM is gone.
    """
    ip = tools.run("vm-control", "list-vms").strip()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = tools.command("vm-control", "connect-to-vm-serial-port", ip)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    seen = b""
    while b"smallstack: ready" not in seen:
        seen += os.read(ours, 65536)
    assert seen.startswith(f"connected to {ip}; detach with Ctrl-]\r\n".encode())
    assert termios.tcgetattr(theirs) != before
    os.write(ours, b"\x1d")
    assert process.wait() == 0
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout
    seen = b""
    while b"smallstack: ready" not in seen:
        data = os.read(process.stdout.fileno(), 65536)
        assert data, seen
        seen += data
    tools.run("vm-control", "destroy-vm", ip)
    process.communicate()
    assert process.returncode == 0


def metadata(tools: Tools, tmp_path: Path) -> None:
    """Both ways to watch a guest that asks again and again; both end with the VM."""
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\nwhile true; do wget -qO /dev/null http://169.254.169.254{DOCUMENT}; done\n"
    )
    words: list[str | Path] = [
        "--hostname",
        "asks",
        "--subnet-id",
        "test",
        "--user-data",
        program,
        *SMALL,
    ]
    creating = tools.start("vm-control", "create-vm", *words, "--trace-metadata")
    assert creating.stdout
    told = next(line for line in creating.stdout if DOCUMENT in line)
    assert told.endswith(f" {DOCUMENT}\n")
    ip = tools.run("vm-control", "list-vms").strip()
    tracing = tools.start("vm-control", "trace-vm-metadata", ip)
    assert tracing.stdout
    assert tracing.stdout.readline() == f"{DOCUMENT}\n"
    tools.run("vm-control", "destroy-vm", ip)
    assert tracing.stdout.read().endswith("VM destroyed\n")
    assert creating.stdout.read().endswith(f"VM destroyed\n{ip}\n")
    for process in (tracing, creating):
        assert process.wait() == 0
        assert process.stdout
        process.stdout.close()


def images(tools: Tools, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "motd").write_text("hello\n")
    tools.run("imagetool", "mkdir", "-p", "crew/site")
    assert "crew/site" in tools.run("imagetool", "listdirs")
    assert "1 files" in tools.run("imagetool", "add", "crew/site/one", source, "--tag", "a=b")
    assert tools.run("imagetool", "list", "crew") == "crew/site/one\n"
    shown = json.loads(tools.run("imagetool", "show", "crew/site/one", "--format", "json"))
    assert (shown["files"], shown["tags"]) == (1, {"a": "b"})
    for name in ("find-latest", "find-latest-image"):
        assert tools.run("imagetool", name, "crew/site") == "crew/site/one\n"
    tools.run("imagetool", "get", "crew/site/one", tmp_path / "copy")
    assert (tmp_path / "copy" / "motd").read_text() == "hello\n"
    assert tools.run("imagetool", "diff", "crew/site/one", "crew/site/one") == ""
    manifest = tmp_path / "manifest"
    (manifest / "files/etc").mkdir(parents=True)
    (manifest / "files/etc/built").write_text("built\n")
    (manifest / "manifest").write_text('{"SourceImage": "crew/site/one"}')
    assert "crew/site/built" in tools.tell("imagetool", "build", "crew/site/built", manifest)[0]
    assert "/etc/built" in tools.run("imagetool", "show", "--files", "crew/site/built")
    tools.run("imagetool", "delete", "crew/site/built")
    tools.run("imagetool", "patch-directory", "crew/site/one", tmp_path / "copy")
    tools.run("imagetool", "tar", "crew/site/one", tmp_path / "one.tar")
    tools.run("imagetool", "check", "crew/site/one", "--verify")
    assert "(together)" in tools.run("imagetool", "usage")
    assert tools.run("imagetool", "listunrefobj").startswith("hash")
    tools.run("imagetool", "delunrefobj", "0")
    assert "usage_bytes" in tools.run("imagetool", "estimate-usage", "crew/site/one")
    for name in ("expire", "change-image-expiration", "get-image-expiration"):
        assert tools.run("imagetool", name, "crew/site/one") == "never\n"
    tools.run("imagetool", "get-archive", "crew/site/one", tmp_path / "archive")
    following = tools.start("imagetool", "get-image-updates")
    assert following.stdout
    told = [line.strip() for line in iter(following.stdout.readline, "INITIAL list received\n")]
    assert told[0] == "DIR: ."
    assert "INIT: crew/site/one" in told
    tools.run("imagetool", "delete", "crew/site/one")
    assert following.stdout.readline() == "DELETE: crew/site/one\n"
    tools.run("imagetool", "restore-archive", tmp_path / "archive")
    assert following.stdout.readline() == "ADD: crew/site/one\n"
    with serving(tmp_path) as port:
        name = imported(tools, tmp_path, port)
        assert following.stdout.readline() == f"ADD: {name}\n"
    following.kill()
    following.communicate()
    speed = tools.run("imagetool", "test-bandwidth", "--duration", "10ms", "--to-server")
    assert re.fullmatch(r"\S+ MB to the server in \S+ s: \S+ MB/s\n", speed)
    tools.run("imagetool", "mkdir", "other")
    tools.run("imagetool", "chown", "other", "crew")
    assert re.search(r"^other\s+crew$", tools.run("imagetool", "listdirs"), re.MULTILINE)
    tools.run("imagetool", "rmdir", "other")
    assert "other" not in tools.run("imagetool", "listdirs")
    for left in ("crew/site/one", name):
        tools.run("imagetool", "delete", left)
    assert tools.run("imagetool", "list") == f"{IMAGE}\n"


@contextmanager
def serving(directory: Path) -> Iterator[int]:
    """A web server of a directory's files; its port."""
    handler = partial(QuietHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def imported(tools: Tools, tmp_path: Path, port: int) -> str:
    """An image of a tree on a web server; its name."""
    motd = b"imported\n"
    line = f"motd/0/420/0/0/{len(motd)}/{hashlib.sha512(motd).hexdigest()}\n".encode()
    for kind, data in (("blob", motd), ("tree", line)):
        (tmp_path / "fs" / kind).mkdir(parents=True)
        (tmp_path / "fs" / kind / hashlib.sha512(data).hexdigest()).write_bytes(data)
    digest = hashlib.sha512(line).hexdigest()
    url = f"http://127.0.0.1:{port}/fs/tree/{digest}"
    name = tools.run("imagetool", "import-fs-tree", "crew/site", url).strip()
    assert name == f"crew/site/{digest}"
    assert "/motd" in tools.run("imagetool", "show", "--files", name)
    (tmp_path / "digests").write_text(f"{hashlib.sha512(motd).hexdigest()}\n")
    url = f"http://127.0.0.1:{port}/fs/blob"
    told = tools.run("imagetool", "import-objects", url, tmp_path / "digests")
    assert told == "1 objects, 0 of them new (0 bytes)\n"
    return name


def check(tools: Tools, tmp_path: Path) -> None:
    """Of this machine, where both daemons' ports are taken and all that they need is there."""
    command = [sys.executable, "-m", "smallstack.cli.smallstack", "check", "--format", "json"]
    done = subprocess.run(
        [*command, "--state-dir", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    found = {row["what"]: row for row in json.loads(done.stdout)}
    for name in ("root", "QEMU", "ip", "unshare", "tun", "nftables"):
        assert found[name]["verdict"] == "ok", found[name]
    for name in ("port 6971", "port 6976"):
        assert (found[name]["verdict"], "in use" in found[name]["detail"]) == ("note", True)
    assert found["accelerator"]["verdict"] in {"ok", "note"}
    assert {"memory", "space"} < set(found)
    assert all(row["remedy"] for row in found.values() if row["verdict"] != "ok")
    assert done.returncode == any(row["verdict"] == "lacks" for row in found.values())
