import json
from collections.abc import Callable
from pathlib import Path

import pytest

from smallstack.machine import accelerator
from smallstack.machine.accelerator import CACHE_NAME, Outcome, host_tsc_khz, probe, reason
from smallstack.machine.errors import AcceleratorError

Run = Callable[[bytes, int], tuple[int, int, int]]


def answering(outcome: Outcome, detail: int = 0) -> tuple[Run, list[bytes]]:
    asked: list[bytes] = []

    def run(device: bytes, limit_ms: int) -> tuple[int, int, int]:
        assert limit_ms == 50
        asked.append(device)
        return outcome, detail, 1000

    return run, asked


async def test_a_working_kvm_is_taken_and_remembered(tmp_path: Path) -> None:
    run, asked = answering(Outcome.WORKS)
    verdict = await probe("auto", tmp_path, run=run)
    assert (verdict.accelerator, verdict.reason) == ("kvm", "/dev/kvm ran a 64-bit guest")
    assert await probe("auto", tmp_path, run=run) == verdict
    assert await probe("kvm", tmp_path, run=run) == verdict
    assert asked == [b"/dev/kvm"]


async def test_a_broken_kvm_is_remembered_with_its_reason(tmp_path: Path) -> None:
    run, asked = answering(Outcome.INTERNAL, 1)
    verdict = await probe("auto", tmp_path, run=run)
    assert verdict.accelerator == "tcg"
    assert "emulator failed at an ordinary instruction" in verdict.reason
    assert await probe("auto", tmp_path, run=run) == verdict
    assert len(asked) == 1
    with pytest.raises(AcceleratorError) as raised:
        await probe("kvm", tmp_path, run=run)
    assert "no hardware behind it" in str(raised.value)
    assert "use `auto` or `tcg`" in str(raised.value)


@pytest.mark.parametrize(
    ("outcome", "detail"),
    [(Outcome.NO_DEVICE, 2), (Outcome.NOT_KVM, -25), (Outcome.SETUP, 12), (Outcome.DIED, 9)],
)
async def test_what_no_guest_was_asked_is_not_remembered(
    tmp_path: Path, outcome: Outcome, detail: int
) -> None:
    run, asked = answering(outcome, detail)
    for _ in range(2):
        assert (await probe("auto", tmp_path, run=run)).accelerator == "tcg"
    assert len(asked) == 2
    assert not (tmp_path / CACHE_NAME).exists()


async def test_a_guest_that_had_to_wait_once_is_asked_again(tmp_path: Path) -> None:
    answers = [Outcome.TIMEOUT, Outcome.WORKS]
    verdict = await probe("auto", tmp_path, run=lambda *_: (answers.pop(0), 0, 0))
    assert verdict.accelerator == "kvm"


async def test_tcg_tries_nothing(tmp_path: Path) -> None:
    run, asked = answering(Outcome.WORKS)
    verdict = await probe("tcg", tmp_path, run=run)
    assert (verdict.accelerator, verdict.reason) == ("tcg", "software emulation was asked for")
    assert not asked


async def test_another_boot_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = answering(Outcome.WORKS)
    await probe("auto", tmp_path, run=run)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(accelerator, "_BOOT_ID", boot_id)
    await probe("auto", tmp_path, run=run)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"key": {}}', '{"key": 1, "works": true, "reason": "x"}', "\xff"]
)
async def test_a_cache_that_is_no_cache(tmp_path: Path, text: str) -> None:
    (tmp_path / CACHE_NAME).write_text(text, encoding="latin-1")
    run, asked = answering(Outcome.TIMEOUT)
    assert (await probe("auto", tmp_path, run=run)).accelerator == "tcg"
    assert len(asked) == accelerator.TRIES
    assert json.loads((tmp_path / CACHE_NAME).read_text())["works"] is False


async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    run, _ = answering(Outcome.WORKS)
    verdict = await probe("auto", tmp_path / "missing", run=run)
    assert verdict.accelerator == "kvm"


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_reason_of_one_line(outcome: Outcome) -> None:
    text = reason(Path("/dev/kvm"), outcome, 1)
    assert text.startswith("/dev/kvm ")
    assert "\n" not in text


async def test_here() -> None:
    verdict = accelerator.probe_now()
    if Path("/sys/module/kvm_pvm").exists() or not Path("/dev/kvm").exists():
        assert verdict.accelerator == "tcg"
    assert verdict.reason


@pytest.mark.parametrize(
    ("text", "khz"),
    [
        ("flags\t\t: fpu constant_tsc\nbogomips\t: 5192.28\n", 2_596_140),
        ("flags\t\t: fpu constant_tsc\nbogomips\t: 4799.99\n", 2_399_995),
        ("flags\t\t: fpu tsc\nbogomips\t: 5192.28\n", None),
        ("flags\t\t: constant_tsc\n", None),
        ("Features : fp asimd\nBogoMIPS : 50.00\n", None),
        ("", None),
    ],
)
def test_tsc(tmp_path: Path, text: str, khz: int | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert host_tsc_khz(cpuinfo) == khz


def test_tsc_without_proc(tmp_path: Path) -> None:
    assert host_tsc_khz(tmp_path / "none") is None
