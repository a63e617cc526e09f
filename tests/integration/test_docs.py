"""The examples of the documentation, run as they stand there, against a running agent."""

import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.integration.cloud import PORT, Cloud

USER = "reader"
JSON = Path(__file__).parents[2] / "docs" / "json.md"
pytestmark = [pytest.mark.root, pytest.mark.qemu]


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.M | re.S)


async def _run(home: Path, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "HOME": str(home), "USER": USER, "HYPERVISOR": f"localhost:{PORT}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_json(cloud: Cloud, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssl").mkdir(parents=True)
    pair = cloud.credentials.pair
    (home / ".ssl" / f"{USER}.cert").symlink_to(pair.certificate)
    (home / ".ssl" / f"{USER}.key").symlink_to(pair.key)
    created = await cloud.create(do_not_start=True, hostname="first")

    (python,) = _blocks(JSON, "python")
    assert await _run(home, sys.executable, "-I", "-c", python) == (
        f"{created.ip_address} stopped first 128 MiB\n"
    )

    shell, pages = _blocks(JSON, "sh")
    capacity = json.loads(await _run(home, "bash", "-euc", shell))
    assert capacity["NumCPUs"] == os.cpu_count()

    healthy, hostname, *rest = (await _run(home, "bash", "-euc", pages)).splitlines()
    assert (healthy, hostname) == ("OK", socket.gethostname())
    assert rest.count("Hypervisor.GetVmInfo") == 2
    assert rest.count("Hypervisor.UpdateSubnets") == 1  # it is not a public one
    assert ".LocalUpgradeToUnix" in rest
    assert any(line.startswith("smallstack_rpc_connections_opened_total ") for line in rest)
