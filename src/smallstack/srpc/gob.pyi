from typing import Any, TypeVar, overload

from typing_extensions import Buffer

from smallstack.srpc.coder import DEFAULT as DEFAULT
from smallstack.srpc.coder import IMAGE as IMAGE
from smallstack.srpc.coder import NEED_MORE as NEED_MORE
from smallstack.srpc.coder import Limits as Limits
from smallstack.srpc.coder import NeedMore as NeedMore
from smallstack.srpc.coder import NeedMoreType
from smallstack.srpc.errors import GobError as GobError

T = TypeVar("T")

def message_length(data: Buffer) -> tuple[int, int] | NeedMoreType: ...

class Decoder:
    def __init__(self, limits: Limits = ..., *, keep_mapped: bool = ...) -> None: ...
    def feed(self, data: Buffer) -> None: ...
    @overload
    def decode(self, type_: type[T]) -> T | NeedMoreType: ...
    @overload
    def decode(self, type_: Any) -> Any: ...
    def take_rest(self) -> bytes: ...

class Encoder:
    def __init__(self, *, first_id: int = ...) -> None: ...
    def encode(self, value: object, type_: Any = ...) -> bytes: ...
