"""Manifest directories: what is read of them, and the one line about each mistake."""

import json
from pathlib import Path

import pytest

from smallstack.images.errors import ManifestError
from smallstack.images.manifest import load_manifest
from smallstack.images.package_lock import load_lock
from smallstack.proto.filesystem import ComputedFile
from smallstack.telemetry.errors import SmallStackError

PLAIN = {"SourceImage": "base/debian"}


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in {"manifest": json.dumps(PLAIN), **files}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if "scripts" in name and not name.endswith("plain"):
            path.chmod(0o755)
    return directory


def test_everything_is_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "package-list": "# tools\nvim\n\n  less=590-2\nlibc6:amd64\n",
            "scripts/20-b": "",
            "scripts/10-a": "",
            "pre-install-scripts/x": "",
            "files/etc/motd": "",
            "post-install-files.append/etc/hosts": "",
            "filter.add": "/var/log(|/.*)$\n",
            "triggers": '[{"MatchLines": ["/usr"], "Service": "ssh"}]',
            "computed-files": "/etc/mdb.json  localhost:6977\n",
            "tags.json": '{"os": "debian"}',
            "owners.json": '{"Groups": ["ops"], "Users": ["one"]}',
            "README.md": "",
            "notes": "",
        },
    )
    found = load_manifest(tmp_path)
    assert found.packages == ["vim", "less=590-2", "libc6:amd64"]
    assert found.scripts == {"pre-install-scripts": ["x"], "scripts": ["10-a", "20-b"]}
    assert found.overlays == {"files", "post-install-files.append"}
    assert found.filter is not None and found.filter_added
    assert found.triggers is not None and not found.triggers_added
    assert found.computed == [ComputedFile(filename="/etc/mdb.json", source="localhost:6977")]
    assert (found.tags, found.image_owners.groups) == ({"os": "debian"}, ["ops"])
    assert found.warnings == [f"{tmp_path}/notes has no part in a build"]


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    recipe = {**PLAIN, "SourceImageBuildVariables": {"a": "b"}}
    write(tmp_path, {"manifest": json.dumps(recipe)})
    (warning,) = load_manifest(tmp_path).warnings
    assert warning.endswith("manifest: SourceImageBuildVariables has no effect in this builder")


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"manifest": "{"}, "manifest: Input data was truncated"),
        ({"manifest": '{"Source": "x"}'}, "manifest: Object contains unknown field `Source`"),
        ({"manifest": "{}"}, "manifest: give one of SourceImage and Bootstrap"),
        (
            {"manifest": '{"Bootstrap": {"Suite": "bookworm", "Variant": "tiny"}}'},
            "manifest: Invalid enum value 'tiny' - at `$.Bootstrap.Variant`",
        ),
        ({"manifest": '{"Bootstrap": {"Suite": "../x"}}'}, "at `$.Bootstrap.Suite`"),
        ({"manifest": '{"SourceImage": "x", "FilterLines": ["("]}'}, "manifest: FilterLines"),
        (
            {"manifest": '{"SourceImage": "x", "ScriptTimeLimit": 0}'},
            "manifest: Expected `int` >= 1 - at `$.ScriptTimeLimit`",
        ),
        ({"package-list": "ok\n--force\n"}, "package-list: line 2: '--force' is no package"),
        ({"scripts/plain": ""}, "scripts/plain: it is not executable: chmod +x"),
        ({"filter": "", "filter.add": ""}, "it has both filter and filter.add"),
        ({"filter": "("}, "filter: '(' is no regular expression"),
        ({"triggers": "[{}]"}, "triggers: trigger 1 names no service"),
        ({"computed-files": "etc/x a:1\n"}, "computed-files: entry 1: write an absolute Filename"),
        (
            {"file-owners.json": '{"/x": {"Mode": "rwx"}}'},
            "file-owners.json: Expected `str` matching regex",
        ),
        ({"tags.json": '{"a": 1}'}, "tags.json: Expected `str`, got `int`"),
        ({"package-lock": '{"Format": 2}'}, "package-lock: Invalid enum value 2"),
        ({"package-list": "vim\n", "package-lock": "{}"}, "made for another package-list"),
        (
            {"package-lock": '{"Packages": [{"File": "../x.deb"}]}'},
            "`$.Packages[0].File`",
        ),
        ({"package-list": "x" * (1 << 20) + "\n"}, "package-list: it has more than 1048576 bytes"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, files: dict[str, str], error: str) -> None:
    with pytest.raises(SmallStackError) as found:
        load_lock(load_manifest(write(tmp_path, files)))
    assert error in str(found.value)
    assert "\n" not in str(found.value)
    assert str(tmp_path) in str(found.value)


def test_a_link_cannot_be_appended(tmp_path: Path) -> None:
    write(tmp_path, {"files.append/a": ""})
    (tmp_path / "files.append/link").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match=r"files.append/link: a symlink cannot be appended"):
        load_manifest(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match='there is no file "manifest": write'):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match="No such file or directory"):
        load_manifest(tmp_path / "missing")
