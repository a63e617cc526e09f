"""The enumerations of the Hypervisor service: numbers in gob, words in JSON and on the screen."""

from smallstack.proto.kinds import Word


class ArchitectureType(Word):
    """A machine's processor architecture."""

    AUTO = 0
    AMD64 = 1
    ARM64 = 2


class ConsoleType(Word):
    """What kind of graphical console a VM has."""

    NONE = 0
    DUMMY = 1
    VNC = 2


class FirmwareType(Word):
    """What starts a VM that is not booted straight into its kernel."""

    DEFAULT = 0
    BIOS = 1
    UEFI = 2


class MachineType(Word):
    """A VM's chipset; *auto* leaves the choice to the agent."""

    AUTO = 0
    Q35 = 1
    PC = 2
    VIRT = 3


class State(Word):
    """Where a VM is in its life."""

    STARTING = 0
    RUNNING = 1
    FAILED_TO_START = 2
    STOPPING = 3
    STOPPED = 4
    DESTROYING = 5
    MIGRATING = 6
    EXPORTING = 7
    CRASHED = 8
    DEBUGGING = 9


class VolumeFormat(Word):
    """How a volume's bytes look to those who read it."""

    RAW = 0
    QCOW2 = 1


class VolumeInterface(Word):
    """What a volume is to its guest."""

    VIRTIO = 0
    IDE = 1
    NVME = 2
    DFM = 3


class VolumeType(Word):
    """Where a volume is kept."""

    PERSISTENT = 0
    MEMORY = 1


class WatchdogAction(Word):
    """What happens to a VM that stops feeding its watchdog."""

    NONE = 0
    RESET = 1
    SHUTDOWN = 2
    POWEROFF = 3


class WatchdogModel(Word):
    """Which watchdog device a VM has."""

    NONE = 0
    IB700 = 1
    I6300ESB = 2
