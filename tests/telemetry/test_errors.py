"""Messages come from class docstrings and are always one line."""

import pickle
from pathlib import Path

from smallstack.telemetry.errors import SmallStackError, describe


class _MissingError(SmallStackError):
    """image {name!r} does not exist
    on {server}"""


class _NarrowerError(_MissingError):
    pass


def test_template_is_filled_and_one_line() -> None:
    error = _MissingError(name="a\nb", server="here")
    assert str(error) == r"image 'a\nb' does not exist on here"
    assert error.server == "here"
    assert not hasattr(error, "port")


def test_subclass_without_docstring_keeps_the_template() -> None:
    assert str(_NarrowerError(name="x", server="y")) == "image 'x' does not exist on y"


def test_missing_field_never_hides_the_message() -> None:
    assert str(_MissingError(name="x")) == "image 'x' does not exist on {server}"


def test_newlines_in_fields_become_blanks() -> None:
    assert str(SmallStackError(detail="one\ntwo")) == "one two"


def test_pickle_round_trip() -> None:
    again = pickle.loads(pickle.dumps(_MissingError(name="x", server="y")))
    assert isinstance(again, _MissingError)
    assert again.fields == {"name": "x", "server": "y"}


def test_wrap_and_describe() -> None:
    cause = FileNotFoundError(2, "No such file or directory", "/x")
    error = SmallStackError.wrap(cause)
    assert str(error) == "No such file or directory: /x"
    assert error.__cause__ is cause
    assert describe(cause, Path("/x")) == "No such file or directory"
    assert describe(cause, "/y") == "No such file or directory: /x"
    assert describe(TimeoutError()) == "TimeoutError"
    refused = ConnectionRefusedError(111, "Connect call failed ('198.51.100.1', 80)")  # asyncio's
    assert describe(refused) == "Connection refused"
