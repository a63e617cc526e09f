"""Which VMs a list shows, and in which order. Pure."""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from smallstack.proto.vm import VmInfo


def matches(
    info: VmInfo,
    ignore_state_mask: int,
    owner_groups: Collection[str],
    owner_users: Collection[str],
    tags: Mapping[str, Collection[str]],
) -> bool:
    """Whether a VM is shown.

    Bit n of the mask hides state n. Every tag has to have one of its values. Owners: one of the
    groups, or one of the users; where users are given they alone count.
    """
    if ignore_state_mask >> int(info.state) & 1:
        return False
    if tags and any(info.tags.get(key) not in values for key, values in tags.items()):
        return False
    if owner_users:
        return not set(owner_users).isdisjoint(info.owner_users)
    return not owner_groups or not set(owner_groups).isdisjoint(info.owner_groups)


def version_sorted(texts: Iterable[str]) -> list[str]:
    """Sorted as people do: runs of digits by their value, ``10.0.0.9`` before ``10.0.0.10``."""
    return sorted(texts, key=_order)


@lru_cache(4096)  # the same addresses are listed again and again
def _order(text: str) -> tuple[tuple[int, int, str], ...]:
    return tuple(_part(part) for part in re.split(r"(\d+)", text))


def _part(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)
