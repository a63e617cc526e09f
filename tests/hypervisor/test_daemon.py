"""The command, its settings, and what keeps it from starting."""

import fcntl
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smallstack.cli.hypervisor import hypervisor
from smallstack.daemon.run import Runtime
from smallstack.hypervisor import daemon
from smallstack.hypervisor.daemon import SETTINGS, NotRootError, serve
from smallstack.hypervisor.errors import RecordError
from smallstack.hypervisor.store import Store
from smallstack.identity import pki
from smallstack.identity.errors import CertificateError
from smallstack.settings import load
from smallstack.telemetry.errors import SmallStackError


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [n for n in os.environ if n.startswith("SMALLSTACK_")]:
        monkeypatch.delenv(name)
    yield


@pytest.fixture
def flags(tmp_path: Path, no_files: None) -> dict[str, Any]:
    authority = pki.make_ca(tmp_path / "ca")
    pki.issue(authority, "hypervisor", server=True).write(tmp_path / "own")
    return {
        "state_dir": str(tmp_path / "state"),
        "ca_file": str(tmp_path / "ca" / "ca.pem"),
        "cert_file": str(tmp_path / "own" / "cert.pem"),
        "key_file": str(tmp_path / "own" / "key.pem"),
        "accelerator": "tcg",
        "srpc_trust_vm_owners": "false",
    }


def test_show_config(no_files: None) -> None:
    done = CliRunner().invoke(hypervisor, ["--show-config", "--port", "7000", "--bridge", "a,b"])
    assert done.exit_code == 0
    lines = {line.split(" = ")[0]: line for line in done.output.splitlines()}
    assert set(lines) == {setting.name for setting in SETTINGS}
    assert lines["port"].endswith("# --port")
    assert lines["bridge"].startswith('bridge = "a,b"')
    assert '"/var/lib/hypervisor"' in lines["state_dir"]
    assert lines["state_dir"].endswith("# default")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "many"],
        ["--accelerator", "xen"],
        ["--log-level", "loud"],
        ["--config", "/none"],
        ["--object-cache-size", "big"],
    ],
)
def test_bad_settings_are_one_line(no_files: None, arguments: list[str]) -> None:
    done = CliRunner().invoke(hypervisor, arguments)
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert done.output.startswith("hypervisor: ")


def test_the_unit_keeps_vms_alive() -> None:
    unit = (Path(daemon.__file__).parent / "hypervisor.service").read_text()
    for line in ("KillMode=process", "Restart=always", "RestartSec=5", "Type=notify"):
        assert line in unit.splitlines()


async def test_not_root(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRootError, match="the hypervisor needs root"):
        await serve(load(SETTINGS, flags), Runtime())


ROOT = pwd.getpwuid(0).pw_name


@pytest.mark.root
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"qemu_user": "no such user"}, "there is no user 'no such user' for QEMU"),
        ({"qemu_user": ROOT}, f"QEMU may not run as '{ROOT}', who is root"),
        ({"qemu_uids": "0"}, "QEMU cannot have the uids 0 to 65535: 0 is root"),
        ({"volume_directories": "/proc/none"}, "cannot use the volume directory /proc/none"),
    ],
)
async def test_what_it_cannot_use(
    flags: dict[str, Any], changes: dict[str, str], text: str
) -> None:
    with pytest.raises(SmallStackError) as raised:
        await serve(load(SETTINGS, flags | changes), Runtime())
    assert str(raised.value).startswith(text)


@pytest.mark.root
async def test_no_certificate(flags: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"none\.pem"):
        await serve(load(SETTINGS, flags | {"cert_file": "/none.pem"}), Runtime())
    assert not (tmp_path / "state").exists()


@pytest.mark.root
async def test_broken_state(flags: dict[str, Any], tmp_path: Path) -> None:
    """Neither is thrown away: the user decides."""
    state = tmp_path / "state"
    store = Store(state)
    store.prepare()
    (state / "subnets.json").write_text("{")
    with pytest.raises(SmallStackError, match=r"cannot read .*subnets\.json"):
        await serve(load(SETTINGS, flags), Runtime())
    assert (state / "subnets.json").read_text() == "{"
    with pytest.raises(RecordError):
        Store(state / "subnets.json" / "x").prepare()


@pytest.mark.root
async def test_one_agent_per_state_directory(flags: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.prepare()
    fd = os.open(store.directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(SmallStackError, match="is in use by another hypervisor"):
            await serve(load(SETTINGS, flags), Runtime())
    finally:
        os.close(fd)
