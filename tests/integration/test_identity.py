"""Who a VM is, as its guest finds it: a role's credentials, the signed document; restart."""

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from smallstack.client.errors import ServiceError
from smallstack.hypervisor.identities import CERTIFICATES, KEYS
from smallstack.identity import pki
from smallstack.network.metadata.routes import CREDENTIALS, IDENTITY
from smallstack.proto.hypervisor.every import ChangeAddressPoolRequest, UpdateSubnetsRequest
from smallstack.proto.vm import Address, Subnet
from smallstack.srpc.connection import Connection
from tests.hypervisor.provider import Provider, serving
from tests.integration.cloud import SECOND, Cloud, request

pytestmark = [pytest.mark.root, pytest.mark.qemu]
OTHER = Address(ip_address="203.0.113.2", mac_address="52:54:cb:00:71:02")


@pytest.fixture
async def provider(bare_cloud: Cloud, tmp_path: Path) -> AsyncIterator[Provider]:
    """With a hypervisor that knows it."""
    async with serving(tmp_path / "provider") as made:
        await start(bare_cloud, made)
        await bare_cloud.set_up()
        yield made


async def start(cloud: Cloud, provider: Provider) -> None:
    await cloud.start_hypervisor(
        identity_provider=provider.url,
        identity_provider_ca_file=str(provider.ca_file),
        metadata_tokens="credentials",
    )


@asynccontextmanager
async def console(cloud: Cloud, ip: str) -> AsyncIterator[Connection]:
    async with cloud.client() as client, client.connect_serial(ip) as port:
        yield port


async def in_guest(port: Connection, command: str) -> bytes:
    """What a command writes in the guest."""
    port.write(f"echo be''gun; {{ {command}; }} 2>&1 | base64; echo en''ded\n".encode())
    await port.flush()
    seen = b""
    while b"ended" not in seen:
        data = await port.read_some()
        assert data, seen
        seen += data
    told = seen[seen.rindex(b"begun") : seen.rindex(b"ended")]
    return base64.b64decode(b"".join(told.split()[1:]))


def fetch(path: str, *options: str) -> str:
    return f"wget -qO- {' '.join(options)} http://169.254.169.254{path}"


async def test_a_guest_is_its_role(bare_cloud: Cloud, provider: Provider, tmp_path: Path) -> None:
    cloud = bare_cloud
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        assert await client.get_identity_provider() == provider.url
        public = await client.get_public_key()
        await client.replace_vm_identity(ip, provider.requestor("web", public))
        info = await client.get_vm_info(ip)
        assert info.identity_name == "web"
        assert not info.identity_expires.is_zero()
        assert await client.start_vm(ip, dhcp_timeout=60 * SECOND)
    found = {}
    async with console(cloud, ip) as port:
        document = await in_guest(port, fetch(f"{IDENTITY}/document"))
        signature = await in_guest(port, fetch(f"{IDENTITY}/signature"))
        assert b"401" in await in_guest(port, fetch(f"{IDENTITY}/X.509-key"))
        # busybox's wget knows no PUT.
        lines = "PUT /latest/api/token HTTP/1.0\\r\\n", "X-aws-ec2-metadata-token-ttl-seconds: 60"
        put = f"printf '{lines[0]}{lines[1]}\\r\\n\\r\\n' | nc 169.254.169.254 80"
        head, _, token = (await in_guest(port, put)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK"), head
        header = f"--header 'X-aws-ec2-metadata-token: {token.decode()}'"
        for name in CREDENTIALS:
            found[name] = await in_guest(port, fetch(f"{IDENTITY}/{name}", header))
    for kind in ("", "RSA-", "Ed25519-"):
        certificate = x509.load_pem_x509_certificate(found[f"{kind}X.509-certificate"])
        key = load_pem_private_key(found[f"{kind}X.509-key"], None)
        assert certificate.public_key() == key.public_key()
        assert certificate.subject.rfc4514_string() == "CN=web"
    assert found["RSA-SSH-certificate"].startswith(b"ssh-rsa-cert-v01@openssh.com ")
    assert found["Ed25519-SSH-certificate"].startswith(b"ssh-ed25519-cert-v01@openssh.com ")

    # As docs/metadata.md has it.
    (tmp_path / "hypervisor.pem").write_bytes(public)
    (tmp_path / "document").write_bytes(document)
    (tmp_path / "signature").write_bytes(signature)
    text = (Path(__file__).parents[2] / "docs" / "metadata.md").read_text()
    (script,) = (part.partition("```")[0] for part in text.split("```sh\n")[1:])
    checks = "\n".join(script.splitlines()[1:])  # the key is had already
    verifying = await asyncio.create_subprocess_exec(
        "sh", "-euc", checks, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert (await verifying.communicate())[0] == b"Verified OK\n"
    assert f'"IpAddress": "{ip}"' in document.decode()


async def test_renewed_across_a_restart_and_gone_with_its_vm(
    bare_cloud: Cloud, provider: Provider
) -> None:
    cloud = bare_cloud
    provider.lifetime = 2
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        public = await client.get_public_key()
        await client.replace_vm_identity(ip, provider.requestor("web", public))
        with pytest.raises(ServiceError, match="the VM has a role"):
            await client.replace_vm_credentials(ip, b"certificate", b"key")
        first = (await client.get_vm_info(ip)).identity_expires
    await provider.until("x509", 3)
    await cloud.kill_hypervisor()
    provider.asked.clear()
    await start(cloud, provider)
    await provider.until("x509", 5)
    directory = cloud.state / "VMs" / ip
    async with cloud.client() as client:
        info = await client.get_vm_info(ip)
        assert info.identity_name == "web"
        assert info.identity_expires.unix_seconds > first.unix_seconds
        assert all((directory / name).exists() for name in (*CERTIFICATES, *KEYS))
        await client.replace_vm_identity(ip, b"")
        assert (await client.get_vm_info(ip)).identity_name == ""
        assert not any((directory / name).exists() for name in (*CERTIFICATES, *KEYS))
        await client.replace_vm_identity(ip, provider.requestor("web", public))
        await client.destroy_vm(ip)
    assert not directory.exists()


async def test_by_command(bare_cloud: Cloud, provider: Provider, tmp_path: Path) -> None:
    cloud = bare_cloud
    ip = (await cloud.create(do_not_start=True)).ip_address
    robot = pki.issue(pki.make_ca(tmp_path / "others"), "robot")
    certificate, key = robot.write(tmp_path / "robot")
    async with cloud.client() as client:
        public = await client.get_public_key()
    role = tmp_path / "role.pem"
    role.write_bytes(provider.requestor("web", public))
    for words, status, name in (
        (("replace-vm-credentials", ip, str(certificate), str(key)), 0, "robot"),
        (("replace-vm-credentials", ip, str(certificate)), 2, "robot"),
        (("replace-vm-identity", ip, str(role)), 0, "web"),
        (("replace-vm-credentials", ip, str(certificate), str(key)), 1, "web"),
        (("replace-vm-identity", ip), 0, ""),
    ):
        tool = [sys.executable, "-m", "smallstack.cli.vm_control"]
        tool += ["--cert-directory", str(cloud.credentials.pair.key.parent)]
        process = await asyncio.create_subprocess_exec(
            *tool, *words, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == status, said.decode()
        assert (len(said.splitlines()) == 1) == (status != 0), said.decode()
        async with cloud.client() as client:
            assert (await client.get_vm_info(ip)).identity_name == name


async def test_a_vm_is_created_as_somebody(cloud: Cloud, tmp_path: Path) -> None:
    authority = pki.make_ca(tmp_path / "others")
    robot, other = pki.issue(authority, "robot"), pki.issue(authority, "user")
    made = await cloud.create(
        do_not_start=True, identity_certificate=robot.certificate, identity_key=robot.key
    )
    before = cloud.look()
    async with cloud.client() as client:
        info = await client.get_vm_info(made.ip_address)
        assert info.identity_name == "robot"
        asked = await client.get_vm_create_request(made.ip_address)
        assert (asked.identity_certificate, asked.identity_key) == (robot.certificate, b"")
    directory = cloud.state / "VMs" / made.ip_address
    assert (directory / "identity.key").read_bytes() == robot.key
    for certificate, key, text in (
        (other.certificate, other.key, "cannot give VM your own identity"),
        (robot.certificate, other.key, "it is for another key"),
        (robot.certificate, b"", "one is missing"),
    ):
        wanted = request(identity_certificate=certificate, identity_key=key)
        with pytest.raises(ServiceError, match=text):
            await cloud.create(wanted)
    async with cloud.client() as client:
        with pytest.raises(ServiceError, match="no identity provider"):
            await client.replace_vm_identity(made.ip_address, robot.certificate)
    assert await asyncio.to_thread(cloud.left, before) == ""
    # At another address it is another VM to those who knew it.
    async with cloud.client() as client:
        other_subnet = Subnet(id="other", ip_gateway="203.0.113.1", ip_mask="255.255.255.0")
        await client.update_subnets(UpdateSubnetsRequest(add=[other_subnet]))
        await client.change_address_pool(ChangeAddressPoolRequest(addresses_to_add=[OTHER]))
        assert await client.change_vm_subnet(made.ip_address, "other") == OTHER.ip_address
        assert (await client.get_vm_info(OTHER.ip_address)).identity_name == ""
    left = {path.name for path in (cloud.state / "VMs" / OTHER.ip_address).iterdir()}
    assert not left & {*CERTIFICATES, *KEYS}
