"""What can go wrong in the image server beside its images and objects."""

from smallstack.telemetry.errors import SmallStackError


class FetchError(SmallStackError):
    """cannot get {url}: {detail}"""


class ImportTreeError(SmallStackError):
    """cannot import {url}: {detail}"""
