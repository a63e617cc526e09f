"""What is on disk: upstream's names and forms, whole records or none."""

import errno
import json
import stat
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import RecordError, VmExistsError
from smallstack.hypervisor.store import (
    AgentRecord,
    Layer,
    Store,
    VmDirectory,
    to_json,
)
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.every import CreateVmRequest
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume, VmInfo, Volume

IP = "198.51.100.2"
RECORD = LocalVmInfo(
    vm_info=VmInfo(
        address=Address(ip_address=IP, mac_address="52:54:c6:33:64:02"),
        memory_in_mib=128,
        milli_cpus=10,
        state=State.RUNNING,
        owner_users=["someone"],
        volumes=[Volume(size=1 << 24)],
    ),
    volume_locations=[LocalVolume(directory_to_cleanup=f"/v/{IP}", filename=f"/v/{IP}/root")],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.prepare()
    return made


@pytest.fixture
def directory(store: Store) -> VmDirectory:
    made = store.vm(IP)
    made.create()
    return made


def test_the_state_directory(store: Store) -> None:
    uuid = (store.directory / "uuid").read_bytes()
    cookie = (store.directory / "root-cookie").read_bytes()
    assert len(uuid) == 33
    assert uuid.endswith(b"\n")
    assert len(cookie) == 32
    assert stat.S_IMODE((store.directory / "root-cookie").stat().st_mode) == 0o600
    store.prepare()
    assert (store.directory / "uuid").read_bytes() == uuid
    assert (store.directory / "root-cookie").read_bytes() != cookie
    store.close()
    assert not (store.directory / "root-cookie").exists()


def test_what_is_of_a_vm_is_not_for_everybody(store: Store, directory: VmDirectory) -> None:
    """Not in a state directory of former modes either."""
    store.vms.chmod(0o755)
    store.prepare()
    directory.write(b"{}")
    directory.write_agent(AgentRecord())
    directory.write_request(CreateVmRequest())
    assert stat.S_IMODE(store.vms.stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.path.iterdir()} == {0o600}


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot use .*file/state: Not a directory"):
        Store(tmp_path / "file" / "state").prepare()


def test_info_json_has_upstreams_form(directory: VmDirectory) -> None:
    """The VM's fields lie flat beside VolumeLocations; words, not numbers."""
    directory.write(to_json(RECORD))
    text = (directory.path / "info.json").read_text()
    assert text.startswith('{\n    "Address": {\n        "IpAddress": "198.51.100.2"')
    assert text.endswith("}\n")
    loaded = json.loads(text)
    assert loaded["State"] == "running"
    assert loaded["MemoryInMiB"] == 128
    assert loaded["VolumeLocations"] == [
        {"DirectoryToCleanup": f"/v/{IP}", "Filename": f"/v/{IP}/root"}
    ]
    assert directory.read() == RECORD


def test_comment_lines_are_skipped(directory: VmDirectory) -> None:
    text = b"# written by hand\n// so\n!and so\n" + to_json(RECORD)
    (directory.path / "info.json").write_bytes(text)
    assert directory.read() == RECORD


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"State": "unheard of"}', b"\xff"])
def test_a_broken_record_is_told(directory: VmDirectory, text: bytes) -> None:
    (directory.path / "info.json").write_bytes(text)
    with pytest.raises(RecordError, match=r"cannot read .*info\.json: "):
        directory.read()


def test_a_missing_record_is_missing(directory: VmDirectory) -> None:
    with pytest.raises(FileNotFoundError):
        directory.read()


def test_our_own_record(directory: VmDirectory) -> None:
    assert directory.read_agent() == AgentRecord()
    record = AgentRecord(lease=False, root=Layer(format="qcow2", backing="/v/bricks/x"))
    directory.write_agent(record)
    assert directory.read_agent() == record
    (directory.path / "agent.json").write_text("{")
    with pytest.raises(RecordError, match=r"cannot read .*agent\.json"):
        directory.read_agent()


def test_private_keys_are_not_kept(directory: VmDirectory) -> None:
    request = CreateVmRequest(identity_key=b"secret", identity_certificate=b"public")
    directory.write_request(request)
    assert b"c2VjcmV0" not in (directory.path / "create-request.json").read_bytes()
    assert request.identity_key == b"secret"


def test_acknowledgement(directory: VmDirectory) -> None:
    assert directory.is_acknowledged
    directory.expect_acknowledgement()
    assert not VmDirectory(directory.path).is_acknowledged
    directory.acknowledge()
    directory.acknowledge()
    assert VmDirectory(directory.path).is_acknowledged


def test_a_directory_is_made_once(store: Store, directory: VmDirectory) -> None:
    with pytest.raises(VmExistsError, match=r"it is there already"):
        store.vm(IP).create()


def test_the_record_goes_last(directory: VmDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that is cut short is found, and finished, by the next start."""
    directory.write(to_json(RECORD))
    for name in ("agent.json", "user-data.raw", "unacknowledged"):
        (directory.path / name).write_text("x")
    (directory.path / "console").mkdir()
    (directory.path / "console" / "0.log").write_text("x")

    def break_off(self: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", break_off)
        with pytest.raises(OSError, match="Input/output"):
            directory.remove()
    assert list(directory.path.iterdir()) == []
    directory.remove()
    directory.remove()
    assert not directory.path.exists()


def test_only_addresses_are_vms(store: Store, directory: VmDirectory) -> None:
    (store.vms / "lost+found").mkdir()
    (store.vms / "198.51.100.300").mkdir()
    assert [found.ip for found in store.list()] == [IP]
