"""Random truncation is unbiased, with the variance that theory says; regular truncation is biased."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import squared


class Linear(nn.Module):
    """h' = A h + x v, read out as its first unit: influence of x at lag k is (A^k v)_0."""

    def __init__(self, A, v):
        super().__init__()
        self.A, self.v = A, v

    def forward(self, x, state=None):
        state = x.new_zeros(x.shape[1], len(self.v)) if state is None else state
        outputs = []
        for step in x:
            state = state @ self.A.T + step * self.v
            outputs.append(state[:, :1])
        return torch.stack(outputs), state


def first_unit(outputs, targets):
    return outputs[..., 0]


def influence_of_each_row(A, v, steps, rows, truncation, seed=0):
    """d h_T[0] / d theta for x_t = theta, one draw for each row."""
    x = torch.zeros(steps, rows, 1, dtype=torch.float64)
    weights = torch.zeros(steps, rows)
    weights[-1] = 1
    gradient, _ = cg.value_and_grad(
        Linear(A, v), first_unit, x, x, truncation=truncation, weights=weights, seed=seed, wrt_inputs=True
    )
    return gradient.inputs.sum((0, 2)) * rows


def influence_balancing():
    n = 23
    A = torch.eye(n, dtype=torch.float64) / 2 + torch.diag(torch.full((n - 1,), 0.5, dtype=torch.float64), 1)
    return A, torch.tensor([1.0] * 10 + [-1.0] * 13, dtype=torch.float64)


@pytest.mark.parametrize("tail", ["geometric", "polynomial"])
def test_random_truncation_is_unbiased_for_every_parameter(tail):
    torch.manual_seed(0)
    model = cg.Recurrent(nn.GRUCell(2, 4), nn.Linear(4, 2)).double()
    x, y = torch.randn(10, 1, 2, dtype=torch.float64), torch.randn(10, 1, 2, dtype=torch.float64)
    exact, _ = cg.value_and_grad(model, squared, x, y)
    names = sorted(exact.grads)
    flat = lambda gradient: torch.cat([gradient.grads[name].flatten() for name in names])  # noqa: E731
    truncation = cg.RandomTruncation(4, tail=tail)
    rows = 64
    draws = torch.stack(
        [
            flat(
                cg.value_and_grad(
                    model, squared, x.expand(-1, rows, -1), y.expand(-1, rows, -1), truncation=truncation, seed=seed
                )[0]
            )
            for seed in range(40)
        ]
    )
    directions = torch.randn(8, draws.shape[1], dtype=torch.float64)
    along = draws @ directions.T
    error = (along.mean(0) - directions @ flat(exact)).abs()
    assert bool((error <= 4 * along.std(0) / 40**0.5).all())
    # The same measure sees the bias of a plain cut.
    cut, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Chunks(4))
    assert bool(((directions @ flat(cut) - directions @ flat(exact)).abs() > 4 * along.std(0) / 40**0.5).any())


@pytest.mark.parametrize("k", [1, 3, 9])
def test_chunks_shorter_than_the_sequence_are_biased(k):
    torch.manual_seed(0)
    model = cg.GRU(2, 4).double()
    x, y = torch.randn(10, 2, 2, dtype=torch.float64), torch.randn(10, 2, 4, dtype=torch.float64)
    exact, _ = cg.value_and_grad(model, squared, x, y)
    cut, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Chunks(k))
    difference = torch.cat([(cut.grads[n] - exact.grads[n]).flatten() for n in exact.grads]).norm()
    assert difference > 1e-3 * float(exact.norm())


@pytest.mark.parametrize(("w", "mean"), [(0.5, 4), (0.8, 8)])
def test_the_variance_on_a_linear_recurrence_is_the_closed_form(w, mean):
    # G = sum_k w^k R_k with R_k = 1/p^k with probability p^k, so E[R_j R_k] = p^-min(j, k).
    steps, rows, p = 12, 10_000, 1 - 1 / mean
    draws = influence_of_each_row(
        torch.tensor([[w]], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        steps,
        rows,
        cg.RandomTruncation(mean),
    )
    a = [w**k for k in range(steps)]
    exact = sum(a)
    variance = sum(a[i] * a[j] * (p ** -min(i, j) - 1) for i in range(steps) for j in range(steps))
    assert abs(float(draws.mean()) - exact) < 4 * (variance / rows) ** 0.5
    centred = (draws - exact) ** 2
    assert abs(float(centred.mean()) - variance) < 4 * float(centred.std()) / rows**0.5


INFLUENCE = {1: 1, 5: 5, 10: 10, 15: 14.676, 19: 16.476, 20: 16.476, 25: 14.199, 30: 9.870, 35: 5.049, 40: 0.5655}
INFLUENCE |= {45: -2.809, 50: -4.753, 60: -5.897, 80: -5.9999, 100: -6.0}


def test_truncated_influence_of_the_balancing_problem():
    A, v = influence_balancing()
    for K, expected in INFLUENCE.items():
        measured = float(influence_of_each_row(A, v, 110, 1, cg.Window(1, K)))
        assert measured == pytest.approx(expected, abs=6e-4 if K > 10 else 1e-12)
    assert float(influence_of_each_row(A, v, 110, 1, cg.Window(1, 40))) > 0
    assert float(influence_of_each_row(A, v, 110, 1, cg.Window(1, 41))) < 0
    assert float(influence_of_each_row(A, v, 300, 1, cg.Full())) == pytest.approx(-6, abs=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(32, 25.88), (50, 18.21), (64, 15.33)])
def test_the_spread_of_random_truncation_on_the_balancing_problem(mean, std):
    A, v = influence_balancing()
    draws = influence_of_each_row(A, v, 160, 4_000, cg.RandomTruncation(mean), seed=1)
    assert abs(float(draws.mean()) + 6) < 4 * std / 4_000**0.5
    centred = (draws + 6) ** 2
    assert abs(float(centred.mean()) - std**2) < 4 * float(centred.std()) / 4_000**0.5


def test_the_forum_example_comes_out_right():
    # x_{t+1} = w x_t, w = 0.2, x_0 = 0.9: dx_3/dw is 3 w^2 x_0 in full.
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

        def forward(self, x, state=None):
            outputs = []
            for step in x:
                state = self.w * (step if state is None else state)
                outputs.append(state)
            return torch.stack(outputs), state

    x = torch.full((3, 1, 1), 0.9, dtype=torch.float64)
    weights = torch.tensor([[0.0], [0.0], [1.0]])
    for model in (Times(),):
        for truncation, expected in ((cg.Full(), 0.108), (cg.Window(1, 2), 0.072), (cg.Window(1, 1), 0.036)):
            gradient, _ = cg.value_and_grad(model, first_unit, x, x, truncation=truncation, weights=weights)
            assert float(gradient.grads["w"]) == pytest.approx(expected, abs=1e-12)
