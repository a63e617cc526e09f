"""The floor of a create: the agent's own QEMU command, from a prepared layer, exec to DHCP ACK.

Nothing of an agent is in it: tap, layer and sockets are ready before the clock starts, and the
clock stops when the same DHCP server has sent its ACK. The command is not a copy that could age:
it is compared, word by word, with what a VM of the agent is running in this very run.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Self

from bench.results import BenchError
from smallstack.cli.demo_inside import create_process, run_tool
from smallstack.control.sandbox import Sandbox
from smallstack.machine import command
from smallstack.machine.accelerator import probe
from smallstack.machine.kernel import takes_timer_rate
from smallstack.machine.spec import DiskSpec, MachineSpec, NicSpec
from smallstack.machine.start import forget, start
from smallstack.network.bridge import Bridge, ensure_bridge
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.netlink import Netlink
from smallstack.network.tap import create_tap
from smallstack.proto.vm import Subnet

BRIDGE = "floor0"
GATEWAY = "203.0.113.1"  # TEST-NET-3 of RFC 5737
GUEST = "203.0.113.9"
MAC = "52:54:cb:00:71:09"
MASK = "255.255.255.0"
LIMIT_S = 60.0
NOBODY = 65534


class Floor:
    """Runs the agent's command without the agent. ``arguments`` is that command."""

    def __init__(
        self, spec: MachineSpec, layer: Path, netlink: Netlink, bridge: Bridge, dhcp: DhcpServer
    ) -> None:
        self._spec = spec
        self._layer = layer
        self._netlink = netlink
        self._bridge = bridge
        self._dhcp = dhcp
        self.arguments = command.command_line(spec, command.descriptors(spec))

    @classmethod
    @contextlib.asynccontextmanager
    async def prepared(cls, sandbox: Sandbox, directory: Path) -> AsyncIterator[Self]:
        """Learn the command from a VM of the sandbox's agent, then end that VM.

        Raises BenchError when the floor's command would not be the agent's.
        """
        work = directory / "floor"
        work.mkdir()
        created, _ = await create_process(sandbox, "model", quiet=True)
        pid = int((_vm_directory(sandbox, created.ip) / "pidfile").read_text().split()[0])
        agents = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        spec = await _spec(agents, pid, work, created.ip)
        await run_tool(sandbox, "destroy-vm", created.ip)
        layer = work / "pristine"
        stopped, _ = await create_process(sandbox, "pristine", quiet=True, start=False)
        shutil.copyfile(_root(sandbox, stopped.ip), layer)
        await run_tool(sandbox, "destroy-vm", stopped.ip)
        netlink = await Netlink.open()
        dhcp = DhcpServer()
        try:
            bridge = await ensure_bridge(netlink, BRIDGE, f"{GATEWAY}/24", create=True)
            dhcp.listen(BRIDGE, bridge.addresses)
            subnet = Subnet(id="floor", ip_gateway=GATEWAY, ip_mask=MASK)
            dhcp.add_lease(MAC, GUEST, subnet, "floor")
            yield cls(spec, layer, netlink, bridge, dhcp)
        finally:
            await dhcp.close()
            await netlink.close()

    async def run(self) -> float:
        """One boot: seconds from just before QEMU's process is made to the DHCP server's ACK."""
        disk = self._spec.disks[0]
        shutil.copyfile(self._layer, disk.path)
        os.chown(disk.path, NOBODY, NOBODY)
        tap = await create_tap(self._netlink, "floor-tap", self._bridge, MAC)
        nic = NicSpec(mac=MAC, tap_fd=tap.fd, mtu=tap.mtu)
        acknowledged = self._dhcp.acknowledged(GUEST)
        acknowledged.add_done_callback(lambda _: ended.append(time.monotonic_ns()))
        ended: list[int] = []
        # In a thread, as the agent does, so that the DHCP server is not held up.
        started = await asyncio.to_thread(start, replace(self._spec, nics=(nic,)))
        try:
            await asyncio.wait_for(acknowledged, LIMIT_S)
        finally:
            signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
            await asyncio.to_thread(os.waitid, os.P_PIDFD, started.pidfd, os.WEXITED)
            os.close(started.pidfd)
            for sock in started.sockets.values():
                sock.close()
            tap.close()
            forget(self._spec.directory)
        return (ended[0] - started.started_ns) / 1e9


async def _spec(agents: list[str], pid: int, work: Path, ip: str) -> MachineSpec:
    """The spec whose command line is ``agents``, with the floor's own layer, name and MAC."""
    option = dict(itertools.pairwise(agents))
    node = json.loads(option["-blockdev"])
    verdict = await probe("auto", work)
    brick = _brick(pid) if node.get("backing") else None
    number = command.FIRST_DESCRIPTOR + ["monitor", "serial0", "agent0", "kernel"].index("kernel")
    opened = Path(f"/proc/{pid}/fd/{number}")
    # The VM's own goes with the VM.
    kernel = work / "kernel"
    shutil.copyfile(opened, kernel)
    kernel.chmod(0o644)
    model = MachineSpec(
        name=ip,
        directory=work,
        verdict=verdict,
        memory_mib=int(option["-m"].removesuffix("M")),
        kernel=kernel,
        kernel_args="",
        timer_rate=takes_timer_rate(kernel),
        disks=(DiskSpec(path=work / "layer", format=node["driver"], backing=brick),),
        nics=(NicSpec(mac=_mac(agents), tap_fd=-1),),
        uid=NOBODY,
        gid=NOBODY,
        uuid=option.get("-uuid"),
        qemu=agents[0],
    )
    own = command.kernel_arguments(model)
    model = replace(model, kernel_args=option["-append"].removesuffix(own).strip())
    floor = command.command_line(model, command.descriptors(model))
    if floor != agents:
        raise BenchError(detail=f"the floor's command differs from the agent's:\n{floor}\n{agents}")
    return replace(model, name=GUEST, nics=(NicSpec(mac=MAC, tap_fd=-1),))


def _brick(pid: int) -> Path:
    """The file of the bricks' directory that QEMU has open."""
    links = (link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir())
    return next(link for link in links if link.parent.name == "bricks")


def _mac(agents: list[str]) -> str:
    device = next(word for word in agents if word.startswith("virtio-net-device"))
    return next(part for part in device.split(",") if part.startswith("mac=")).removeprefix("mac=")


def _vm_directory(sandbox: Sandbox, ip: str) -> Path:
    return sandbox.hypervisor_state / "VMs" / ip


def _root(sandbox: Sandbox, ip: str) -> Path:
    """The root volume of a VM, from its record."""
    record = json.loads((_vm_directory(sandbox, ip) / "info.json").read_text())
    return Path(record["VolumeLocations"][0]["Filename"])
