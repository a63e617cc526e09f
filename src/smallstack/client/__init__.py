"""Typed asyncio clients of every service: what our tools use and what Python users import.

::

    from smallstack.client.hypervisor import HypervisorClient
    from smallstack.identity.credentials import ClientCredentials

    async with await HypervisorClient.connect("hv1:6976", ClientCredentials.load()) as hypervisor:
        for address in await hypervisor.list_vms():
            print((await hypervisor.get_vm_info(address)).hostname)
"""
