"""What can go wrong with a protocol: the peer's fault, or ours."""

from smallstack.telemetry.errors import SmallStackError


class RemoteProtocolError(SmallStackError):
    """the peer sent something that is not valid: {what}"""


class LocalProtocolError(SmallStackError):
    """cannot send this: {what}"""


class GobError(RemoteProtocolError):
    """the peer sent a gob stream that is not valid: {what}"""


class JsonError(RemoteProtocolError):
    """the peer sent JSON that is not valid: {what}"""
