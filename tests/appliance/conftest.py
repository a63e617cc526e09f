import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smallstack.settings import cache_directory

ROOT = Path(__file__).parents[2]
APPLIANCE = ROOT / "images" / "appliance"
INIT = APPLIANCE / "init"
HOST = Path(__file__).parent / "host"

Build = Callable[[str, list[str]], Path]


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles host/NAME.c with sources of the init, under sanitizers."""
    directory = tmp_path_factory.mktemp("host")

    def build(name: str, sources: list[str]) -> Path:
        program = directory / name
        if not program.exists():
            subprocess.run(
                [
                    "gcc",
                    *("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"),
                    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
                    f"-I{INIT}",
                    *("-o", str(program), str(HOST / f"{name}.c")),
                    *(str(INIT / f"{source}.c") for source in sources),
                ],
                check=True,
            )
        return program

    return build


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache directory of ./dev."""
    return cache_directory()


@pytest.fixture(scope="session")
def appliance(cache: Path) -> Path:
    """The built appliance: root/ and manifest.json."""
    if "SMALLSTACK_APPLIANCE" in os.environ:
        return Path(os.environ["SMALLSTACK_APPLIANCE"])
    built = subprocess.run(
        [str(APPLIANCE / "build"), str(cache)], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(built.stdout.strip())
