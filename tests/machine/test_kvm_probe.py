"""Every way a KVM can be there and not work, as far as this host can show it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from smallstack.machine import kvm_probe
from smallstack.machine.accelerator import Outcome

KVM = b"/dev/kvm"

needs_device = pytest.mark.skipif(not os.access(KVM, os.R_OK | os.W_OK), reason="no /dev/kvm")


def probe(
    device: bytes = KVM, limit_ms: int = 50, program: tuple[bytes, int, int] | None = None
) -> tuple[Outcome, int]:
    outcome, detail, _ = kvm_probe.run(device, limit_ms, program)
    return Outcome(outcome), detail


def real_kvm() -> bool:
    """Whether KVM has hardware behind it, asked by another way: what it multiplexes."""
    return not Path("/sys/module/kvm_pvm").exists() and any(
        Path(f"/sys/module/kvm_{vendor}").exists() for vendor in ("intel", "amd")
    )


@pytest.fixture(autouse=True)
def others() -> Iterator[set[int]]:
    """Children this process had before; afterwards it has no other, not even one to be reaped."""
    before = _children()
    yield before
    assert _children() <= before


def test_the_program_computes_what_it_is_expected_to() -> None:
    code, argument, expected = kvm_probe.real_program()
    rounds = 50_000
    assert rounds.to_bytes(4, "little") in code
    low = rounds * argument.bit_count()
    high = rounds * (argument & 0xFFFFFFFF) & 0xFFFFFFFF
    assert expected == low | high << 32
    assert b"\xf3\x48\x0f\xb8" in code, "popcnt"
    assert b"\x66\x0f\xef" in code, "pxor"
    assert code.endswith(b"\xf4"), "hlt"


def test_no_device(tmp_path: Path) -> None:
    assert probe(os.fsencode(tmp_path / "kvm")) == (Outcome.NO_DEVICE, 2)


def test_something_else_under_that_name() -> None:
    assert probe(b"/dev/null") == (Outcome.NOT_KVM, -25)  # ENOTTY


@needs_device
def test_the_real_program_here() -> None:
    outcome, detail = probe()
    if real_kvm():
        assert outcome is Outcome.WORKS
    elif Path("/sys/module/kvm_pvm").exists():
        assert (outcome, detail) == (Outcome.INTERNAL, 1)
    else:
        assert outcome is not Outcome.DIED


@needs_device
def test_a_guest_of_two_instructions_runs_even_without_hardware() -> None:
    # mov $7,%rax; hlt
    assert probe(program=(b"\x48\xc7\xc0\x07\0\0\0\xf4", 0, 7)) == (Outcome.WORKS, 0)


@needs_device
def test_the_argument_reaches_the_guest() -> None:
    # mov %rdi,%rax; hlt
    assert probe(program=(b"\x48\x89\xf8\xf4", 1 << 63 | 5, 1 << 63 | 5)) == (Outcome.WORKS, 0)


@needs_device
def test_a_wrong_result() -> None:
    assert probe(program=(b"\x48\xc7\xc0\x07\0\0\0\xf4", 0, 8)) == (Outcome.WRONG, 0)


@needs_device
def test_another_exit() -> None:
    outcome, detail = probe(program=(b"\xe6\x80\xf4", 0, 0))  # out %al,$0x80
    assert (outcome, detail) == (Outcome.EXIT, 2)  # KVM_EXIT_IO


@needs_device
def test_a_guest_that_never_ends_is_stopped_by_the_timer() -> None:
    outcome, _, elapsed_ns = kvm_probe.run(KVM, 50, (b"\xeb\xfe", 0, 0))  # jmp .
    assert outcome == Outcome.TIMEOUT
    assert elapsed_ns >= 50_000_000


@needs_device
def test_a_child_that_hangs_is_killed(others: set[int]) -> None:
    done: list[tuple[Outcome, int]] = []
    thread = threading.Thread(
        target=lambda: done.append(probe(limit_ms=300, program=(b"\xeb\xfe", 0, 0)))
    )
    thread.start()
    os.kill(_child_of_this_process(others), signal.SIGSTOP)
    thread.join()
    assert done == [(Outcome.HUNG, 0)]


@needs_device
def test_a_child_that_dies(others: set[int]) -> None:
    done: list[tuple[Outcome, int]] = []
    thread = threading.Thread(
        target=lambda: done.append(probe(limit_ms=2000, program=(b"\xeb\xfe", 0, 0)))
    )
    thread.start()
    os.kill(_child_of_this_process(others), signal.SIGSEGV)
    thread.join()
    assert done == [(Outcome.DIED, signal.SIGSEGV)]


def test_too_long_a_program() -> None:
    with pytest.raises(OSError, match="probe"):
        kvm_probe.run(KVM, 50, (bytes(4097), 0, 0))


def _child_of_this_process(others: set[int]) -> int:
    while True:
        for child in _children() - others:
            return child


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(word) for word in (task / "children").read_text().split()}
    return found
