"""The RPC methods of the Hypervisor service: who may, what they say, in upstream's words.

Each topic has a module below `smallstack.hypervisor.methods`; here they are put together.
"""

from collections.abc import Mapping
from typing import Final

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.methods.access import Access
from smallstack.hypervisor.methods.addressing import Addressing
from smallstack.hypervisor.methods.changing import Changing
from smallstack.hypervisor.methods.creating import Creating
from smallstack.hypervisor.methods.host import HostMethods
from smallstack.hypervisor.methods.identity import Identity
from smallstack.hypervisor.methods.later import Later
from smallstack.hypervisor.methods.looking import Looking
from smallstack.hypervisor.methods.power import Power
from smallstack.hypervisor.methods.reaching import Reaching
from smallstack.hypervisor.methods.updating import Updating
from smallstack.hypervisor.methods.user_data import UserData
from smallstack.hypervisor.methods.volumes import Volumes
from smallstack.srpc.server import Handler
from smallstack.steps import PointHook

_TOPICS: Final = (
    Access,
    Addressing,
    HostMethods,
    Identity,
    Later,
    Looking,
    Power,
    Reaching,
    Updating,
    UserData,
    Volumes,
)


class Service:
    """The methods, over one agent."""

    def __init__(self, agent: Agent, on_point: PointHook | None = None) -> None:
        """``on_point`` hears of every step of every create; see `smallstack.steps.run`."""
        self._agent = agent
        self._on_point = on_point

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, for `Server.register`: every method there is."""
        handlers = dict(Creating(self._agent, self._on_point).handlers())
        handlers |= Changing(self._agent, self._on_point).handlers()
        for topic in _TOPICS:
            handlers |= topic(self._agent).handlers()
        return handlers
