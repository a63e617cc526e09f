"""Who QEMU runs as: any uid gets at /dev/kvm by the device's group, and at nothing else."""

import os
from pathlib import Path

import pytest

from smallstack.machine import start
from tests.machine.conftest import KVM, TCG, MakeSpec

KVM_GROUP = 106
UID = 2_100_000_007


@pytest.mark.root
@pytest.mark.parametrize(
    ("group", "mode", "groups"),
    [(KVM_GROUP, 0o660, [KVM_GROUP]), (KVM_GROUP, 0o666, []), (0, 0o660, [])],
)
def test_the_group_of_kvm(
    make_spec: MakeSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: int,
    mode: int,
    groups: list[int],
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, group)
    device.chmod(mode)
    monkeypatch.setattr(start, "_KVM", device)
    wanted = {"uid": UID, "gid": UID}
    assert start._identity(make_spec(verdict=KVM, **wanted)) == (UID, UID, groups)
    assert start._identity(make_spec(verdict=TCG, **wanted)) == (UID, UID, [])
