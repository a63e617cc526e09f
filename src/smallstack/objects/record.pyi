"""Types of the records of the index of a cache."""

from smallstack.objects.store import Stored

def added(objects: list[Stored]) -> bytes: ...
