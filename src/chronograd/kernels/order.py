"""In which order the way back takes the steps: stretches between common cuts are rows of a batch.

Where all rows are cut at the same steps, what lies between two cuts is independent of the rest on the way back. The
stretches are laid side by side, the longest first, aligned at their last steps: walking back, those that come to
their first step drop out at the end of the batch. Nothing is padded; the steps are only taken in another order, and
the longest stretch says how many are taken one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Group", "Tile", "side_by_side", "tiles"]

# More rows than these gain nothing in a matrix product, and leave the cache.
ROWS_TOGETHER = 512


@dataclass(frozen=True)
class Group:
    """Stretches walked back together.

    ``steps`` are the time steps in ascending order of the walk forward, ``sizes`` how many of them each step of the
    walk takes. ``initial`` says where step 0 lies, as (walk step, place in its batch), or None.
    """

    steps: Sequence[int]
    sizes: tuple[int, ...]
    initial: tuple[int, int] | None


@dataclass(frozen=True)
class Tile:
    """The walk steps ``first..last - 1`` of a group, which are its ``begin..end - 1`` time steps."""

    first: int
    last: int
    begin: int
    end: int


def side_by_side(cuts: Sequence[int], steps: int, rows: int) -> list[Group]:
    """The groups of T = ``steps`` steps that are cut before the steps ``cuts``, of ``rows`` rows each.

    >>> [(list(group.steps), group.sizes) for group in side_by_side([3, 5], 9, 1)]
    [([5, 6, 0, 7, 1, 3, 8, 2, 4], (1, 2, 3, 3))]
    >>> [(group.steps, group.sizes) for group in side_by_side([3], 5, 512)]
    [(range(0, 3), (1, 1, 1)), (range(3, 5), (1, 1))]
    """
    starts = sorted({0, *cuts})
    stretches = [range(start, end) for start, end in zip(starts, [*starts[1:], steps])]
    stretches.sort(key=len, reverse=True)
    together = max(1, ROWS_TOGETHER // max(1, rows))
    return [_group(stretches[at : at + together]) for at in range(0, len(stretches), together)]


def _group(stretches: Sequence[range]) -> Group:
    longest = len(stretches[0])
    if len(stretches) == 1:
        only = stretches[0]
        return Group(only, (1,) * longest, (0, 0) if only.start == 0 else None)
    steps, sizes, initial = [], [], None
    for back in range(longest, 0, -1):
        taken = [stretch[-back] for stretch in stretches if len(stretch) >= back]
        if 0 in taken:
            initial = (len(sizes), taken.index(0))
        steps += taken
        sizes.append(len(taken))
    return Group(steps, tuple(sizes), initial)


def tiles(group: Group, most: int) -> Iterator[Tile]:
    """Parts of a group of at most ``most`` time steps (at least one walk step), the last part first.

    >>> [(t.first, t.last, t.begin, t.end) for t in tiles(side_by_side([3, 5], 9, 1)[0], 5)]
    [(3, 4, 6, 9), (1, 3, 1, 6), (0, 1, 0, 1)]
    """
    last, end = len(group.sizes), len(group.steps)
    while last > 0:
        first, begin = last - 1, end - group.sizes[last - 1]
        while first > 0 and end - begin + group.sizes[first - 1] <= most:
            first -= 1
            begin -= group.sizes[first]
        yield Tile(first, last, begin, end)
        last, end = first, begin
