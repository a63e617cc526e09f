"""Work that is waited for to its end, even by a task that is cancelled meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def outlast(work: Awaitable[T], then: Callable[[T], None] | None = None) -> T:
    """The result of ``work``, such as what a thread does, after ``then`` was called with it.

    A cancellation of the caller is raised only after both; what ``work`` raises is raised in its
    place.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    result = future.result()
    if then is not None:
        then(result)
    if cancelled is not None:
        raise cancelled
    return result
