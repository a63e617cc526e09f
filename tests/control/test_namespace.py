"""A mount namespace of one's own: what is mounted inside reaches nobody, in a chroot neither."""

import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command

# As on a machine whose "/" is shared: a mount shared with a child's namespace, and the child in a
# directory of it that is no mount point.
CHROOT = """
import ctypes, os, sys
from smallstack.control import namespace
place = sys.argv[1]
namespace.mount("tmpfs", place, "tmpfs", 0)
namespace.mount(None, place, None, 1 << 20)  # MS_SHARED
for name in ("proc", "mounted"):
    os.makedirs(f"{place}/jail/{name}")
namespace.mount("/proc", f"{place}/jail/proc", None, 4096)  # MS_BIND
before = open("/proc/self/mountinfo").read()
child = os.fork()
if child == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(namespace.CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    os.chroot(f"{place}/jail")
    os.chdir("/mounted")
    namespace.make_mounts_private()
    assert os.getcwd() == "/mounted", os.getcwd()
    namespace.mount("tmpfs", "/mounted", "tmpfs", 0)
    assert os.path.ismount("/mounted")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert open("/proc/self/mountinfo").read() == before
"""


@pytest.mark.root
def test_a_mount_in_a_chroot_stays_inside(tmp_path: Path) -> None:
    done = subprocess.run(
        private_mounts_command([sys.executable, "-c", CHROOT, str(tmp_path)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_the_directory_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        private_mounts_command(["pwd"]), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}\n"
