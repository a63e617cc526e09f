"""KVM or software emulation: decided by running a real guest, remembered until the next boot.

``/dev/kvm`` can be there, open, make machines, and still hang every ordinary kernel. So ``auto``
believes a guest that has run instructions which no emulator of KVM's knows (csrc/kvm_probe.c),
in a child process, for 50 ms at a time at most. Only what such a guest did is remembered, with the
host's boot id: a device that is missing or closed to us costs nothing to look at again.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Literal

from smallstack.machine import kvm_probe
from smallstack.machine.errors import AcceleratorError
from smallstack.machine.spec import Verdict

Setting = Literal["auto", "kvm", "tcg"]

DEVICE = Path("/dev/kvm")
LIMIT_MS = 50
TRIES = 3
"""How often a guest may run out of time: a busy host can keep it waiting for that long."""
CACHE_NAME = "accelerator.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPUINFO = Path("/proc/cpuinfo")
_EMULATION_FAILED = 1


class Outcome(IntEnum):
    """enum ss_kvm_outcome of csrc/kvm_probe.h."""

    WORKS = 0
    NO_DEVICE = 1
    NOT_KVM = 2
    SETUP = 3
    INTERNAL = 4
    EXIT = 5
    RUN = 6
    WRONG = 7
    TIMEOUT = 8
    HUNG = 9
    DIED = 10


# No guest ran, or something else ended it: it may be different the next time.
_PASSING = frozenset({Outcome.NO_DEVICE, Outcome.NOT_KVM, Outcome.SETUP, Outcome.DIED})


def reason(device: Path, outcome: Outcome, detail: int) -> str:
    """One line: what was tried and what came of it."""
    errno_text = os.strerror(abs(detail))
    match outcome:
        case Outcome.WORKS:
            return f"{device} ran a 64-bit guest"
        case Outcome.NO_DEVICE:
            return f"{device} cannot be opened: {errno_text}"
        case Outcome.NOT_KVM:
            what = f"version {detail}" if detail >= 0 else errno_text
            return f"{device} does not speak KVM's API version 12 ({what})"
        case Outcome.SETUP:
            return f"{device} cannot make a machine: {errno_text}"
        case Outcome.INTERNAL if detail == _EMULATION_FAILED:
            return (
                f"{device} has no hardware behind it: its emulator failed at an ordinary"
                " instruction (KVM_EXIT_INTERNAL_ERROR)"
            )
        case Outcome.INTERNAL:
            return f"{device} gave up on a guest: KVM_EXIT_INTERNAL_ERROR {detail}"
        case Outcome.EXIT:
            return f"{device} left a guest for no reason: KVM exit {detail}"
        case Outcome.RUN:
            return f"{device} cannot run a guest: {errno_text}"
        case Outcome.WRONG:
            return f"{device} computed a wrong result"
        case Outcome.TIMEOUT | Outcome.HUNG:
            return f"{device} did not finish a guest of a millisecond within {LIMIT_MS} ms"
        case Outcome.DIED:
            return f"{device} took the process that tried it down (status {detail:#x})"


async def probe(
    setting: Setting,
    state_dir: Path,
    *,
    device: Path = DEVICE,
    run: Callable[[bytes, int], tuple[int, int, int]] = kvm_probe.run,
) -> Verdict:
    """The accelerator of this host under ``setting``, with the reason.

    ``auto`` falls back to software emulation; ``kvm`` raises AcceleratorError where KVM does not
    work; ``tcg`` tries nothing. ``state_dir`` holds the cache, which is no loss to lose.
    """
    tsc_khz = host_tsc_khz()
    if setting == "tcg":
        return Verdict("tcg", "software emulation was asked for", tsc_khz)
    cache = state_dir / CACHE_NAME
    key = {"boot_id": _boot_id(), "device": _identity(device)}
    remembered = _load(cache, key)
    if remembered is None:
        outcome, detail = await asyncio.to_thread(_ask, device, run)
        remembered = (outcome is Outcome.WORKS, reason(device, outcome, detail))
        if outcome not in _PASSING:
            _save(cache, key, remembered)
    works, why = remembered
    if works:
        return Verdict("kvm", why, tsc_khz)
    if setting == "kvm":
        raise AcceleratorError(setting=setting, detail=why)
    return Verdict("tcg", why, tsc_khz)


def probe_now(device: Path = DEVICE) -> Verdict:
    """What ``auto`` would find now, without a cache. Blocks for a few
    milliseconds; 150 where a guest hangs."""
    outcome, detail = _ask(device, kvm_probe.run)
    works = outcome is Outcome.WORKS
    return Verdict("kvm" if works else "tcg", reason(device, outcome, detail), host_tsc_khz())


def _ask(device: Path, run: Callable[[bytes, int], tuple[int, int, int]]) -> tuple[Outcome, int]:
    for _ in range(TRIES):
        number, detail, _elapsed_ns = run(os.fsencode(device), LIMIT_MS)
        if number != Outcome.TIMEOUT:
            break
    return Outcome(number), detail


def host_tsc_khz(cpuinfo: Path = _CPUINFO) -> int | None:
    """The time-stamp counter's kHz, to 5 kHz; None where it is not constant or not there.

    The kernel derives its delay loop from the counter, so "bogomips" is twice its MHz
    (calibrate_delay in the kernel's init/calibrate.c), which is not so for "cpu MHz".
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    bogomips = re.search(r"^bogomips\s*:\s*([0-9]{1,6}\.[0-9]{1,2})$", text, re.MULTILINE)
    if flags is None or bogomips is None or "constant_tsc" not in flags[1].split():
        return None
    return round(float(bogomips[1]) * 500)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _identity(device: Path) -> str:
    try:
        return f"{device} {device.stat().st_rdev:#x}"
    except OSError:
        return f"{device} missing"


def _load(cache: Path, key: dict[str, str]) -> tuple[bool, str] | None:
    try:
        match json.loads(cache.read_text()):
            case {"key": found, "works": bool(works), "reason": str(why)} if found == key:
                return works, why
    except (OSError, ValueError):
        pass
    return None


def _save(cache: Path, key: dict[str, str], verdict: tuple[bool, str]) -> None:
    text = json.dumps({"key": key, "works": verdict[0], "reason": verdict[1]}, indent=2) + "\n"
    new = cache.with_name(cache.name + "~")
    try:
        new.write_text(text)
        new.replace(cache)
    except OSError:
        pass
