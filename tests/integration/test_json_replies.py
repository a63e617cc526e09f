"""What real daemons answer in JSON is what docs/api.json says: nothing missing, nothing more."""

import json
from typing import Any

import pytest

from smallstack.proto.enums import State
from smallstack.srpc import framing
from smallstack.srpc.client import Client, dial
from tests.docs.strict import complaints, reply_of
from tests.integration.cloud import IMAGE, IMAGE_PORT, PORT, SECOND, Cloud

pytestmark = [pytest.mark.root, pytest.mark.qemu]
MAX_LINE = 8 << 20


async def ask(client: Client, method: str, request: Any, *, lines: int = 0) -> list[Any]:
    """The replies to a request, each as described; ``lines`` of them when the method streams."""
    async with client.raw(method) as conn:
        conn.write(json.dumps(request).encode() + b"\n")
        await conn.flush()
        if not lines:
            refusal = await conn.read_line()
            assert refusal == b"", (method, refusal)
        replies: list[Any] = []
        while len(replies) < max(lines, 1):
            replies.append(json.loads(await conn.read_line(MAX_LINE)))
            if replies[-1].get("Final"):
                break
    for reply in replies:
        assert complaints(reply_of(method), reply) == [], method
    return replies


async def connected(cloud: Cloud, port: int) -> Client:
    address = f"localhost:{port}"
    return await dial(address, cloud.credentials, endpoints=[framing.TLS_JSON])


async def test_the_hypervisor(cloud: Cloud) -> None:
    """A VM's life, told in JSON."""
    async with await connected(cloud, PORT) as client:
        wanted = {
            "Hostname": "json",
            "ImageName": IMAGE,
            "MemoryInMiB": 128,
            "MilliCPUs": 10,
            "Tags": {"made": "by hand"},
            "DhcpTimeout": 60 * SECOND,
            "MinimumFreeBytes": 16 << 20,
            "SkipBootloader": True,
        }
        assert complaints("CreateVmRequest", wanted) == []
        replies = await ask(client, "Hypervisor.CreateVm", wanted, lines=100)
        assert replies[-1]["Final"]
        assert replies[-1]["Timeline"]
        about = {"IpAddress": replies[-1]["IpAddress"]}
        await ask(client, "Hypervisor.AcknowledgeVm", about)
        for method, request in (
            ("ListVMs", {"Sort": True}),
            ("GetVmInfos", {}),
            ("GetCapacity", {}),
            ("ListSubnets", {}),
            ("ProbeVmPort", about | {"PortNumber": 80, "Timeout": 60 * SECOND}),
            ("StopVm", about),
        ):
            (reply,) = await ask(client, f"Hypervisor.{method}", request)
            assert not reply.get("Error"), reply
        (info,) = await ask(client, "Hypervisor.GetVmInfo", about)
        assert info["VmInfo"]["State"] == State.STOPPED.text
        (update,) = await ask(client, "Hypervisor.GetUpdates", {}, lines=1)
        assert list(update["VMs"]) == [about["IpAddress"]]
    async with await connected(cloud, PORT) as client:
        (refused,) = await ask(client, "Hypervisor.StartVm", {"IpAddress": "198.51.100.99"})
        assert refused["Error"]
        (gone,) = await ask(client, "Hypervisor.DestroyVm", about)
        assert gone == {"Error": ""}


async def test_the_image_server(bare_cloud: Cloud) -> None:
    async with await connected(bare_cloud, IMAGE_PORT) as client:
        for method, request in (
            ("CheckImage", {"ImageName": IMAGE}),
            ("CheckDirectory", {"DirectoryName": "none"}),
            ("GetImageExpiration", {"ImageName": IMAGE}),
            ("GetImageComputedFiles", {"ImageName": IMAGE}),
            ("GetImageUsageEstimate", {"ImageName": IMAGE}),
            ("GetObjectStatisticsForImages", {"ImageNames": [IMAGE]}),
            ("FindLatestImage", {"DirectoryName": ""}),
            ("GetImageInodes", {"ImageName": IMAGE, "Filenames": ["/sbin/init", "/none"]}),
        ):
            await ask(client, f"ImageServer.{method}", request)
        (whole,) = await ask(client, "ImageServer.GetImage", {"ImageName": IMAGE})
        inodes = whole["Image"]["FileSystem"]["InodeTable"].values()
        digests = [inode["Hash"] for inode in inodes if inode.get("Size")]
        (sizes,) = await ask(client, "ObjectServer.CheckObjects", {"Hashes": digests})
        assert len(sizes["ObjectSizes"]) == len(digests) > 0
        assert all(sizes["ObjectSizes"])
        await ask(client, "Logger.GetStackTrace", {})
