"""Whom a daemon trusts beside what certificates say: its settings about that, as a `Policy`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from smallstack.daemon.vm_owners import VmOwners, is_virtual_machine
from smallstack.identity.decision import Policy
from smallstack.identity.peer import Peer
from smallstack.settings import Setting, Values, boolean, words

TRUSTED_USERS: Final[Setting[tuple[str, ...]]] = Setting(
    "srpc_trusted_users", words, (), "users who may call every method with powers"
)
TRUSTED_GROUPS: Final[Setting[tuple[str, ...]]] = Setting(
    "srpc_trusted_groups", words, (), "groups whose members may"
)
TRUST_VM_OWNERS: Final = Setting(
    "srpc_trust_vm_owners", boolean, True, "so may the owners of the SmallStack VM it runs in"
)


@asynccontextmanager
async def trusting(
    values: Values, grant: Callable[[str, Peer], bool] | None = None
) -> AsyncIterator[Policy]:
    """The policy that the settings ask for, kept up to date meanwhile; see `Policy`."""
    users, groups = values[TRUSTED_USERS], values[TRUSTED_GROUPS]
    policy = Policy(trusted_users=frozenset(users), trusted_groups=frozenset(groups), grant=grant)
    if not values[TRUST_VM_OWNERS] or not is_virtual_machine():
        yield policy
        return
    owners = VmOwners(policy)
    owners.start()
    try:
        yield policy
    finally:
        await owners.close()
