"""Flags win over the environment, which wins over the file, which wins over the default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from smallstack import settings
from smallstack.settings import Setting, SettingError, load, show_config
from smallstack.telemetry.errors import SmallStackError

PORT = Setting("port", settings.integer, 6976, "the port")
STATE = Setting("state_dir", settings.path, Path("/var/lib/x"), "where VMs live")
OPEN = Setting("open_pages", settings.boolean, False, "pages for everybody")
ALL: list[Setting[Any]] = [PORT, STATE, OPEN]


def _file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(content)
    return path


def test_precedence_and_origin(tmp_path: Path) -> None:
    file = _file(tmp_path, 'port = 1\nstate_dir = "/top"\n[hypervisor]\nport = 2\n')
    values = load(ALL, environ={}, file=file, section="hypervisor")
    assert (values[PORT], values.origin(PORT)) == (2, f"{file}: hypervisor.port")
    assert (values[STATE], values.origin(STATE)) == (Path("/top"), f"{file}: state_dir")
    assert (values[OPEN], values.origin(OPEN)) == (False, "default")
    environ = {"SMALLSTACK_PORT": "3", "SMALLSTACK_CONFIG": str(file)}
    values = load(ALL, environ=environ, section="hypervisor")
    assert (values[PORT], values.origin(PORT)) == (3, "SMALLSTACK_PORT")
    values = load(ALL, {"port": "4", "state_dir": None}, environ, section="hypervisor")
    assert (values[PORT], values.origin(PORT)) == (4, "--port")
    assert show_config(values).splitlines() == [
        "port = 4            # --port",
        f'state_dir = "/top"  # {file}: state_dir',
        "open_pages = false  # default",
    ]
    assert values.replace(PORT, 5, "asked for")[PORT] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[hypervisor]\nprot = 1",
            "[hypervisor] has no setting 'prot': there are open_pages",
        ),
        ("[hypervisor]\nport = 'x'", "'x' is no value for port: write a whole number"),
        ("hypervisor = 1", "'hypervisor' is not a table"),
        ("= 1", "cannot read the settings file"),
    ],
)
def test_bad_file(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(SmallStackError) as caught:
        load(ALL, environ={}, file=_file(tmp_path, content), section="hypervisor")
    assert message in str(caught.value)


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsFileError, match="No such file"):
        load(ALL, environ={}, file=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (settings.duration, "500ms", 500_000_000),
        (settings.duration, "10", 10_000_000_000),
        (settings.duration, "1.5m", 90_000_000_000),
        (settings.size, "10G", 10 * 2**30),
        (settings.size, "1.5 KiB", 1536),
        (settings.words, "a, b c", ("a", "b", "c")),
        (settings.boolean, "Yes", True),
        (settings.number, "1.5", 1.5),
        (settings.choice("a", "b"), "b", "b"),
        (settings.text, "", ""),
    ],
)
def test_types(kind: Callable[[str], object], text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (settings.duration, "10 days"),
        (settings.size, "-1"),
        (settings.boolean, "maybe"),
        (settings.number, "x"),
        (settings.integer, "1.5"),
        (settings.path, ""),
        (settings.choice("a", "b"), "c"),
    ],
)
def test_bad_values(kind: Callable[[str], object], text: str) -> None:
    with pytest.raises(SettingError, match="write "):
        load([Setting("x", kind, None, "")], {"x": text}, {})


def test_click_options() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @settings.click_options(ALL)
    def command(**flags: Any) -> None:
        seen.update(flags)

    runner = CliRunner()
    assert runner.invoke(command, ["--port", "7", "--open-pages"]).exit_code == 0
    assert seen == {"port": "7", "state_dir": None, "open_pages": True}
    assert load(ALL, seen, {})[OPEN] is True
    assert "[default: 6976]" in runner.invoke(command, ["--help"]).output


@pytest.mark.parametrize(
    ("kind", "entered", "shown"),
    [
        (settings.duration, "30s", '"30s"'),
        (settings.duration, "60s", '"1m"'),
        (settings.duration, "90", '"90s"'),
        (settings.duration, "1500ms", '"1500ms"'),
        (settings.duration, "0", "0"),
        (settings.size, "10G", '"10G"'),
        (settings.size, "1.5G", '"1536M"'),
        (settings.size, "1000", "1000"),
    ],
)
def test_durations_and_sizes_are_shown_as_they_are_entered(
    kind: Callable[[str], int], entered: str, shown: str
) -> None:
    setting = Setting("limit", kind, kind(entered), "a limit")
    values = load([setting], environ={})
    assert show_config(values) == f"limit = {shown}  # default"
    assert kind(shown.strip('"')) == values[setting]

    @click.command()
    @settings.click_options([setting])
    def command(limit: str | None) -> None: ...

    assert f"[default: {shown}]" in CliRunner().invoke(command, ["--help"]).output
