"""The UEFI of this host: Debian's build of OVMF, and each VM's own copy of its variables."""

from pathlib import Path
from typing import Final, NamedTuple

from smallstack.durable import replace_file
from smallstack.hypervisor.errors import NoFirmwareError

VARIABLES: Final = "uefi-variables.fd"
"""The file in a VM's directory."""

_OVMF: Final = Path("/usr/share/OVMF")
_BUILDS: Final = (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd"))


class Firmware(NamedTuple):
    """``code`` is shared and only read; ``variables`` is what a new VM's variables are."""

    code: Path
    variables: Path


def find_uefi(directory: Path = _OVMF) -> Firmware:
    """The UEFI that guests get. Raises NoFirmwareError."""
    for code, variables in _BUILDS:
        found = Firmware(directory / code, directory / variables)
        if all(path.exists() for path in found):
            return found
    raise NoFirmwareError(directory=directory)


def own_variables(firmware: Firmware, directory: Path) -> Path:
    """The file of the VM of ``directory``, 0600; made at its first start. Raises OSError."""
    path = directory / VARIABLES
    if not path.exists():
        replace_file(path, firmware.variables.read_bytes(), 0o600)
    return path
