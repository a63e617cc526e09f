"""A cloud per test module, in a network namespace of its own."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from smallstack.settings import cache_directory
from tests.integration.cloud import Cloud
from tests.network.world import private_namespace

HERE = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def appliance() -> Path:
    """The appliance's tree; the test command has made it, a bare pytest makes it now."""
    made = os.environ.get("SMALLSTACK_APPLIANCE")
    if not made:
        built = subprocess.run(
            [HERE / "images" / "appliance" / "build", cache_directory()],
            check=True,
            capture_output=True,
            text=True,
        )
        made = built.stdout.strip()
    return Path(made) / "root"


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test, its threads and its daemons live in a network namespace of their own."""
    with private_namespace():
        yield


@pytest.fixture
async def bare_cloud(namespace: None, tmp_path: Path, appliance: Path) -> AsyncIterator[Cloud]:
    """Keys and an image server with the appliance; no hypervisor yet."""
    made = Cloud(tmp_path, appliance)
    made.make_keys()
    try:
        await made.start_image_server()
        await made.add_image()
        yield made
    finally:
        await made.close()


@pytest.fixture
async def cloud(bare_cloud: Cloud) -> Cloud:
    """With a hypervisor that has four addresses."""
    await bare_cloud.start_hypervisor()
    await bare_cloud.set_up()
    return bare_cloud
