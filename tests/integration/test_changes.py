"""What a VM is, changed by its owner, over TLS at a real agent that is killed in between."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from smallstack.client.errors import ServiceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.proto.enums import ConsoleType, MachineType, State, VolumeInterface
from smallstack.proto.vm import Address, NetworkEntry, VmInfo
from smallstack.srpc.errors import AccessDeniedError
from tests.integration.cloud import SECOND, Cloud

pytestmark = [pytest.mark.root]

Change = Callable[[HypervisorClient, str], Awaitable[object]]


async def started_again(cloud: Cloud) -> None:
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor()


async def changes_survive_a_kill(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True, owner_users=["olga"])).ip_address
    async with cloud.client(cloud.user("olga")) as client:
        before = await client.get_vm_info(ip)
        await client.change_vm_tags(ip, {"Name": "other", "a": "b"})
        await client.change_vm_hostname(ip, "other.example.test")
        await client.change_vm_cpu_priority(ip, 7)
        await client.change_vm_destroy_protection(ip, True)
        await client.become_primary_vm_owner(ip)
        await client.change_vm_owner_users(ip, ["otto", "user", "otto", "olga"])
        await client.change_vm_owner_groups(ip, ["crew", "crew"])
        await client.change_vm_size(ip, memory_in_mib=192, milli_cpus=20, virtual_cpus=1)
        await client.change_vm_console_type(ip, ConsoleType.DUMMY)
        await client.change_vm_machine_type(ip, MachineType.Q35)
        await client.change_vm_num_network_queues(ip, [2])
        await client.change_vm_volume_interfaces(ip, [VolumeInterface.NVME])
        after = await client.get_vm_info(ip)
        free = await client.get_capacity()
    before.volumes[0].interface = VolumeInterface.NVME
    assert after == VmInfo(
        **{name: getattr(before, name) for name in before.__struct_fields__}
        | {
            "tags": {"Name": "other", "a": "b"},
            "hostname": "other.example.test",
            "cpu_priority": 7,
            "destroy_protection": True,
            "owner_users": ["olga", "otto", "user"],
            "owner_groups": ["crew"],
            "memory_in_mib": 192,
            "milli_cpus": 20,
            "virtual_cpus": 1,
            "console_type": ConsoleType.DUMMY,
            "machine_type": MachineType.Q35,
            "network_entries": [NetworkEntry(num_queues=2)],
        }
    )
    assert free.num_cpus
    await started_again(cloud)
    async with cloud.client(cloud.user("otto")) as client:
        assert await client.get_vm_info(ip) == after
        assert (await client.get_vm_create_request(ip)).vm_info.hostname == "guest"


REFUSED: list[tuple[Change, str]] = [
    (lambda c, ip: c.change_vm_hostname(ip, "no_good"), "contains invalid character: '_'"),
    (lambda c, ip: c.change_vm_cpu_priority(ip, -1), "insufficient privilege to set CpuPriority"),
    (lambda c, ip: c.change_vm_cpu_priority(ip, 20), "it goes from -20 to 19"),
    (lambda c, ip: c.change_vm_console_type(ip, ConsoleType(9)), "UNKNOWN ConsoleType"),
    (lambda c, ip: c.change_vm_machine_type(ip, MachineType.VIRT), "machine type virt is not"),
    (lambda c, ip: c.change_vm_num_network_queues(ip, []), "0 numbers of queues for 1 network"),
    (lambda c, ip: c.change_vm_num_network_queues(ip, [257]), "256 queues at most"),
    (lambda c, ip: c.change_vm_volume_interfaces(ip, []), "0 interfaces for 1 volumes"),
    (
        lambda c, ip: c.change_vm_volume_interfaces(ip, [VolumeInterface.DFM]),
        "volume interface dfm is not supported",
    ),
    (lambda c, ip: c.change_vm_size(ip, memory_in_mib=1 << 40), "insufficient unallocated memory"),
    (lambda c, ip: c.change_vm_size(ip, milli_cpus=1 << 40), "insufficient unallocated CPU"),
    (lambda c, ip: c.change_vm_size(ip, virtual_cpus=1 << 40), "this machine has"),
    (
        lambda c, ip: c.change_vm_size(ip, milli_cpus=1001, virtual_cpus=1),
        "VirtualCPUs must be at least 2",
    ),
    (lambda c, ip: c.get_vm_access_token(ip, 59 * SECOND), "1 minute at least, 24 hours most"),
    (lambda c, ip: c.restore_vm_user_data(ip), "there are no old user data"),
    (lambda c, ip: anext(c.get_vm_virtualiser_log_file(ip, "../info.json")), "there is no log"),
    (lambda c, _: c.get_identity_provider(), "start the hypervisor with --identity-provider"),
]


async def what_is_refused_changes_nothing(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True, owner_users=["olga"])).ip_address
    async with (
        cloud.client(cloud.user("olga")) as client,
        cloud.client(cloud.user("other")) as other,
    ):
        before = await client.get_vm_info(ip)
        for change, text in REFUSED:
            with pytest.raises(ServiceError) as raised:
                await change(client, ip)
            assert text in str(raised.value)
            assert "\n" not in str(raised.value)
        with pytest.raises(ServiceError, match="no access to resource"):
            await other.change_vm_tags(ip, {"a": "b"})
        with pytest.raises(AccessDeniedError):
            await client.set_disabled_state(True)
        assert await client.get_vm_info(ip) == before
        await client.become_primary_vm_owner(ip)
        with pytest.raises(ServiceError, match="you already are the primary owner"):
            await client.become_primary_vm_owner(ip)


async def an_access_token_stands_in_for_ownership(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as owner, cloud.client(cloud.user("other")) as other:
        token = await owner.get_vm_access_token(ip)
        with pytest.raises(ServiceError, match="someone else has the access token"):
            await owner.get_vm_access_token(ip)
        with pytest.raises(ServiceError, match="no access to resource"):
            await other.get_vm_user_data(ip)
        assert await other.get_vm_user_data(ip, access_token=token) == b""
        with pytest.raises(ServiceError, match="no access to resource"):
            await other.get_vm_user_data(ip, access_token=token[:31])
        await other.discard_vm_access_token(ip, token)
        with pytest.raises(ServiceError, match="no access to resource"):
            await other.get_vm_user_data(ip, access_token=token)
        assert await owner.get_vm_access_token(ip) != token


async def user_data_go_forth_and_back(cloud: Cloud) -> None:
    ip = (await cloud.create(user_data=b"one", do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.replace_vm_user_data(ip, b"two")
        await started_again(cloud)
    async with cloud.client() as client:
        assert await client.get_vm_user_data(ip) == b"two"
        await client.restore_vm_user_data(ip)
        assert await client.get_vm_user_data(ip) == b"one"
        await client.replace_vm_user_data(ip, b"three")
        await client.discard_vm_old_user_data(ip)
        with pytest.raises(ServiceError, match="there are no old user data"):
            await client.restore_vm_user_data(ip)
        assert await client.get_vm_user_data(ip) == b"three"


async def who_holds_a_vm_has_it_alone(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as holder, cloud.client() as other:
        holding = asyncio.create_task(holder.hold_vm_lock(ip, 60 * SECOND))
        refused = ""
        while not refused:  # until the lock is there
            try:
                await other.change_vm_tags(ip, {})
            except ServiceError as error:
                refused = str(error)
        assert refused == "mutations blocked"
        for change in (other.start_vm, other.destroy_vm, other.become_primary_vm_owner):
            with pytest.raises(ServiceError, match="mutations blocked"):
                await change(ip)
        assert (await other.get_vm_info(ip)).state is State.STOPPED
        holder.client.conn.abort()  # the lock goes with its holder
        await asyncio.wait([holding])
        while refused:
            try:
                await other.change_vm_tags(ip, {"free": "again"})
            except ServiceError as error:
                assert str(error) == "mutations blocked"
            else:
                refused = ""
        with pytest.raises(ServiceError, match="one minute at most"):
            await other.hold_vm_lock(ip, 61 * SECOND)
        await other.hold_vm_lock(ip, 0)


async def the_machine_itself(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        directories = await client.list_volume_directories()
        assert directories == [str(cloud.state / "volumes")]
        found = await client.get_vm_volume_storage_configuration(ip)
        assert found.volume_storage_indices == [0]
        space = found.storage_infos[0]
        assert space.size_bytes > space.free_bytes >= space.available_bytes > space.usable_bytes > 0
        assert await client.get_root_cookie_path() == str(cloud.state / "root-cookie")
        key = await client.get_public_key()
        loaded = load_pem_public_key(key)
        assert isinstance(loaded, RSAPublicKey)
        assert loaded.key_size == 3072
        await client.set_disabled_state(True)
        with pytest.raises(ServiceError, match="Hypervisor is disabled"):
            await client.start_vm(ip)
    await started_again(cloud)
    async with cloud.client() as client, cloud.client(cloud.user("boss")) as boss:
        assert await client.get_public_key() == key
        assert (cloud.state / "key.pem").stat().st_mode & 0o777 == 0o600
        with pytest.raises(ServiceError, match="Hypervisor is disabled"):
            await client.start_vm(ip)
        with pytest.raises(AccessDeniedError):
            await boss.set_disabled_state(False)
        await client.change_owners(["boss"], [])
        await boss.set_disabled_state(False)
        await boss.destroy_vm(ip)


async def external_leases(cloud: Cloud) -> None:
    """Any number of times, all of them or none; what is a VM's is not given away."""
    mac = "52:54:00:00:00:01"
    outside = Address(ip_address="198.51.100.200", mac_address=mac)
    async with cloud.client() as client:
        await client.register_external_leases([outside], ["printer"])
        await client.register_external_leases([outside])
        bad: list[tuple[Address, str]] = [
            (Address(ip_address="203.0.113.1", mac_address=mac), "no subnet of this Hypervisor"),
            (Address(ip_address="198.51.100.2", mac_address=mac), "is in the address pool"),
            (Address(ip_address="198.51.100.201", mac_address="52:54:c6:33:64:02"), "is in the"),
            (Address(ip_address="198.51.100.201", mac_address="x"), "cannot lease 198.51.100.201"),
        ]
        for address, text in bad:
            with pytest.raises(ServiceError) as raised:
                await client.register_external_leases([outside, address])
            assert text in str(raised.value)
        await client.register_external_leases([])


async def test_changes(cloud: Cloud) -> None:
    """All at one agent, which is made once."""
    for part in (
        changes_survive_a_kill,
        what_is_refused_changes_nothing,
        an_access_token_stands_in_for_ownership,
        user_data_go_forth_and_back,
        who_holds_a_vm_has_it_alone,
        external_leases,
        the_machine_itself,
    ):
        await part(cloud)
        for ip in await cloud.states():
            await cloud.destroy(ip)
