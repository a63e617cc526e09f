"""A Debian 12 root made by debootstrap, once: what the storage benchmarks and tests work on.

It is kept outside the checkout under a name that changes with the recipe; making it takes a few
minutes and needs root.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.results import BenchError
from smallstack.settings import cache_directory

SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd-sysv,udev,dbus,openssh-server,linux-image-cloud-amd64,vim,"
    "iproute2,ca-certificates,python3,man-db,git,less,cloud-init,ifupdown,"
    "python3-cffi-backend"  # cloud-init needs what it provides; debootstrap sees names alone
)
_FALLBACK: Final = "http://deb.debian.org/debian"
_RECIPE: Final = hashlib.sha256(f"{SUITE} {PACKAGES}".encode()).hexdigest()[:16]


def debian_root(cache: Path | None = None) -> Path:
    """The directory of the finished root; makes it if it is missing.

    Raises BenchError with debootstrap's last lines when that fails.
    """
    cache = cache or cache_directory()
    place = cache / f"debian-{_RECIPE}"
    root = place / "root"
    done = place / "complete"
    if done.exists():
        return root
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _make(root, place / "log")
            done.touch()
    return root


def _make(root: Path, log: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    print(f"making a Debian root in {root} (a few minutes, once)", file=sys.stderr, flush=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE]
    with log.open("wb") as output:
        status = subprocess.run(
            [*command, str(root), _mirror()], stdout=output, stderr=output, check=False
        ).returncode
    if status != 0:
        tail = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
        raise BenchError(detail=f"debootstrap failed, its log is {log}: {tail}")


def _mirror() -> str:
    """Where this machine's own apt gets its packages from."""
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    for line in found:
        uri, _, rest = line.partition(" ")
        if rest == f"Debian {SUITE}":
            return uri
    return _FALLBACK
