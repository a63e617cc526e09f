"""Settings of a daemon: flags, then environment, then one TOML file, then the default.

A setting called ``state_dir`` is the flag ``--state-dir``, the variable ``SMALLSTACK_STATE_DIR``
and the key ``state_dir`` of the file, in the daemon's own table (``[hypervisor]``) or else at the
top. Every value remembers where it came from, so that ``--show-config`` can say so::

    STATE_DIR = Setting("state_dir", path, Path("/var/lib/smallstack"), "where VMs live")
    values = load([STATE_DIR], flags={}, section="hypervisor")
    values[STATE_DIR]           # Path, typed
    values.origin(STATE_DIR)    # "default", "--state-dir", "SMALLSTACK_STATE_DIR", "<file>: …"
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from smallstack.telemetry.errors import SmallStackError, describe

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
ENVIRONMENT_PREFIX = "SMALLSTACK_"
DEFAULT_FILE = Path("/etc/smallstack/smallstack.toml")


def cache_directory() -> Path:
    """Where downloads, builds and the demo's state are kept; ``dev`` decides the same way."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("SMALLSTACK_CACHE")
    return Path(named) if named else Path(base).expanduser() / "smallstack"


class SettingError(SmallStackError):
    """{origin}: {value!r} is no value for {name}: {detail}"""


class SettingsFileError(SmallStackError):
    """cannot read the settings file {path}: {detail}"""


class UnknownSettingError(SmallStackError):
    """{path}: [{section}] has no setting {name!r}: there are {known}"""


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One setting. ``type`` makes the value of a text, raising ValueError with what it wants."""

    name: str
    type: Callable[[str], T]
    default: T
    help: str

    @property
    def flag(self) -> str:
        """The command line's name: ``--state-dir``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment's name: ``SMALLSTACK_STATE_DIR``."""
        return ENVIRONMENT_PREFIX + self.name.upper()


class Values:
    """The value of each setting and its origin."""

    def __init__(self, found: Mapping[str, tuple[Any, str]], settings: Sequence[Setting[Any]]):
        self._found = dict(found)
        self.settings = list(settings)

    def __getitem__(self, setting: Setting[T]) -> T:
        value: T = self._found[setting.name][0]
        return value

    def origin(self, setting: Setting[Any]) -> str:
        """Where the value came from: a flag, a variable, a file's key, or ``default``."""
        return self._found[setting.name][1]

    def replace(self, setting: Setting[T], value: T, origin: str) -> "Values":
        """The same values but for one."""
        return Values({**self._found, setting.name: (value, origin)}, self.settings)


def load(
    settings: Sequence[Setting[Any]],
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    section: str = "",
) -> Values:
    """The value of every setting.

    ``flags`` maps setting names to what the command line gave: a text, a value of the right type,
    or None for a flag that was not given. ``file`` must exist when it is named, here or by
    ``SMALLSTACK_CONFIG``; the default file need not.

    Raises SettingError, SettingsFileError or UnknownSettingError.
    """
    flags = flags or {}
    environ = os.environ if environ is None else environ
    path, table = _read(file, environ)
    own = table.get(section, {}) if section else {}
    if not isinstance(own, dict):
        raise SettingsFileError(path=path, detail=f"{section!r} is not a table")
    _check_names(settings, own, path, section)
    found: dict[str, tuple[Any, str]] = {}
    for setting in settings:
        name = setting.name
        if flags.get(name) is not None:
            found[name] = (_convert(setting, flags[name], setting.flag), setting.flag)
        elif setting.variable in environ:
            value = _convert(setting, environ[setting.variable], setting.variable)
            found[name] = (value, setting.variable)
        elif name in own:
            origin = f"{path}: {section}.{name}"
            found[name] = (_convert(setting, own[name], origin), origin)
        elif name in table and not isinstance(table[name], dict):
            origin = f"{path}: {name}"
            found[name] = (_convert(setting, table[name], origin), origin)
        else:
            found[name] = (setting.default, "default")
    return Values(found, settings)


def show_config(values: Values) -> str:
    """One line per setting: ``name = value  # origin``; what ``--show-config`` prints."""
    rows = [
        (f"{setting.name} = {_shown(setting, values[setting])}", values.origin(setting))
        for setting in values.settings
    ]
    width = max((len(text) for text, _ in rows), default=0)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)


def click_options(settings: Iterable[Setting[Any]]) -> Callable[[F], F]:
    """A decorator that gives a click command one option per setting.

    The command receives None for an option that was not given, so that its parameters can go to
    `load` as ``flags``. A boolean setting gets ``--name/--no-name``.
    """
    import click

    def decorate(command: F) -> F:
        for setting in reversed(list(settings)):
            flag = setting.flag
            shown = f"{setting.help}  [default: {_shown(setting, setting.default)}]"
            if setting.type is boolean:
                declaration = f"{flag}/--no-{flag.removeprefix('--')}"
                option = click.option(declaration, setting.name, default=None, help=shown)
            else:
                metavar = setting.type.__name__.upper()
                option = click.option(flag, setting.name, metavar=metavar, help=shown)
            command = option(command)
        return command

    return decorate


# The types a setting can have: each takes a text and raises ValueError saying what it wants.


def text(value: str) -> str:
    """Any text."""
    return value


def integer(value: str) -> int:
    """A whole number."""
    try:
        return int(value, 10)
    except ValueError:
        raise ValueError("write a whole number") from None


def number(value: str) -> float:
    """A number."""
    try:
        return float(value)
    except ValueError:
        raise ValueError("write a number") from None


def boolean(value: str) -> bool:
    """``true``, ``yes``, ``on``, ``1`` or their opposites."""
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    try:
        return words[value.strip().lower()]
    except KeyError:
        raise ValueError("write true or false") from None


def path(value: str) -> Path:
    """A file's place; ``~`` is the home directory."""
    if not value:
        raise ValueError("write a path")
    return Path(value).expanduser()


def words(value: str) -> tuple[str, ...]:
    """Words with commas or blanks between them."""
    return tuple(word for word in re.split(r"[,\s]+", value) if word)


def duration(value: str) -> int:
    """Nanoseconds of ``500ms``, ``10s``, ``1m``, ``2h`` or a number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", value.strip())
    if not match:
        raise ValueError("write a duration such as 500ms, 10s, 1m or 2h")
    units = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
    return int(float(match[1]) * units[match[2] or "s"])


def size(value: str) -> int:
    """Bytes of a number with an optional K, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", value.strip().lower())
    if not match:
        raise ValueError("write a size such as 512M or 10G")
    return int(float(match[1]) * 2 ** {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]])


_UNITS: dict[object, tuple[tuple[int, str], ...]] = {
    duration: ((3600 * 10**9, "h"), (60 * 10**9, "m"), (10**9, "s"), (10**6, "ms")),
    size: ((2**40, "T"), (2**30, "G"), (2**20, "M"), (2**10, "K")),
}
"""By a setting's type: how a value of whole units is shown."""


def choice(*allowed: str) -> Callable[[str], str]:
    """One of the given words."""

    def one_of(value: str) -> str:
        if value not in allowed:
            raise ValueError("write one of " + ", ".join(allowed))
        return value

    one_of.__name__ = "|".join(allowed)
    return one_of


def _read(file: Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    named = file or (Path(environ["SMALLSTACK_CONFIG"]) if "SMALLSTACK_CONFIG" in environ else None)
    path = named or DEFAULT_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        if named is None:
            return path, {}
        raise SettingsFileError(path=path, detail=describe(error)) from error
    except OSError as error:
        raise SettingsFileError(path=path, detail=error.strerror) from error
    import tomllib

    try:
        return path, tomllib.loads(content.decode())
    except ValueError as error:
        raise SettingsFileError(path=path, detail=describe(error)) from error


def _check_names(
    settings: Sequence[Setting[Any]], own: Mapping[str, Any], path: Path, section: str
) -> None:
    known = [setting.name for setting in settings]
    for name in own:
        if name not in known:
            raise UnknownSettingError(
                path=path, section=section, name=name, known=", ".join(sorted(known))
            )


def _convert(setting: Setting[T], value: Any, origin: str) -> T:
    """``value`` through the setting's type; lists join to words, booleans become their word."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    elif not isinstance(value, str):
        value = str(value)
    try:
        return setting.type(value)
    except ValueError as error:
        raise SettingError(
            origin=origin, value=value, name=setting.name, detail=str(error)
        ) from None


def _shown(setting: Setting[Any], value: Any) -> str:
    """A value as the settings file has it."""
    for unit, ends in _UNITS.get(setting.type, ()):
        if value and value % unit == 0:
            return f'"{value // unit}{ends}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return '"' + ",".join(map(str, value)) + '"'
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'
