"""Messages of the Hypervisor service, a module for each use, in the order of their wire fields.

Times are in nanoseconds, sizes in bytes. An empty ``error`` in a reply is success. Records and
enumerations are in ``proto.vm`` and ``proto.enums``.

To define a message costs more than to send one, and a client's start is part of every create: so
``proto.hypervisor.power`` is imported when it is first named, and a client names what it sends.
Who needs all messages takes ``proto.hypervisor.every``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallstack.proto.hypervisor import (
        access,
        change,
        create,
        every,
        host,
        image,
        info,
        migrate,
        network,
        power,
        reach,
        user_data,
        volumes,
    )
else:

    def __getattr__(name):
        """Imports a part of the package at its first use."""
        from importlib import import_module

        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error


__all__ = [
    "access",
    "change",
    "create",
    "every",
    "host",
    "image",
    "info",
    "migrate",
    "network",
    "power",
    "reach",
    "user_data",
    "volumes",
]
