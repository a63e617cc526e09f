"""What can go wrong with one QEMU process."""

from smallstack.telemetry.errors import SmallStackError


class MachineError(SmallStackError):
    """{detail}"""


class AcceleratorError(MachineError):
    """accelerator {setting} was asked for but cannot be used: {detail}; use `auto` or `tcg`"""


class SpecError(MachineError):
    """machine {name}: {detail}"""


class QemuMissingError(MachineError):
    """machine {name}: {program} was not found: install qemu-system-x86 or name another program"""


class SpawnError(MachineError):
    """machine {name}: {program} could not be started, {stage}: {detail}"""


class StartError(MachineError):
    """machine {name}: QEMU ended at its start ({status}): {detail}"""


class StartTimeoutError(MachineError):
    """machine {name}: QEMU did not answer on its monitor within {limit:g} s and was killed:
    {detail}"""


class MonitorError(MachineError):
    """machine {name}: QEMU's monitor refused {command}: {detail}"""


class MonitorLostError(MachineError):
    """machine {name}: no connection to QEMU's monitor: {detail}"""


class NotRunningError(MachineError):
    """machine {name} is not running: it ended with {reason}"""


class DisobedientGuestError(MachineError):
    """machine {name}: the guest did not {asked} within {limit:g} s"""


class ConsoleBusyError(MachineError):
    """VM already has a serial port connection"""


class ConsoleClosedError(MachineError):
    """VM serial port closed"""


class CgroupError(MachineError):
    """no control groups for processors, all VMs compete as equals: {detail}; mount a cgroup
    hierarchy with the cpu controller, writable, or set --cpu-control none"""


class KernelError(MachineError):
    """{detail}"""
