"""What can be wrong with a record by itself."""

from smallstack.telemetry.errors import SmallStackError


class TreeError(SmallStackError):
    """file-system tree is not valid: {what}"""
