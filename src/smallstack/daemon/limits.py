"""Settings of every daemon about what one user can ask of it."""

from typing import Final

from smallstack.settings import Setting, integer
from smallstack.srpc.server import CALLS_PER_SECOND as DEFAULT

CALLS_PER_SECOND: Final = Setting(
    "calls_per_second",
    integer,
    DEFAULT,
    "of one user; above that they wait while others call as well; 0: no limit",
)
