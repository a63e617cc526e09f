"""Every method of the Hypervisor service over TLS, to a real agent with a stopped VM."""

from typing import Any

import pytest

from smallstack.client.hypervisor import HypervisorClient
from smallstack.hypervisor.methods.later import ELSEWHERE, LATER
from smallstack.proto.methods import METHODS, Method, Shape
from smallstack.srpc.errors import AccessDeniedError
from tests.integration.cloud import Cloud

pytestmark = [pytest.mark.root]

EVERY = [m for m in METHODS.values() if m.service == "Hypervisor"]
BEHIND = 3_000_000
"""Bytes sent behind a request that announces an image: more than all buffers on the way."""


async def stopped(cloud: Cloud) -> str:
    """The address of a VM that was never started."""
    return (await cloud.create(do_not_start=True)).ip_address


def request_of(method: Method, ip: str) -> Any:
    """A request that names a VM, and announces an image where it can."""
    assert method.request is not None
    # Where there is no such interface, WatchDhcp says so: else it would say nothing for a while.
    fields: dict[str, Any] = {"ip_address": ip, "image_data_size": BEHIND, "interface": "none"}
    known = method.request.__struct_fields__
    return method.request(**{name: fields[name] for name in fields if name in known})


async def ask(client: HypervisorClient, method: Method, request: Any) -> Any:
    """The first reply to a call."""
    assert method.response is not None
    if method.shape is Shape.REQUEST_REPLY:
        return await client.client.request(method.name, request, method.response)
    async with client.client.raw(method.name) as conn:
        if method.name != "Hypervisor.GetUpdates":  # the server speaks first there
            conn.encode(request)
            conn.write(bytes(getattr(request, "image_data_size", 0)))
        await conn.flush()
        return await conn.decode(method.response)


async def test_every_method_is_known(cloud: Cloud) -> None:
    """Whoever calls gets an answer in the method's own form, and may go on on the connection."""
    ip = await stopped(cloud)
    assert len(EVERY) == 78
    refused = []
    for method in EVERY:
        name = method.short_name
        # The others are asked for a VM that is not there: nothing comes of it.
        request = request_of(method, ip if name in LATER else "198.51.100.99")
        async with cloud.client() as client:
            reply = await ask(client, method, request)
            if name == "GetUpdates":
                continue
            if name in LATER:
                assert reply.error.startswith(f"{name} is not supported yet: "), reply
                refused.append(name)
            await client.get_capacity()
    assert set(refused) == set(LATER)


async def test_rights_come_before_refusals(cloud: Cloud) -> None:
    ip = await stopped(cloud)
    async with cloud.client(cloud.user("other")) as client:
        for method in EVERY:
            if not method.public:
                with pytest.raises(AccessDeniedError):
                    await ask(client, method, request_of(method, ip))
            elif method.short_name in LATER.keys() - ELSEWHERE:
                reply = await ask(client, method, request_of(method, ip))
                names_vm = hasattr(request_of(method, ip), "ip_address")
                assert reply.error.startswith("no access to resource") == names_vm, method.name
        await client.get_capacity()
