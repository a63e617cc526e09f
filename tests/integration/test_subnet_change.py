"""A VM gets an address in another subnet; or a crash on the way leaves it where it was."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.hypervisor.roots import label_of
from smallstack.hypervisor.store import Store
from smallstack.hypervisor.subnet_change import SubnetChange
from smallstack.proto.hypervisor.every import ChangeAddressPoolRequest, UpdateSubnetsRequest
from smallstack.proto.kinds import Time
from smallstack.proto.vm import Address, Subnet, VmInfo
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.steps import Journal, flatten
from tests.integration.cloud import Cloud

pytestmark = [pytest.mark.root]
OTHER = Address(ip_address="203.0.113.2", mac_address="52:54:cb:00:71:02")
DATA = {"old": "198.51.100.2", "new": "203.0.113.2", "directories": [], "before": "", "after": ""}


async def with_another_subnet(cloud: Cloud) -> str:
    """The address of a VM that could go there."""
    async with cloud.client() as client:
        other = Subnet(id="other", ip_gateway="203.0.113.1", ip_mask="255.255.255.0")
        shut = Subnet(
            id="shut", ip_gateway="192.0.2.1", ip_mask="255.255.255.0", allowed_users=["boss"]
        )
        await client.update_subnets(UpdateSubnetsRequest(add=[other, shut]))
        await client.change_address_pool(ChangeAddressPoolRequest(addresses_to_add=[OTHER]))
    reply = await cloud.create(
        user_data=b"mine", do_not_start=True, subnet_id="test", owner_users=["olga"]
    )
    async with cloud.client() as client:
        await client.add_vm_volumes(reply.ip_address, [512])
    return reply.ip_address


async def free(cloud: Cloud) -> dict[str, int]:
    async with cloud.client() as client:
        return dict((await anext(client.get_updates())).num_free_addresses)


async def test_it_goes_and_is_the_same(cloud: Cloud) -> None:
    ip = await with_another_subnet(cloud)
    async with cloud.client(cloud.user("olga")) as client:
        before = await client.get_vm_info(ip)
        for subnet, text in (
            ("none", "subnet: none does not exist"),
            ("test", "is in subnet test already"),
            ("shut", "no access to subnet: shut"),
        ):
            with pytest.raises(ServiceError, match=text):
                await client.change_vm_subnet(ip, subnet)
        assert await free(cloud) == {"test": 3, "other": 1, "shut": 0}
        async with cloud.client() as second:  # one change after the other
            moved, _ = await asyncio.gather(
                client.change_vm_subnet(ip, "other"), second.change_vm_cpu_priority(ip, 3)
            )
        assert moved == OTHER.ip_address
    for _ in range(2):
        async with cloud.client(cloud.user("olga")) as client:
            after = await client.get_vm_info(OTHER.ip_address)
            assert after == VmInfo(
                **{name: getattr(before, name) for name in before.__struct_fields__}
                | {"address": OTHER, "subnet_id": "other"}
                | {"cpu_priority": 3, "root_file_system_label": label_of(ip)}
            )
            assert after.identity_expires == Time()
            assert await client.get_vm_user_data(OTHER.ip_address) == b"mine"
            with pytest.raises(ServiceError, match="no VM with IP address"):
                await client.get_vm_info(ip)
        assert await free(cloud) == {"test": 4, "other": 0, "shut": 0}
        assert not (cloud.state / "volumes" / ip).exists()
        await cloud.kill_hypervisor()
        await cloud.start_hypervisor()
    await cloud.destroy(OTHER.ip_address)
    assert await free(cloud) == {"test": 4, "other": 1, "shut": 0}


def steps() -> list[str]:
    journal = Journal.create(Path("none"), data=dict(DATA))
    return [step.name for step in flatten(SubnetChange(Store(Path("none")), journal).steps())]


async def test_a_kill_on_the_way_leaves_it_where_it_was(cloud: Cloud) -> None:
    ip = await with_another_subnet(cloud)
    async with cloud.client() as client:
        before = await client.get_vm_info(ip)
    files = cloud.look().files
    for step in steps():
        for where in ("before", "inside", "after"):
            cloud.at(where, step, "kill")
            async with cloud.client() as client:
                with suppress(ConnectionClosedError):
                    await client.change_vm_subnet(ip, "other")
                    raise AssertionError("it lived")
            await cloud.died()
            await cloud.start_hypervisor()
            async with cloud.client() as client:
                assert await client.get_vm_info(ip) == before
            assert await free(cloud) == {"test": 3, "other": 1, "shut": 0}
            assert cloud.look().files == files
