"""Typed asyncio clients of every service: what our tools use and what Python users import.

::

    from smallstack.client import HypervisorClient

    async with await HypervisorClient.connect("hv1:6976") as hypervisor:  # certificates of ~/.ssl
        for address in await hypervisor.list_vms():
            print((await hypervisor.get_vm_info(address)).hostname)

A client is one connection to one daemon; calls over it wait for each other, so what is to happen
at the same time takes a client each. `HypervisorClient`, `ImageServerClient`, `ObjectServerClient`
and `LoggerClient` have a method for every method of their service, named as that one is
(``Hypervisor.GetVmInfo`` is ``get_vm_info``); docs/api.md lists them all. What streams is an
asynchronous generator. Whatever has no method here: `ServiceClient.call`.

Errors are `SmallStackError`, one line each:

- `ConnectError`: no connection came about; of its kinds, `BadCertificateError` and
  `CertificateRequiredError` are about who one is, `NoCredentialsError`, `CertificateError` and
  `CredentialsExpiredError` (these are no ConnectError) about the files in ``~/.ssl``.
- `ServiceError`: the method says that it did not do what was asked; ``text`` is its line.
- `CallError`: the server did not come to that, `AccessDeniedError` for a lack of rights.
- `ConnectionClosedError`: the connection ended in the middle; what became of the call is not known.

After a ServiceError or a CallError the connection serves on, after any other it does not.

Each name here is imported at its first use: a client's start is part of every create.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from smallstack.client.errors import ObjectsMissingError, ServiceError, SourceError
    from smallstack.client.hypervisor import HypervisorClient
    from smallstack.client.imageserver import ImageServerClient
    from smallstack.client.logger import LoggerClient
    from smallstack.client.objectserver import NewObject, ObjectReader, ObjectServerClient
    from smallstack.client.service import ServiceClient
    from smallstack.identity.credentials import ClientCredentials, Pair
    from smallstack.identity.errors import (
        CertificateError,
        CredentialsExpiredError,
        NoCredentialsError,
    )
    from smallstack.proto.enums import State
    from smallstack.proto.hypervisor.create import CreateVmRequest, CreateVmResponse
    from smallstack.proto.image import Image
    from smallstack.proto.vm import Address, Subnet, VmInfo, Volume
    from smallstack.srpc.errors import (
        AccessDeniedError,
        BadCertificateError,
        CallError,
        CertificateRequiredError,
        ConnectError,
        ConnectionClosedError,
    )
    from smallstack.telemetry.errors import SmallStackError
else:
    _PLACES: Final = {
        "client.errors": "ObjectsMissingError ServiceError SourceError",
        "client.hypervisor": "HypervisorClient",
        "client.imageserver": "ImageServerClient",
        "client.logger": "LoggerClient",
        "client.objectserver": "NewObject ObjectReader ObjectServerClient",
        "client.service": "ServiceClient",
        "identity.credentials": "ClientCredentials Pair",
        "identity.errors": "CertificateError CredentialsExpiredError NoCredentialsError",
        "proto.enums": "State",
        "proto.hypervisor.create": "CreateVmRequest CreateVmResponse",
        "proto.image": "Image",
        "proto.vm": "Address Subnet VmInfo Volume",
        "srpc.errors": "AccessDeniedError BadCertificateError CallError CertificateRequiredError "
        "ConnectError ConnectionClosedError",
        "telemetry.errors": "SmallStackError",
    }

    def __getattr__(name):
        """Imports what is asked for, at its first use."""
        from importlib import import_module

        for place, names in _PLACES.items():
            if name in names.split():
                return getattr(import_module(f"smallstack.{place}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AccessDeniedError",
    "Address",
    "BadCertificateError",
    "CallError",
    "CertificateError",
    "CertificateRequiredError",
    "ClientCredentials",
    "ConnectError",
    "ConnectionClosedError",
    "CreateVmRequest",
    "CreateVmResponse",
    "CredentialsExpiredError",
    "HypervisorClient",
    "Image",
    "ImageServerClient",
    "LoggerClient",
    "NewObject",
    "NoCredentialsError",
    "ObjectReader",
    "ObjectServerClient",
    "ObjectsMissingError",
    "Pair",
    "ServiceClient",
    "ServiceError",
    "SmallStackError",
    "SourceError",
    "State",
    "Subnet",
    "VmInfo",
    "Volume",
]
