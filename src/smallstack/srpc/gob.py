"""gob, the first coder of SRPC, driven by the annotations of messages.

``gob_decoder`` finds where a value ends, ``gob_values`` reads it, ``gob_encoder`` writes; the work
on bytes and on whole file-system trees is in ``csrc/gob*.c``.
"""

from smallstack.srpc.coder import DEFAULT, IMAGE, NEED_MORE, Limits, NeedMore
from smallstack.srpc.errors import GobError
from smallstack.srpc.gob_decoder import Decoder, message_length
from smallstack.srpc.gob_encoder import Encoder

__all__ = [
    "DEFAULT",
    "IMAGE",
    "NEED_MORE",
    "Decoder",
    "Encoder",
    "GobError",
    "Limits",
    "NeedMore",
    "message_length",
]
