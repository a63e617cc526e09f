"""What a service answers when it cannot do what was asked."""

from smallstack.telemetry.errors import SmallStackError


class ServiceError(SmallStackError):
    """{text}"""


class ObjectsMissingError(ServiceError):
    """{server} does not have what the image needs: {text}"""


class SourceError(SmallStackError):
    """cannot read {name}: {detail}"""
