"""Network namespaces without names: held by a descriptor, gone with it.

A namespace belongs to a thread, so entering one is done in a thread that ends afterwards. Nothing
is mounted under /run/netns: the kernel takes a namespace away, with every interface in it, when
the last descriptor, socket and thread of it are gone, whichever way the process ends.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from smallstack.network.errors import NoPrivilegeError

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def create_namespace() -> int:
    """A descriptor of a new network namespace. Blocks for some ms. Raises NoPrivilegeError."""
    return in_thread(_unshare)


def in_namespace(descriptor: int, work: Callable[[], T]) -> T:
    """The result of ``work``, run in a thread that is in the namespace. Blocks."""

    def enter() -> T:
        enter_namespace(descriptor)
        return work()

    return in_thread(enter)


def enter_namespace(descriptor: int) -> None:
    """Move the calling thread, for good, into the namespace. Raises NoPrivilegeError, OSError."""
    _call("setns", descriptor, _CLONE_NEWNET)


def _unshare() -> int:
    _call("unshare", _CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        if isinstance(error := OSError(code, os.strerror(code)), PermissionError):
            raise NoPrivilegeError(action="use a network namespace") from None
        raise error


def in_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, run in a thread of its own in the caller's namespace. Blocks."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
