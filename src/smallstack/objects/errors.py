"""What can go wrong with objects."""

from smallstack.telemetry.errors import SmallStackError


class ObjectError(SmallStackError):
    """object {hash}: {detail}"""


class ObjectMissingError(ObjectError):
    """{count} object(s) of the image are not on {server}, the first is {hash}: add the image again with `imagetool add`"""  # noqa: E501


class ObjectCorruptError(ObjectError):
    """object {hash} from {server} is corrupt, its content has the digest {found}: repair it with `imagetool add --send-all` of the same content"""  # noqa: E501


class ObjectSizeError(ObjectError):
    """object {hash} from {server} has {found} bytes instead of {size}: add the image again"""


class ObjectNotStoredError(ObjectError):
    """object {hash} is not in {directory}"""


class FetchError(SmallStackError):
    """cannot fetch objects from {server}: {detail}"""


class StoreSpaceError(SmallStackError):
    """no space left on the file system of {directory} for an object of {size} bytes: free some"""


class StoreError(SmallStackError):
    """cannot use the object store {directory}: {detail}"""


class StoreBusyError(SmallStackError):
    """the object store {directory} is in use by another process: stop it first"""


class CacheFullError(SmallStackError):
    """the object cache cannot take {needed} bytes: its quota is {quota} bytes and {pinned} bytes are in use by running creates; raise --object-cache-size"""  # noqa: E501
