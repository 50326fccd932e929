"""What a budget of memory buys: bytes as text, the bytes that are free, and the measured bytes of a model's step."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .schedule import BudgetTooSmall, Plan, best_plan

__all__ = ["StepBytes", "free_bytes", "parse_bytes", "show_bytes", "spell_bytes"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
LEAST = 32  # steps of a segment below which calls weigh more than steps
MANY = 4.0  # runs of a step that outweigh the calls of short segments
IN_CACHE = 8 * 2**20  # bytes of stored steps beyond which more at once are no faster
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class StepBytes:
    """Bytes that walking back takes: ``step`` for each step whose graph is stored, ``state`` for each stored state,
    ``fixed`` whatever the length.
    """

    step: int
    state: int
    fixed: int

    def plan(self, steps: int, budget: int) -> Plan:
        """The best plan for so many steps within ``budget`` bytes.

        Raises:
            ValueError: where there is none, with the smallest budget that can work.
        """
        try:
            # An allocator may hold twice what is alive; small budgets leave it room.
            most = max(LEAST, min(IN_CACHE, budget // 4) // self.step)
            plan = best_plan(steps, budget, self.state, self.step, self.fixed, LEAST, most)
            if plan.runs > MANY:  # then room for states is worth more than long segments
                plan = min(
                    plan, best_plan(steps, budget, self.state, self.step, self.fixed), key=lambda plan: plan.runs
                )
            return plan
        except BudgetTooSmall as error:
            raise ValueError(
                f"a budget of {show_bytes(budget)} cannot work: one stored step takes {show_bytes(self.step)}, a state "
                f"{show_bytes(self.state)}, and {show_bytes(self.fixed)} whatever their number; the smallest budget "
                f"that can is {show_bytes(error.smallest)}"
            ) from None


def parse_bytes(text: str) -> int:
    """A size as text in bytes; MB are 10^6 bytes, MiB 2^20.

    Raises:
        ValueError: where it is no positive number with a unit.

    >>> parse_bytes("256MB"), parse_bytes("1.5 GiB")
    (256000000, 1610612736)
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no size; write a number and a unit, as in 256MB, 1.5GB or 64MiB")
    return int(float(found[1]) * unit)


def show_bytes(count: float) -> str:
    """Bytes in words, rounded up, so that what is shown is enough.

    >>> show_bytes(1_200_001), show_bytes(900)
    ('1.3MB', '1KB')
    """
    for name in ("GB", "MB", "KB"):
        tenths = -int(-count * 10 // _UNITS[name])
        if tenths >= 10 or name == "KB":
            whole, rest = divmod(max(10, tenths), 10)
            return f"{whole}.{rest}{name}" if rest else f"{whole}{name}"
    raise AssertionError


def spell_bytes(count: int) -> str:
    """A whole number of bytes, with the largest unit that says it exactly; the inverse of ``parse_bytes``.

    >>> spell_bytes(256_000_000), spell_bytes(1001)
    ('256MB', '1001B')
    """
    unit = max((name for name in ("B", "KB", "MB", "GB") if count % _UNITS[name] == 0), key=_UNITS.__getitem__)
    return f"{count // _UNITS[unit]}{unit}"


def free_bytes(device: str = "cpu") -> int:
    """Bytes that are free on a device: its own, or what the system and its control group leave.

    Raises:
        OSError: where the system does not say.
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    found = [*_available(), *_left_in_group()]
    if not found:
        raise OSError("this system does not say how much memory is free; give a number, as in Reverse(memory='1GB')")
    return min(found)


def _available() -> list[int]:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return [int(line.split()[1]) * 1024]
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return []


def _left_in_group() -> list[int]:
    """What a container's limit leaves (control groups, version 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        most, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        return [] if most == "max" else [max(0, int(most) - int(used))]
    except (OSError, ValueError):
        return []
