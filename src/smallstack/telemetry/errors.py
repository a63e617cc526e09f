"""The base of every exception the project raises on purpose.

The docstring of an exception class is its message template: one line, formatted with the keyword
arguments of the constructor. The line names what was asked, what stands in the way, and what to
do about it::

    class ImageNotFoundError(SmallStackError):
        \"\"\"image {name!r} does not exist on {server}: check `imagetool list`\"\"\"

    raise ImageNotFoundError(name=name, server=server)
"""

import os
import sys
from string import Formatter
from typing import Any, Self


class SmallStackError(Exception):
    """{detail}"""

    template: str = "{detail}"
    fields: dict[str, Any]
    denies: bool = False
    """Whether it keeps a caller from what only others may do: such refusals are audited."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__doc__")
        if own:
            cls.template = " ".join(own.split())

    def __init__(self, **fields: Any) -> None:
        """``fields`` fill the template in; each is also an attribute."""
        super().__init__(fields)
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name, obj=self) from None

    def __str__(self) -> str:
        text = _OneLine().vformat(self.template, (), self.fields)
        return " ".join(text.split())

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.fields))

    @classmethod
    def wrap(cls, error: BaseException, **fields: Any) -> Self:
        """An instance whose ``detail`` is the text of ``error``, which becomes its cause."""
        made = cls(detail=describe(error), **fields)
        made.__cause__ = error
        return made


class _OneLine(Formatter):
    """Fills a template in; a field nobody gave shows as its own name, never as a KeyError."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        if isinstance(key, str) and key not in kwargs:
            return f"{{{key}}}"
        return super().get_value(key, args, kwargs)


def describe(error: BaseException, named: object = None) -> str:
    """One line for any exception: its own text, or its class name where that is empty.

    An OSError gives the system's text and the file it is about, unless that is the one ``named``
    beside this text anyway.
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.errno and text.startswith("Connect call failed"):  # asyncio's words, with a tuple
            text = os.strerror(error.errno)
        file = error.filename
        about = f": {file}" if file and str(file) != str(named) else ""
        return f"{text}{about}"
    return " ".join(str(error).split()) or type(error).__name__


def _rebuild(cls: type[SmallStackError], fields: dict[str, Any]) -> SmallStackError:
    return cls(**fields)


if sys.flags.optimize > 1:  # pragma: no cover
    raise ImportError("message templates are docstrings: do not run with python -OO")
