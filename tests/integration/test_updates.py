"""GetUpdates of a real agent: the whole state, then every change, however slowly it is read."""

import asyncio

import pytest

from smallstack.proto.hypervisor.every import (
    ChangeAddressPoolRequest,
    GetUpdatesRequest,
    Update,
    UpdateSubnetsRequest,
)
from smallstack.proto.vm import Subnet, VmInfo
from tests.integration.cloud import SUBNET, Cloud, addresses

pytestmark = [pytest.mark.root]


async def test_state_then_changes(cloud: Cloud) -> None:
    first = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as watcher, watcher.client.raw("Hypervisor.GetUpdates") as conn:

        async def told() -> Update:
            async with asyncio.timeout(20):
                return await conn.decode(Update)

        whole = await told()
        assert (whole.have_vms, list(whole.vms)) == (True, [first])
        assert whole.vms[first].volumes
        assert whole.address_pool == addresses(4)
        assert (whole.num_free_addresses, whole.have_subnets) == ({"test": 3}, True)
        assert [subnet.id for subnet in whole.subnets] == ["test"]
        assert (whole.have_disabled, whole.disabled, whole.have_serial_number) == (
            True,
            False,
            True,
        )
        assert whole.num_cpus and whole.memory_in_mib and whole.total_volume_bytes
        assert whole.available_memory_in_mib

        second = (await cloud.create(do_not_start=True)).ip_address
        vms: dict[str, VmInfo] = {}
        free: dict[str, int] = {}
        while not (second in vms and vms[second].volumes and free):
            update = await told()
            vms |= update.vms
            free |= update.num_free_addresses
            assert not (update.have_subnets or update.have_disabled or update.have_address_pool)
            assert update.available_memory_in_mib
        assert (set(vms), free) == ({second}, {"test": 2})

        conn.encode(GetUpdatesRequest())
        await conn.flush()
        assert await told() == Update()

        await cloud.destroy(second)
        while True:
            update = await told()
            if second in update.vms and not update.vms[second].volumes:
                break
        assert update.vms == {second: VmInfo()}

        async with cloud.client() as client:
            await client.change_address_pool(
                ChangeAddressPoolRequest(addresses_to_add=addresses(5)[4:])
            )
            while not (update := await told()).have_address_pool:
                pass
            assert update.address_pool == addresses(5)
            other = Subnet(id="other", ip_gateway="203.0.113.1", ip_mask="255.255.255.0")
            await client.update_subnets(UpdateSubnetsRequest(add=[other]))
            while not (update := await told()).have_subnets:
                pass
            assert [subnet.id for subnet in update.subnets] == [other.id, SUBNET.id]
            assert update.num_free_addresses == {"test": 4, "other": 0}

        stopping = asyncio.create_task(cloud.stop_hypervisor())
        assert await conn.read_some() == b""  # the agent's end is the stream's
        await stopping
        conn.close()
