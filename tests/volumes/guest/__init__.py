"""A kernel for tests of boot loaders; see kernel.S."""

import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def build_kernel(target: Path) -> None:
    """Write the kernel as a bzImage."""
    parts = target.with_name(target.name + ".o")
    subprocess.run(["gcc", "-c", "-o", parts, HERE / "kernel.S"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", parts, target], check=True)
    parts.unlink()
