"""What a start does about operations that a crash cut short: each has left a journal."""

import logging
from pathlib import Path

from smallstack.hypervisor import create, subnet_change
from smallstack.hypervisor.agent import Agent
from smallstack.telemetry.errors import SmallStackError, describe

_log = logging.getLogger("smallstack.hypervisor")


async def recover_all(agent: Agent) -> None:
    """Undo every operation that has a journal; one that cannot be read stays."""
    for path in sorted(agent.parts.store.journals.iterdir()):
        try:
            await _recover(agent, path)
        except (OSError, ValueError, SmallStackError) as error:
            _log.error("journal %s: %s", path, describe(error))


async def _recover(agent: Agent, path: Path) -> None:
    if path.name.startswith(f"{subnet_change.OPERATION}-"):
        _log.warning("undoing a change of a VM's subnet, which a crash cut short")
        for failure in await subnet_change.recover(agent, path):
            _log.error("%s: %s", path, describe(failure))
    else:
        await create.recover(agent, path)
