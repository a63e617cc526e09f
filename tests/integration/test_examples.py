"""What lies in examples/, as a user runs it, against a running agent."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.integration.cloud import IMAGE, PORT, Cloud

HERE = Path(__file__).parents[2]
FIFTY = (str(HERE / "examples" / "fifty_vms.py"), f"localhost:{PORT}")
pytestmark = [pytest.mark.root, pytest.mark.qemu]


async def run(cloud: Cloud, home: Path, *command: str) -> tuple[int, list[str], list[str]]:
    """The exit code, and the lines of both outputs."""
    home.mkdir(exist_ok=True)
    if not (home / ".ssl").exists():
        (home / ".ssl").symlink_to(cloud.credentials.pair.key.parent)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**os.environ, "HOME": str(home)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


async def test_fifty_vms(cloud: Cloud, tmp_path: Path) -> None:
    """Three of them; fifty take half a minute."""
    home = tmp_path / "home"
    status, out, err = await run(cloud, home, *FIFTY, IMAGE, "--count", "3", "--at-once", "2")
    assert (status, err) == (0, [])
    *each, summary, gone = out
    assert sorted(line.split()[0] for line in each) == ["many-1", "many-2", "many-3"]
    assert len({line.split()[1] for line in each}) == 3
    assert all(line.endswith(" s  has its address") for line in each)
    assert re.fullmatch(
        r"3 VMs in [\d.]+ s, 2 at a time: fastest .* s; 0 did not ask for an address", summary
    )
    assert gone == "3 VMs destroyed"
    assert await cloud.states() == {}


async def test_fifty_vms_of_which_the_fifth_has_no_address(cloud: Cloud, tmp_path: Path) -> None:
    home = tmp_path / "home"
    status, out, err = await run(cloud, home, *FIFTY, IMAGE, "--count", "50", "--at-once", "1")
    assert (status, len(err)) == (1, 1)
    assert err[0].startswith("fifty_vms: no free addresses in pool")
    assert out[-1] == "4 VMs destroyed"
    assert await cloud.states() == {}
    status, out, err = await run(cloud, home, *FIFTY, "no/such/image", "--at-once", "1")
    assert (status, out) == (1, ["0 VMs destroyed"])
    assert len(err) == 1
    assert err[0].startswith("fifty_vms: ")
    assert "no/such/image" in err[0]


async def test_the_program_of_the_readme(cloud: Cloud, tmp_path: Path) -> None:
    text = (HERE / "README.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    await cloud.add_image("demo/appliance")
    status, out, err = await run(cloud, tmp_path / "home", "-c", program)
    assert (status, err) == (0, [])
    assert out[0] == "getting image"
    assert "hostname='first'" in out[-1]
    assert await cloud.states() == {}
