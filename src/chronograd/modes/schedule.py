"""In which order to run, keep and run again the segments of a sequence, to walk back through it in little memory.

A sequence is cut into n segments. Walking back needs the graph of one segment at a time, made from the state before
it, but only ``slots`` such states may be kept at once: the others are computed again from the nearest one before.

``binomial`` does that in the fewest forward runs. Advance ``y`` segments from a kept state, keep the state there, walk
back through what lies behind it with the slots that are left, then through the ``y`` segments before it:

    t(n, s) = min over y of  y + t(n - y, s - 1) + t(y, s),      t(1, s) = 0,      t(n, 1) = n (n - 1) / 2.

With s slots, and none advanced over more than r times, C(s + r, s) segments can be walked back through: those before
the second kept state have one repeat left less, those behind it one slot, as in Pascal's triangle. So t grows by r for
each segment between C(s + r - 1, s) and C(s + r, s), which adds up to t(n, s) = r n - C(s + r, s + 1) for the least r
that reaches n. Every y that leaves both parts within their reach is optimal; the one taken also keeps the fewest
states. ``slots >= n - 1`` is r = 1: every start is kept and each segment but the last runs twice, once for the state
behind it, once for its graph: two-level chunking.

``internal`` keeps whole segments with their graphs in its slots instead, which need no second run:

    C(n, m) = min over y of  y + C(n - y, m - 1) + C(y - 1, m),      C(0, m) = 0.

Put n + 1 for n in the recursion of t: it is the same one. So C(n, m) = t(n + 1, m), with the same splits.

``best_plan`` chooses the length of the segments and the number of slots for a budget in bytes.

References:
    Griewank (1992), Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
    differentiation, Optimization Methods and Software 1. The bound C(s + r, s).
    Griewank, Walther (2000), Algorithm 799: revolve, ACM Transactions on Mathematical Software 26. The splits.
    Gruslys, Munos, Danihelka, Lanctot, Graves (2016), Memory-efficient backpropagation through time, arXiv:1606.03401.
    Their hidden-state schedule counts the graphs' runs too, t(n, s) + n; their internal-state schedule is ``internal``.
    Chen, Xu, Zhang, Guestrin (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174. Two levels.

Known gaps: the number of steps is known beforehand; every step costs the same; all segments but the last have one
length; states and graphs do not share slots (Gruslys' mixed schedule); there is one kind of memory, no disk behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

__all__ = [
    "Action",
    "Advance",
    "Back",
    "BudgetTooSmall",
    "Free",
    "Plan",
    "Restore",
    "Store",
    "Tape",
    "best_plan",
    "binomial",
    "binomial_advances",
    "internal",
    "internal_runs",
    "smallest_budget",
]


@dataclass(frozen=True, slots=True)
class Store:
    """Keep the current state, which is the one before segment ``at``."""

    at: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Make the kept state before segment ``at`` the current one."""

    at: int


@dataclass(frozen=True, slots=True)
class Free:
    """The kept state before segment ``at`` is needed no more; it stays current where it is."""

    at: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Run the segments ``begin`` to ``end - 1`` without a graph, from the current state to the one before ``end``."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Tape:
    """Run segment ``at`` with its graph, from the current state to the one before ``at + 1``."""

    at: int


@dataclass(frozen=True, slots=True)
class Back:
    """Walk back through the taped segment ``at``, then drop its graph."""

    at: int


Action = Store | Restore | Free | Advance | Tape | Back


def binomial(segments: int, slots: int) -> Iterator[Action]:
    """The actions with the fewest forward runs when ``slots`` states may be kept, the first one included.

    One segment is taped at a time, each of them once, from the last to the first; the state after the first tape is
    the sequence's final one. Needs memory for ``slots`` numbers, whatever ``segments``.

    >>> for action in binomial(3, 2):
    ...     print(action)
    Store(at=0)
    Advance(begin=0, end=1)
    Store(at=1)
    Advance(begin=1, end=2)
    Tape(at=2)
    Back(at=2)
    Restore(at=1)
    Free(at=1)
    Tape(at=1)
    Back(at=1)
    Restore(at=0)
    Free(at=0)
    Tape(at=0)
    Back(at=0)
    """
    _check(segments, slots)
    return _binomial(segments, slots)


def _binomial(segments: int, slots: int) -> Iterator[Action]:
    yield Store(0)
    kept, end = [0], segments  # the current state is the last one kept; from ``end`` on, all has been walked back
    while kept:
        start = kept[-1]
        if end - start == 1:
            kept.pop()
            yield Free(start)
        else:
            middle = start + _split(end - start, slots - len(kept) + 1)
            yield Advance(start, middle)
            if middle < end - 1:  # a last segment is taped at once: its start need not be kept
                kept.append(middle)
                yield Store(middle)
                continue
        end -= 1
        yield Tape(end)
        yield Back(end)
        if kept:
            yield Restore(kept[-1])


def internal(segments: int, slots: int) -> Iterator[Action]:
    """The actions with the fewest runs when ``slots`` segments may be taped at once, each with the state after it.

    A taped segment waits for its ``Back`` while those behind it are walked through. The initial state is kept beside
    the tapes; ``Store`` after a ``Tape`` names the state that the tape holds anyway, for the runs that begin there.

    >>> for action in internal(2, 2):
    ...     print(action)
    Store(at=0)
    Tape(at=0)
    Store(at=1)
    Tape(at=1)
    Back(at=1)
    Free(at=1)
    Back(at=0)
    Free(at=0)
    """
    _check(segments, slots)
    return _internal(segments, slots)


def _internal(segments: int, slots: int) -> Iterator[Action]:
    yield Store(0)
    kept, end = [0], segments  # as in _binomial; every state kept but the first is that after a waiting tape
    while True:
        start = kept[-1]
        if start < end:
            middle = start + _split(end - start + 1, slots - len(kept) + 1)
            if start < middle - 1:
                yield Advance(start, middle - 1)
            yield Tape(middle - 1)
            if middle < end:
                kept.append(middle)
                yield Store(middle)
                continue
        else:
            kept.pop()
            yield Free(start)
            if not kept:
                return
        end -= 1
        yield Back(end)
        if kept[-1] < end:
            yield Restore(kept[-1])


def binomial_advances(segments: int, slots: int) -> int:
    """Segments that ``binomial`` runs without a graph: t(n, s), beside the n runs that tape.

    >>> binomial_advances(1000, 50), binomial_advances(1000, 1000)
    (1948, 999)
    """
    _check(segments, slots)
    return _line(_repeats(segments, slots), segments, slots)


def internal_runs(segments: int, slots: int) -> int:
    """Segments that ``internal`` runs, with a graph or without: C(n, m) of Gruslys et al.

    >>> internal_runs(1000, 50)
    1950
    """
    _check(segments, slots)
    return binomial_advances(segments + 1, slots)


@dataclass(frozen=True)
class Plan:
    """``steps`` in segments of ``length``, the last one perhaps shorter, walked back with ``slots`` kept states.

    Attributes:
        advances: forward steps without a graph. Exact, because the last segment is never advanced over.
        nbytes: the prediction: what is fixed, the kept states, one taped segment.

    >>> plan = best_plan(1000, budget=1000, state=10, step=10, fixed=0)
    >>> plan.segments, plan.length, plan.slots, plan.nbytes
    (12, 84, 11, 950)
    >>> plan.advances, plan.runs
    (924, 1.924)
    """

    steps: int
    length: int
    slots: int
    advances: int
    nbytes: int

    @property
    def segments(self) -> int:
        """How many segments there are."""
        return _parts(self.steps, self.length)

    @property
    def runs(self) -> float:
        """How often a step is run on average, the run with its graph included."""
        return (self.advances + self.steps) / self.steps

    def span(self, segment: int) -> tuple[int, int]:
        """The first step of a segment, and the one after its last.

        >>> [Plan(10, 4, 2, 8, 0).span(segment) for segment in range(3)]
        [(0, 4), (4, 8), (8, 10)]
        """
        return segment * self.length, min(self.steps, (segment + 1) * self.length)

    def actions(self) -> Iterator[Action]:
        """What to do, in order."""
        return binomial(self.segments, self.slots)


class BudgetTooSmall(ValueError):
    """No plan fits a budget; ``smallest`` bytes are the least that one fits."""

    def __init__(self, budget: int, smallest: int) -> None:
        super().__init__(f"a budget of {budget} bytes is too small; the smallest that works is {smallest} bytes")
        self.budget, self.smallest = budget, smallest

    def __reduce__(self) -> tuple[type[BudgetTooSmall], tuple[int, int]]:
        return type(self), (self.budget, self.smallest)


def smallest_budget(steps: int, state: int, step: int, fixed: int, least: int = 1) -> int:
    """Bytes below which there is no plan with segments of ``least`` steps, by default no plan at all.

    One slot and n segments cost n (n - 1) / 2 runs of a segment: a budget that works need not be one to want.

    >>> smallest_budget(1000, state=10, step=4, fixed=100)
    114
    """
    return fixed + state + min(least, steps) * step


def best_plan(
    steps: int, budget: int, state: int, step: int, fixed: int, least: int = 1, most: int | None = None
) -> Plan:
    """The plan with the fewest forward steps among those with ``fixed + slots state + length step <= budget``.

    Among equals the one with the longest segments, which cost the least overhead. A plan of two levels, where one fits,
    is always before deeper ones: it runs less than all steps again, they at least all.

    Args:
        steps: in the sequence.
        budget: bytes that may be kept.
        state: bytes of one kept state.
        step: bytes that a taped segment holds for each of its steps.
        fixed: bytes that are held whatever the plan, the current state among them.
        least: steps below which a segment is mostly overhead. Shorter ones are taken only where nothing else fits.
        most: steps beyond which a longer segment only leaves the cache. Segments of so many steps are taken where all
            of their states fit, but all steps cannot be taped at once; None for no such length.

    Raises:
        BudgetTooSmall: where not even single steps fit, with the smallest budget that works.

    >>> best_plan(1000, budget=10**6, state=10, step=10, fixed=0)
    Plan(steps=1000, length=1000, slots=1, advances=0, nbytes=10010)
    >>> best_plan(1000, budget=400, state=10, step=10, fixed=0)
    Plan(steps=1000, length=20, slots=20, advances=1560, nbytes=400)
    """
    if min(steps, least) < 1 or min(state, step, fixed) < 0:
        raise ValueError("a plan needs at least one step, segments of at least one step, and no negative bytes")
    longest = _fitting(budget - fixed - state, step, steps)
    if longest < 1:
        raise BudgetTooSmall(budget, smallest_budget(steps, state, step, fixed))
    if longest == steps:
        return Plan(steps, steps, 1, 0, fixed + state + steps * step)
    if most is not None and most < longest:
        slots = _parts(steps, most) - 1
        nbytes = fixed + slots * state + most * step
        if nbytes <= budget:
            return Plan(steps, most, slots, slots * most, nbytes)
    best, repeats = None, 0
    for length in _lengths(steps, least if least <= longest else 1, longest):
        segments = _parts(steps, length)
        slots = _fitting(budget - fixed - length * step, state, max(1, segments - 1))
        # t(n, s) is at least any of its lines: that of the best plan so far rules out most others cheaply.
        if best is not None and length * _line(repeats, segments, slots) >= best.advances:
            continue
        needed = _repeats(segments, slots)
        advances = length * _line(needed, segments, slots)
        if best is None or advances < best.advances:
            best, repeats = Plan(steps, length, slots, advances, fixed + slots * state + length * step), needed
    assert best is not None  # there is a length
    return best


def _lengths(steps: int, shortest: int, longest: int) -> Iterator[int]:
    """For every number of segments the shortest length that makes so many, longest first: at most 2 sqrt(steps).

    With as many segments, a longer one would only be run over for longer.

    >>> list(_lengths(10, 1, 10)), list(_lengths(10, 3, 6))
    ([10, 5, 4, 3, 2, 1], [5, 4, 3])
    """
    length = longest
    while length >= shortest:
        length = max(shortest, _parts(steps, _parts(steps, length)))
        yield length
        length -= 1


def _parts(steps: int, length: int) -> int:
    return -(-steps // length)


def _fitting(spare: int, each: int, most: int) -> int:
    """How many of ``each`` bytes fit, up to ``most``; none where even the spare room is negative."""
    if spare < 0:
        return 0
    return most if most * each <= spare else spare // each


def _check(segments: int, slots: int) -> None:
    if segments < 1 or slots < 1:
        raise ValueError(f"{segments} segments with {slots} slots: there must be at least one of each")


def _reach(slots: int, repeats: int) -> int:
    """How many segments can be walked back through with none advanced over more than ``repeats`` times."""
    return comb(slots + repeats, slots) if slots >= 0 and repeats >= 0 else 0


def _repeats(segments: int, slots: int) -> int:
    """The least number of repeats that reaches ``segments``."""
    high = 1
    while _reach(slots, high) < segments:
        high *= 2
    return bisect_left(range(high), segments, key=lambda repeats: _reach(slots, repeats))


def _line(repeats: int, segments: int, slots: int) -> int:
    """One of the lines whose maximum is t(n, s): the one where it grows by ``repeats`` for each segment."""
    return repeats * segments - comb(slots + repeats, slots + 1)


def _split(segments: int, slots: int) -> int:
    """How many segments to advance before the next state is kept: optimal, and with the fewest states kept."""
    r = _repeats(segments, slots)
    ahead = segments - _reach(slots - 1, r - 1) - _reach(slots - 2, r - 1)
    return min(_reach(slots, r - 1), max(1, _reach(slots, r - 2), ahead))
