"""The Hypervisor's own key: made once, kept for root alone, and what it signs is verified."""

import stat
import subprocess
from pathlib import Path

import pytest

from smallstack.hypervisor import host_key
from smallstack.hypervisor.errors import RecordError
from smallstack.hypervisor.host_key import FILE, HostKey


async def test_a_signature_is_verified_by_openssl(tmp_path: Path) -> None:
    key = HostKey(tmp_path)
    document = b'{\n    "Address": {}\n}\n'
    signature = await key.sign(document)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    again = HostKey(tmp_path)
    assert await again.sign(document) == signature
    for name, data in (("document", document), ("signature", signature)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "public").write_bytes(await again.public_pem())

    def verify() -> str:
        command = ["openssl", "dgst", "-sha256", "-verify", "public", "-signature", "signature"]
        done = subprocess.run(
            [*command, "document"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    assert verify() == "Verified OK"
    (tmp_path / "document").write_bytes(document + b" ")
    assert verify() == "Verification failure"


async def test_signatures_are_remembered_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_key, "REMEMBERED", 3)
    key = HostKey(tmp_path)
    for text in (b"a", b"b", b"c", b"a", b"d"):
        await key.sign(text)
    assert list(key._signed) == [b"c", b"a", b"d"]


@pytest.mark.parametrize("text", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END"])
async def test_a_broken_key_is_told(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(RecordError, match=r"cannot use .*key\.pem"):
        await HostKey(tmp_path).sign(b"x")
