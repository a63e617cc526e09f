"""What keeps a daemon from starting."""

from smallstack.telemetry.errors import SmallStackError


class ListenError(SmallStackError):
    """cannot listen on {address}: {detail}"""
