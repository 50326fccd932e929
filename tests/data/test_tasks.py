"""Synthetic tasks: answers read off the inputs row by row, baselines measured on a predictor without memory."""

import math

import pytest
import torch

from chronograd.data.tasks import adding_problem, copy_memory, temporal_order


def within(measured: torch.Tensor, expected: float) -> bool:
    """Whether a mean over rows lies within 4 standard errors."""
    return abs(measured.mean().item() - expected) < 4 * measured.std().item() / math.sqrt(len(measured))


@pytest.mark.parametrize("variant", ["sum", "hochreiter"])
@pytest.mark.parametrize("length", [2, 7, 50])
def test_adding_asks_for_the_marked_numbers(variant, length):
    task = adding_problem(length, 40, seed=3, variant=variant)
    for b in range(40):
        marked = [t for t in range(length) if task.inputs[t, b, 1] == 1]
        assert len(marked) == 2 and marked[0] < length // 2 <= marked[1]
        assert task.inputs[:, b, 1].sum() == 2
        total = sum(task.inputs[t, b, 0].item() for t in marked)
        assert task.targets[-1, b].item() == pytest.approx(total if variant == "sum" else 0.5 + total / 4, abs=1e-6)
    low = 0 if variant == "sum" else -1
    assert low <= task.inputs[..., 0].min() and task.inputs[..., 0].max() <= 1
    assert task.weights.sum() == 40 and (task.weights[-1] == 1).all()


@pytest.mark.parametrize("variant, guess, baseline", [("sum", 1.0, 1 / 6), ("hochreiter", 0.5, 1 / 24)])
def test_adding_baseline_is_that_of_the_best_constant(variant, guess, baseline):
    task = adding_problem(10, 20_000, seed=0, variant=variant)
    answers = task.targets[-1].double()
    assert task.baseline == pytest.approx(baseline)
    assert within((answers - guess) ** 2, task.baseline)
    assert within(answers, guess)  # the best constant is the mean


@pytest.mark.parametrize("length", [1, 2, 30])
def test_copy_wants_the_symbols_back(length):
    task = copy_memory(length, 16, seed=1)
    tokens = task.inputs.argmax(-1)
    assert task.inputs.shape == (length + 20, 16, 10) and (task.inputs.sum(-1) == 1).all()
    assert (tokens[:10] < 8).all()
    assert torch.equal(task.targets[-10:], tokens[:10])
    assert (task.targets[:-10] == 8).all()
    assert (tokens == 9).sum(0).tolist() == [1] * 16  # one go sign ...
    assert (tokens[-11] == 9).all()  # ... just before the answer
    assert (tokens[10:-11] == 8).all() and (tokens[-10:] == 8).all()
    assert (task.weights == 1).all() and task.targets.max() < task.classes == 9


@pytest.mark.parametrize("length, published", [(100, 0.1733), (200, 0.0945), (500, 0.0400), (1000, 0.0204)])
def test_copy_baseline(length, published):
    assert copy_memory(length, 1).baseline == pytest.approx(published, abs=5e-5)


def test_copy_baseline_is_the_cross_entropy_without_memory():
    # what can be said knowing only the step: the share of each class there
    task = copy_memory(10, 50_000, seed=0)
    total = 0.0
    for t in range(30):
        share = torch.bincount(task.targets[t], minlength=9).double() / 50_000
        total -= (share * share.clamp(min=1e-300).log()).sum().item()
    assert total / 30 == pytest.approx(task.baseline, rel=1e-3)


@pytest.mark.parametrize("length", [10, 13, 100])
def test_temporal_order_class_is_read_off_the_marks(length):
    task = temporal_order(length, 200, seed=2)
    tokens = task.inputs.argmax(-1)
    seen = set()
    for b in range(200):
        marks = [(t, int(tokens[t, b])) for t in range(length) if tokens[t, b] < 2]
        (p0, first), (p1, second) = marks
        assert 0.1 * length <= p0 < 0.2 * length and 0.5 * length <= p1 < 0.6 * length
        order = "AB"[first] + "AB"[second]
        assert ["AA", "AB", "BA", "BB"][int(task.targets[-1, b])] == order
        seen.add(order)
    assert len(seen) == 4
    assert task.weights.sum() == 200 and (task.weights[-1] == 1).all()
    assert set(tokens.unique().tolist()) == set(range(6))


def test_temporal_order_baseline():
    task = temporal_order(20, 50_000, seed=0)
    share = torch.bincount(task.targets[-1], minlength=4).double() / 50_000
    assert task.baseline == math.log(4)
    assert -(share * share.log()).sum().item() == pytest.approx(task.baseline, rel=1e-3)


TASKS = [adding_problem, copy_memory, temporal_order]


@pytest.mark.parametrize("make", TASKS)
def test_seeds(make):
    one, two, other = make(20, 8, 5), make(20, 8, 5), make(20, 8, 6)
    assert torch.equal(one.inputs, two.inputs) and torch.equal(one.targets, two.targets)
    assert not torch.equal(one.inputs, other.inputs)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(make(20, 8, generator).inputs, one.inputs)
    assert not torch.equal(make(20, 8, generator).inputs, one.inputs)


@pytest.mark.parametrize("make", TASKS)
def test_the_global_generator_is_left_alone(make):
    before = torch.get_rng_state()
    make(20, 8, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make, least", [(adding_problem, 2), (copy_memory, 1), (temporal_order, 10)])
def test_bad_sizes(make, least):
    make(least, 1)
    with pytest.raises(ValueError, match=f"length must be at least {least}"):
        make(least - 1, 1)
    with pytest.raises(ValueError, match="batch"):
        make(least, 0)


def test_unknown_variant():
    with pytest.raises(ValueError, match="'product'"):
        adding_problem(10, 1, variant="product")
