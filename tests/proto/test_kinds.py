"""Scalars and enumerations by themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.proto.enums import FirmwareType, MachineType, State, VolumeInterface
from smallstack.proto.kinds import YEAR_ONE, Hash, Time, go_name
from tests.proto.strategies import times


def test_words() -> None:
    assert [state.text for state in State] == [
        "starting",
        "running",
        "failed to start",
        "stopping",
        "stopped",
        "destroying",
        "migrating",
        "exporting",
        "crashed",
        "debugging",
    ]
    assert State.from_text("failed to start") is State.FAILED_TO_START
    assert [word.text for word in MachineType] == ["auto", "q35", "pc", "virt"]
    assert [word.text for word in FirmwareType] == ["default", "bios", "uefi"]
    assert [word.text for word in VolumeInterface] == ["virtio", "ide", "nvme", "dfm"]
    assert str(State.RUNNING) == f"{State.RUNNING}" == "running"


def test_unknown_numbers_are_kept() -> None:
    state = State(1000)
    assert state == 1000
    assert not state.is_known
    assert str(state) == "UNKNOWN State"
    assert State.RUNNING.is_known
    assert len(State) == 10
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="not a valid"):
            State(wrong)
    with pytest.raises(ValueError, match="use one of starting"):
        State.from_text("flying")


def test_digests() -> None:
    assert str(Hash.zero) == "0" * 128
    assert Hash(bytes(64)) == Hash.zero == bytes(64)
    with pytest.raises(ValueError, match="64 bytes, not 3"):
        Hash(b"abc")


def test_zero_time() -> None:
    assert Time().is_zero()
    assert str(Time()) == "0001-01-01T00:00:00Z"
    assert Time.zero() == Time(YEAR_ONE, 0, None)
    assert not Time.now().is_zero()


def test_times_are_text() -> None:
    assert str(Time(0, 5, None)) == "1970-01-01T00:00:00.000000005Z"
    assert str(Time(0, 500_000_000, 90)) == "1970-01-01T01:30:00.5+01:30"
    assert str(Time(0, 0, -90)) == "1969-12-31T22:30:00-01:30"
    assert str(Time(0, 0, 0)) == "1970-01-01T00:00:00Z"
    assert str(Time(10**15)) == "1000000000000000 s after 1970"
    assert Time.from_nanoseconds(-1) == Time(-1, 999_999_999)
    assert Time.from_nanoseconds(-1).nanoseconds_since_epoch == -1


@given(times)
def test_text_and_back(value: Time) -> None:
    try:
        text = value.rfc3339()
    except ValueError:
        return
    again = Time.parse(text)
    assert again.nanoseconds_since_epoch == value.nanoseconds_since_epoch
    assert (again.zone_minutes or 0) == (value.zone_minutes or 0)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    try:
        Time.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)


def test_wire_names() -> None:
    assert go_name("memory_in_mib") == "MemoryInMiB"
    assert go_name("ip_address") == "IpAddress"
    assert go_name("image_url") == "ImageURL"
    assert go_name("tree_url") == "TreeUrl"
    assert go_name("first_dynamic_ip") == "FirstDynamicIP"
