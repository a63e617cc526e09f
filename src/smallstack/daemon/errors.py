"""What keeps a daemon from starting, and what its log service refuses."""

from smallstack.telemetry.errors import SmallStackError


class ListenError(SmallStackError):
    """cannot listen on {address}: {detail}"""


class LogError(SmallStackError):
    """the log cannot be had: {detail}"""


class UnknownLogError(LogError):
    """unknown logger: {name}: a daemon's log has an empty name"""


class ManyWatchersError(LogError):
    """{count} watch the log already, which is the most there may be: try again later"""


class ExpressionError(LogError):
    """{pattern!r} is no regular expression as RE2 has them: {detail}"""


class LongExpressionError(LogError):
    """an expression may have {limit} characters at most"""
