"""What the messages and records of the Hypervisor service derive from."""

from typing import ClassVar

from smallstack.proto.kinds import Message


class HypervisorMessage(Message, kw_only=True):
    """A message or record of the Hypervisor service."""

    go_package: ClassVar[str] = "hypervisor"


class Reply(HypervisorMessage, kw_only=True):
    """A reply that says what went wrong, and nothing when all went well."""

    error: str = ""
