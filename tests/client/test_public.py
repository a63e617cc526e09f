"""What `smallstack.client` offers to those who import it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import smallstack.client
from docs.generate import facts
from smallstack.client import (
    CallError,
    CertificateRequiredError,
    ConnectError,
    HypervisorClient,
    NoCredentialsError,
    ServiceError,
)
from smallstack.daemon.listener import Listener, bind
from smallstack.identity import pki
from smallstack.identity.credentials import ServerCredentials
from smallstack.proto.hypervisor.create import CreateVmRequest, CreateVmResponse
from smallstack.proto.hypervisor.every import GetVmInfoRequest, GetVmInfoResponse
from smallstack.proto.methods import METHODS
from smallstack.proto.vm import VmInfo
from smallstack.srpc.server import Call, Server
from tests.client.conftest import Serve
from tests.client.test_hypervisor import IP, Agent


def test_every_name_is_there_and_its_own() -> None:
    assert sorted(smallstack.client.__all__) == smallstack.client.__all__
    for name in smallstack.client.__all__:
        assert getattr(smallstack.client, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        getattr(smallstack.client, "Nothing")  # noqa: B009 - mypy knows that it is not there


def test_a_name_loads_no_more_than_it_needs() -> None:
    code = (
        "import sys; from smallstack.client import ServiceError;"
        "print([name for name in sys.modules if name.startswith('smallstack.proto')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_it_is_typed() -> None:
    assert (Path(smallstack.client.__file__).parents[1] / "py.typed").is_file()


def test_every_method_has_one_of_a_client() -> None:
    missing = [
        method.short_name
        for method in METHODS.values()
        if method.service
        and not method.rights_of  # those are between our own daemons
        and not hasattr(facts.CLIENTS[method.service], facts.client_method(method))
    ]
    assert missing == []


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Below it: the server's, and a user's home."""
    authority = pki.make_ca(tmp_path / "ca")
    pki.issue(authority, "server", server=True, names=["localhost"]).write(tmp_path / "server")
    pki.issue(authority, "someone").write(tmp_path / "home" / ".ssl")
    (tmp_path / "server" / "ca.pem").write_bytes((tmp_path / "ca" / "ca.pem").read_bytes())
    return tmp_path


@pytest.fixture
async def secure(keys: Path) -> AsyncIterator[str]:
    """The address of a server whose VMs have the caller's name."""
    server = Server(ServerCredentials.load(keys / "server"))

    async def get_vm_info(call: Call, request: GetVmInfoRequest) -> GetVmInfoResponse:
        return GetVmInfoResponse(vm_info=VmInfo(hostname=call.peer.username))

    server.register("Hypervisor", {"GetVmInfo": get_vm_info})
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    yield f"127.0.0.1:{listener.addresses[0][1]}"
    await listener.close(grace=1)


async def test_who_one_is(secure: str, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ~/.ssl, by another directory, or not at all."""
    monkeypatch.setenv("HOME", str(keys / "home"))
    async with await HypervisorClient.connect(secure) as client:
        assert (await client.get_vm_info(IP)).hostname == "someone"
    async with await HypervisorClient.connect(secure, keys / "home" / ".ssl") as client:
        assert (await client.get_vm_info(IP)).hostname == "someone"
        with pytest.raises(CallError, match="ListVMs"):
            await client.list_vms()
        assert (await client.get_vm_info(IP)).hostname == "someone"
    with pytest.raises(NoCredentialsError, match="nowhere"):
        await HypervisorClient.connect(secure, keys / "nowhere")
    with pytest.raises(ConnectError) as refused:
        await HypervisorClient.connect(secure, None)
    assert isinstance(refused.value, CertificateRequiredError)


async def test_a_vm_is_made_and_kept(serve: Serve) -> None:
    agent = Agent()
    heard: list[str] = []
    async with (
        serve("Hypervisor", agent.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        request = CreateVmRequest(vm_info=VmInfo(hostname="new"))
        reply = await client.new_vm(request, user_data=b"data", progress=heard.append)
        assert reply == CreateVmResponse(final=True, ip_address=IP)
        assert heard == ["getting image", f"starting VM {IP}"]
        assert [type(one).__name__ for one in agent.seen] == ["tuple", "AcknowledgeVmRequest"]
        agent.fail_create = "no free addresses"
        with pytest.raises(ServiceError, match=r"^no free addresses$"):
            await client.new_vm(request)
        assert len(agent.seen) == 2


async def test_a_create_that_is_given_up_is_not_kept(serve: Serve) -> None:
    agent = Agent()
    async with serve("Hypervisor", agent.handlers()) as address:
        client = await HypervisorClient.connect(address, None)
        request = CreateVmRequest(vm_info=VmInfo(hostname="slow"))
        started = asyncio.Event()
        creating = asyncio.create_task(client.new_vm(request, progress=lambda _: started.set()))
        await started.wait()
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await agent.gone.wait()
        assert [type(one).__name__ for one in agent.seen] == ["tuple"]
