"""Schedules against brute-force recursions, published counts, and a simulator that knows only what actions mean."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronograd.modes.schedule import (
    Advance,
    Back,
    BudgetTooSmall,
    Free,
    Plan,
    Restore,
    Store,
    Tape,
    best_plan,
    binomial,
    binomial_advances,
    internal,
    internal_runs,
    smallest_budget,
)


@cache
def fewest(n, s):
    """Griewank's recursion: forward runs, and among the fewest the states kept (one taped at once is not)."""
    if n == 1:
        return 0, 0
    if s == 1:
        return n * (n - 1) // 2, 0
    return min(
        (
            y + fewest(n - y, s - 1)[0] + fewest(y, s)[0],
            (n - y > 1) + fewest(n - y, s - 1)[1] + fewest(y, s)[1],
        )
        for y in range(1, n)
    )


@cache
def fewest_internal(t, m):
    """Gruslys et al. (2016), the internal-state schedule."""
    if t == 0:
        return 0
    if m == 0:
        return float("inf")
    return min(y + fewest_internal(t - y, m - 1) + fewest_internal(y - 1, m) for y in range(1, t + 1))


class Machine:
    """Executes actions on numbers: the state before segment i is i, and nothing may be used that is not there."""

    def __init__(self, segments):
        self.segments = segments
        self.current, self.kept, self.taped, self.back = 0, set(), [], []
        self.restored = False
        self.advances = self.tapes = self.stores = self.most_kept = self.most_taped = 0

    def run(self, actions):
        for action in actions:
            match action:
                case Store(at):
                    assert self.current == at and at not in self.kept
                    self.kept.add(at)
                    self.stores += 1
                case Restore(at):
                    assert at in self.kept
                    assert self.current != at, "already there"
                    self.current, self.restored = at, True
                case Free(at):
                    self.kept.remove(at)
                case Advance(begin, end):
                    assert self.current == begin < end <= self.segments
                    self.current, self.restored = end, False
                    self.advances += end - begin
                case Tape(at):
                    assert self.current == at < self.segments
                    self.taped.append(at)
                    self.current, self.restored = at + 1, False
                    self.tapes += 1
                case Back(at):
                    assert self.taped.pop() == at
                    assert not self.restored, "restored for nothing"
                    self.back.append(at)
                    self.current = None  # what comes next must be restored, or be another walk back
            self.most_kept = max(self.most_kept, len(self.kept))
            self.most_taped = max(self.most_taped, len(self.taped))
        assert self.back == list(reversed(range(self.segments)))
        assert not self.kept and not self.taped and not self.restored, "something was left over"
        return self


sizes = st.integers(1, 300), st.integers(1, 40)


@given(*sizes)
def test_binomial_walks_back_through_every_segment_within_its_slots(n, s):
    ran = Machine(n).run(binomial(n, s))
    assert ran.most_kept <= s
    assert ran.most_taped == 1 and ran.tapes == n
    assert ran.advances == binomial_advances(n, s)


@given(*sizes)
def test_internal_walks_back_through_every_segment_within_its_slots(n, m):
    ran = Machine(n).run(internal(n, m))
    assert ran.most_taped <= m
    assert ran.most_kept <= m  # the initial state, and those after all waiting tapes but the last
    assert ran.advances + ran.tapes == internal_runs(n, m)


def test_the_first_tape_ends_in_the_final_state():
    for n in range(1, 20):
        assert next(action.at for action in binomial(n, 3) if isinstance(action, Tape)) == n - 1


def test_binomial_is_optimal():
    for n in range(1, 61):
        for s in range(1, 13):
            advances, stores = fewest(n, s)
            assert binomial_advances(n, s) == advances, (n, s)
            assert Machine(n).run(binomial(n, s)).stores == stores + 1, (n, s)


def test_internal_is_optimal():
    for n in range(1, 41):
        for m in range(1, 13):
            assert internal_runs(n, m) == fewest_internal(n, m), (n, m)


@pytest.mark.parametrize(
    "n, s, advances",
    [(10, 3, 15), (100, 10, 222), (1000, 10, 3636), (1000, 20, 2747), (1000, 32, 2405), (1000, 50, 1948)]
    + [(1000, 100, 1898)],
)
def test_published_counts_of_binomial(n, s, advances):
    assert binomial_advances(n, s) == advances


@pytest.mark.parametrize(
    "n, counts",
    [(10, {1: 55, 2: 30, 3: 25, 4: 24}), (20, {1: 210, 2: 85, 3: 65, 4: 59})]
    + [(1000, {5: 7284, 10: 4636, 20: 3747, 32: 3405, 50: 2948})],
)
def test_published_counts_of_hidden_states(n, counts):
    """Gruslys et al. count the runs that tape as well."""
    assert {m: binomial_advances(n, m) + n for m in counts} == counts


@pytest.mark.parametrize(
    "n, counts",
    [(10, {1: 55, 2: 24, 3: 18, 4: 16}), (20, {1: 210, 2: 70, 3: 49, 4: 42})]
    + [(1000, {5: 6292, 10: 3640, 20: 2750, 32: 2408, 50: 1950})],
)
def test_published_counts_of_internal_states(n, counts):
    assert {m: internal_runs(n, m) for m in counts} == counts


def test_a_third_more_time_for_a_twentieth_of_the_memory():
    """The abstract of Gruslys et al., where walking back takes twice the time of running forward."""
    assert (internal_runs(1000, 50) + 2 * 1000) / (3 * 1000) == pytest.approx(1.317, abs=5e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 64])
def test_enough_slots_are_two_level_chunking(n):
    """Every start is kept on the way there, once, and every segment but the last runs twice."""
    for slots in (max(1, n - 1), n, n + 1, 1000 * n):
        assert list(binomial(n, slots)) == list(binomial(n, n))
    assert binomial_advances(n, n) == n - 1
    if n == 1:
        assert list(binomial(1, 1)) == [Store(0), Free(0), Tape(0), Back(0)]
        return
    expected = [Store(0)]
    for i in range(1, n - 1):
        expected += [Advance(i - 1, i), Store(i)]
    expected += [Advance(n - 2, n - 1), Tape(n - 1), Back(n - 1)]
    for i in reversed(range(n - 1)):
        expected += [Restore(i), Free(i), Tape(i), Back(i)]
    assert list(binomial(n, n)) == expected


def test_one_slot_runs_from_the_start_each_time():
    assert binomial_advances(1000, 1) == 1000 * 999 // 2
    assert internal_runs(1000, 1) == 1000 * 1001 // 2
    assert Machine(50).run(binomial(50, 1)).stores == 1


def test_a_long_schedule_is_an_iterator_of_little_memory():
    n, s = 100_000, 20
    tracemalloc.start()
    try:
        ran = sum(action.end - action.begin for action in binomial(n, s) if isinstance(action, Advance))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ran == binomial_advances(n, s)
    assert peak < 20_000
    assert len(list(islice(binomial(10**9, 3), 1000))) == 1000


@pytest.mark.parametrize("schedule", [binomial, internal, binomial_advances, internal_runs])
@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-3, 2)])
def test_nothing_to_schedule_is_refused_at_the_call(schedule, sizes):
    with pytest.raises(ValueError, match="at least one of each"):
        schedule(*sizes)


def exhaustive(steps, budget, state, step, fixed, least):
    """The best of every length and number of slots that fit: (too short, advances, -length, slots)."""
    found = []
    for length in range(1, steps + 1):
        n = -(-steps // length)
        for slots in range(1, max(2, n)):
            if fixed + slots * state + length * step <= budget:
                advances = length * fewest(n, slots)[0]
                assert (fewest(n, slots)[0] == n - 1) == (advances < steps), "a deeper plan before one of two levels"
                found.append((length < min(least, steps), advances, -length, slots))
    return min(found, default=None)


byte_counts = st.integers(0, 12)


@given(st.integers(1, 40), st.integers(0, 160), byte_counts, byte_counts, byte_counts, st.integers(1, 12))
def test_the_best_plan_is_the_best_of_all(steps, budget, state, step, fixed, least):
    best = exhaustive(steps, budget, state, step, fixed, least)
    smallest = smallest_budget(steps, state, step, fixed)
    assert (best is None) == (budget < smallest)
    if best is None:
        with pytest.raises(BudgetTooSmall) as refused:
            best_plan(steps, budget, state, step, fixed, least)
        assert refused.value.smallest == smallest
        return
    plan = best_plan(steps, budget, state, step, fixed, least)
    assert (plan.advances, -plan.length, plan.slots) == best[1:]
    assert plan.nbytes == fixed + plan.slots * state + plan.length * step <= budget
    assert plan.runs == (plan.advances + steps) / steps
    assert (plan.length < min(least, steps)) == (budget < smallest_budget(steps, state, step, fixed, least))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
def test_a_plan_counts_steps_also_where_the_last_segment_is_short(steps, length, slots):
    n = -(-steps // length)
    plan = Plan(steps, length, slots, length * binomial_advances(n, slots), 0)
    spans = [plan.span(i) for i in range(plan.segments)]
    assert [step for begin, end in spans for step in range(begin, end)] == list(range(steps))
    assert all(begin < end for begin, end in spans)
    ran = 0
    for action in plan.actions():
        if isinstance(action, Advance):
            ran += plan.span(action.end - 1)[1] - plan.span(action.begin)[0]
    assert ran == plan.advances


def test_what_fits_whole_is_one_segment():
    steps, nbytes = 10**6, 4 + 4 + 12 * 10**6
    assert best_plan(steps, nbytes, state=4, step=12, fixed=4) == Plan(steps, steps, 1, 0, nbytes)
    assert best_plan(steps, nbytes - 1, state=4, step=12, fixed=4).segments == 2


def test_the_longer_segments_of_equal_plans():
    assert best_plan(43, budget=35, state=1, step=4, fixed=0) == Plan(43, 5, 8, 40, 28)  # as many as (4, 10)
    assert best_plan(23, budget=36, state=2, step=8, fixed=0) == Plan(23, 3, 6, 24, 36)  # as many as (2, 10)


def test_short_segments_are_a_last_resort():
    bytes_of = {"state": 1000, "step": 10, "fixed": 0}
    freely = best_plan(10_000, 20_000, **bytes_of)
    useful = best_plan(10_000, 20_000, **bytes_of, least=1500)
    assert freely.length < useful.length == 1500 and freely.advances < useful.advances
    assert best_plan(10_000, 2_000, **bytes_of, least=1500).length <= 100


@pytest.mark.parametrize("budget", [40_000, 10**6, 16 * 2**20, 256 * 2**20])
@pytest.mark.parametrize("state, step", [(256, 2000), (4, 4), (30_000, 8), (1, 9000)])
def test_a_million_steps_are_planned_at_once(budget, state, step):
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        plan = best_plan(10**6, budget, state, step, fixed=1000)
        taken.append(time.perf_counter() - begin)
    assert plan.nbytes <= budget
    assert plan.advances == plan.length * binomial_advances(plan.segments, plan.slots)
    assert min(taken) < 0.05  # 3 ms on a core of its own; a loop over all lengths takes seconds
    for length in range(max(1, plan.length - 200), plan.length + 200):
        if (slots := (budget - 1000 - length * step) // state) >= 1:
            assert length * binomial_advances(-(-(10**6) // length), slots) >= plan.advances


def test_more_budget_is_never_more_work():
    runs = [best_plan(50_000, budget, state=200, step=1000, fixed=0).advances for budget in range(1200, 10**6, 9973)]
    assert runs == sorted(runs, reverse=True)


def test_refusal_names_the_smallest_budget():
    smallest = smallest_budget(10**6, state=256, step=2000, fixed=500)
    assert best_plan(10**6, smallest, 256, 2000, 500).nbytes == smallest
    with pytest.raises(BudgetTooSmall, match=f"smallest that works is {smallest} bytes") as refused:
        best_plan(10**6, smallest - 1, 256, 2000, 500)
    assert pickle.loads(pickle.dumps(refused.value)).smallest == smallest
    with pytest.raises(ValueError, match="at least one step"):
        best_plan(0, 1000, 1, 1, 1)
