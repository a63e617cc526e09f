"""Boots the appliance under QEMU (microvm, software emulation) for a test, without any other room.

`Guest` is one running machine: its console, its agent port, its end. `Wire` is the other end of its
network card when that is not QEMU's own user network: Ethernet frames, and enough of ARP and DHCP.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType

from .test_dhcp import checksum

MAC = bytes.fromhex("525400aabbcc")
OUR_MAC = bytes.fromhex("020000000001")
OUR_IP = "198.51.100.1"
GUEST_IP = "198.51.100.7"
PARTITION = 1 << 20


def host_khz() -> int:
    """About the rate of the host's time-stamp counter, which is an emulated guest's too."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return int(float(next(line for line in lines if "MHz" in line).split(":")[1]) * 1000)


KERNEL_ARGUMENTS = (
    "root=/dev/vda1 ro init=/sbin/init console=ttyS0 quiet 8250.nr_uarts=1 panic=-1 reboot=t "
    "no_timer_check tsc=reliable random.trust_cpu=on lapic_timer_hz=1000000000 "
    f"tsc_early_khz={host_khz()}"
)
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+arat"
PATIENCE = 120.0  # seconds; a loaded machine emulates slowly


class GuestError(AssertionError):
    """The guest did not do what was waited for; the message ends with its console."""


def make_disk(root: Path, disk: Path, mebibytes: int = 48) -> None:
    """A raw disk: partition table, a mebibyte, and ext4 made from a tree."""
    with disk.open("wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run(
        [
            "mke2fs",
            *("-q", "-F", "-t", "ext4", "-b", "4096", "-O", "metadata_csum_seed"),
            *("-E", f"offset={PARTITION}"),
            *("-d", str(root), str(disk), f"{mebibytes - 1}M"),
        ],
        check=True,
    )
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe" * 3, 0x83, b"\xfe" * 3, PARTITION // 512, (mebibytes - 1) * 2048
    )
    with disk.open("r+b") as file:
        file.seek(446)
        file.write(entry)
        file.seek(510)
        file.write(b"\x55\xaa")


def file_system_problems(disk: Path) -> str:
    """What e2fsck finds ("" if nothing), with a journal that need not be replayed."""
    where = f"{disk}?offset={PARTITION}"
    done = subprocess.run(["e2fsck", "-fn", where], check=False, capture_output=True, text=True)
    state = subprocess.run(["dumpe2fs", "-h", where], check=True, capture_output=True, text=True)
    problems = "" if done.returncode == 0 else done.stdout + done.stderr
    if "needs_recovery" in state.stdout:
        problems += "the journal needs recovery\n"
    return problems


class Guest:
    """One QEMU process; leaves nothing behind when the `with` block ends."""

    def __init__(
        self,
        kernel: Path,
        disk: Path,
        directory: Path,
        *,
        netdev: str = "user,id=net0",
        arguments: str = KERNEL_ARGUMENTS,
        memory: int = 128,
    ) -> None:
        self.agent_path = directory / "agent.sock"
        self.log = b""
        self.commands = 0
        self.agent: socket.socket | None = None
        self.agent_log = b""
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-machine", "microvm,acpi=off,pcie=off,pic=off,pit=off,x-option-roms=off"),
                *("-accel", "tcg", "-cpu", CPU, "-m", str(memory), "-no-reboot"),
                *("-global", "virtio-mmio.force-legacy=false", "-serial", "stdio"),
                *("-kernel", str(kernel), "-append", arguments),
                *("-drive", f"file={disk},if=none,id=disk0,format=raw"),
                *("-device", "virtio-blk-device,drive=disk0"),
                *("-netdev", netdev),
                *("-device", f"virtio-net-device,netdev=net0,mac={MAC.hex(':')}"),
                *("-chardev", f"socket,id=agent0,path={self.agent_path},server=on,wait=off"),
                *("-device", "virtio-serial-device,max_ports=2"),
                *("-device", "virtserialport,chardev=agent0,name=org.smallstack.agent.0"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.agent):
            if stream is not None:
                stream.close()

    @property
    def console(self) -> str:
        return self.log.decode(errors="replace").replace("\r\n", "\n")

    def _fail(self, what: str) -> GuestError:
        return GuestError(
            f"{what}; the console said:\n{self.console}\nthe agent: {self.agent_log!r}"
        )

    def _read_console(self, deadline: float) -> bool:
        assert self.process.stdout is not None
        ready, _, _ = select.select(
            [self.process.stdout], [], [], max(0, deadline - time.monotonic())
        )
        if not ready:
            return False
        data = os.read(self.process.stdout.fileno(), 65536)
        self.log += data
        return bool(data)

    def wait_console(self, text: str, *, count: int = 1) -> str:
        """Waits until `text` has come `count` times; returns what stands behind the last one."""
        deadline = time.monotonic() + PATIENCE
        while self.console.count(text) < count:
            if not self._read_console(deadline):
                raise self._fail(f"{text!r} did not come")
        return self.console.split(text, count)[count]

    def wait_line(self, text: str) -> str:
        """The rest of the line that begins with `text`."""
        deadline = time.monotonic() + PATIENCE
        while "\n" not in self.wait_console(text):
            if not self._read_console(deadline):
                raise self._fail(f"the line {text!r} did not end")
        return self.wait_console(text).split("\n", 1)[0]

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def run(self, command: str) -> str:
        """Types a command to the shell on the console; returns its output."""
        self.wait_console("# ")
        self.commands += 1
        begin, end = f"begin-{self.commands}\n", f"end-{self.commands}\n"
        # In two pieces, so that the echo of what is typed is not taken for the mark.
        self.type(f"echo beg''in-{self.commands}; {command}; echo en''d-{self.commands}\n")
        self.wait_console(end)
        return self.console.split(begin)[1].split(end)[0]

    def wait_end(self) -> int:
        """Waits for the end of the process; returns its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read_console(deadline):
            continue
        try:
            return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._fail("the machine did not end") from None

    def connect_agent(self) -> None:
        self.agent = socket.socket(socket.AF_UNIX)
        self.agent.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:  # QEMU binds it, and listens a moment later, before it starts the guest
            try:
                self.agent.connect(str(self.agent_path))
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self._fail("no agent socket") from None
                os.sched_yield()
            else:
                return

    def agent_line(self) -> str:
        """The next line from the guest ("" at the end of the connection)."""
        assert self.agent is not None
        line = b""
        while not line.endswith(b"\n"):
            byte = self.agent.recv(1)
            if not byte:
                return ""
            line += byte
            self.agent_log += byte
        return line.decode().strip()

    def agent_say(self, line: str) -> None:
        assert self.agent is not None
        self.agent.sendall(line.encode() + b"\n")


class Wire:
    """The far end of the guest's network card: frames in datagrams over a pair of unix sockets."""

    def __init__(self, directory: Path) -> None:
        self.ours, self.theirs = directory / "ours.sock", directory / "theirs.sock"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.ours))
        self.socket.settimeout(PATIENCE)
        self.netdev = (
            f"dgram,id=net0,local.type=unix,local.path={self.theirs},"
            f"remote.type=unix,remote.path={self.ours}"
        )

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def next_dhcp(self) -> "Query":
        """The guest's next DHCP message; what is asked by ARP meanwhile is answered."""
        while True:
            frame = self.socket.recv(65536)
            kind = frame[12:14]
            if kind == b"\x08\x06" and frame[20:22] == b"\0\1":
                self._answer_arp(frame)
            elif kind == b"\x08\x00" and frame[23] == 17:
                header = (frame[14] & 15) * 4
                udp = frame[14 + header :]
                if udp[2:4] == b"\0\x43":
                    return Query(frame[:6], frame[26:30], udp[8:])

    def _answer_arp(self, frame: bytes) -> None:
        if frame[38:42] != socket.inet_aton(OUR_IP):
            return
        head = frame[6:12] + OUR_MAC + b"\x08\x06" + frame[14:20] + b"\0\2"
        self.send(head + OUR_MAC + frame[38:42] + frame[22:32])

    def send(self, frame: bytes) -> None:
        self.socket.sendto(frame, str(self.theirs))

    def answer(self, query: "Query", kind: int, *options: tuple[int, bytes]) -> None:
        """Sends a DHCP reply of a type with options, as the guest's server at OUR_IP."""
        body = b"".join(
            bytes([code, len(value)]) + value
            for code, value in ((53, bytes([kind])), (54, socket.inet_aton(OUR_IP)), *options)
        )
        message = struct.pack(">BBBBI", 2, 1, 6, 0, query.xid) + bytes(8)
        message += socket.inet_aton(GUEST_IP) + bytes(8) + query.message[28:44] + bytes(192)
        message += bytes.fromhex("63825363") + body + b"\xff"
        udp = struct.pack(">HHHH", 67, 68, len(message) + 8, 0) + message
        target = socket.inet_aton("255.255.255.255" if not any(query.client) else GUEST_IP)
        ip = struct.pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(udp),
            0,
            0,
            64,
            17,
            0,
            socket.inet_aton(OUR_IP),
            target,
        )
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        self.send(MAC + OUR_MAC + b"\x08\x00" + ip + udp)


class Query:
    """A DHCP message of the guest."""

    def __init__(self, to_mac: bytes, source: bytes, message: bytes) -> None:
        self.to_mac, self.source, self.message = to_mac, source, message
        self.xid = int.from_bytes(message[4:8], "big")
        self.client = message[12:16]
        self.options: dict[int, bytes] = {}
        rest = message[240:]
        while rest and rest[0] != 255:
            self.options[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]

    @property
    def kind(self) -> int:
        return self.options[53][0]
