"""The means of persistent evolution strategies against closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import chronograd as cg


class Balance(nn.Module):
    """Influence balancing: s' = A s + theta v, where the influence of the last steps has the wrong sign."""

    def __init__(self, n=23, positive=10):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.a = torch.eye(n, dtype=torch.float64) / 2 + torch.diag(torch.ones(n - 1, dtype=torch.float64) / 2, 1)
        self.v = torch.where(torch.arange(n) < positive, 1.0, -1.0).double()

    def forward(self, x, s):
        s = self.v.abs().expand(len(x), -1) if s is None else s
        return s @ self.a.T + self.theta * self.v


def to_one(outputs, targets):
    return 0.5 * (outputs[..., 0] - 1).square()


STEPS = torch.zeros(200, 1, 1, dtype=torch.float64)


def balance(mode, seed=0, **options):
    model = cg.Recurrent(Balance())
    found, _ = cg.value_and_grad(model, to_one, STEPS, None, mode=mode, seed=seed, **options)
    return float(found.grads["cell.theta"])


@pytest.mark.parametrize(
    ("mode", "deviation"),
    [
        (cg.PES(3000, 0.1), 45.40),
        (cg.PES(3000, 0.1, reuse_noise=True), 41.50),
        (cg.PES(3000, 0.1, analytic=True), 45.40),
    ],
    ids=str,
)
def test_influence_balancing(mode, deviation):
    exact = balance(cg.Reverse())
    assert abs(exact - 29.858) < 1e-3
    assert abs(balance(mode) - exact) < 4 * deviation / math.sqrt(3000)


def test_truncated_es_has_the_wrong_sign_there():
    one_step = balance(cg.Reverse(), truncation=cg.Chunks(1))
    assert abs(one_step + 2.13) < 0.005
    found = np.array([balance(cg.PES(100, 0.1), seed, truncation=cg.Chunks(1)) for seed in range(3)])
    # The loss is quadratic in the noise of one step, so smoothing it adds no bias.
    assert abs(found.mean() - one_step) < 4 * found.std(ddof=1) / math.sqrt(3) and (found < 0).all()


class Scalar(nn.Module):
    """s' = sin(w s + x)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x, s):
        return torch.sin(self.w * (x.new_zeros(len(x), 1) if s is None else s) + x)


def quadrature(sigma, reuse):
    """d/dw of E sum_t s_t^2 / 3 over the noise of three steps, by Gauss and Hermite's rule with 40 nodes for each."""
    nodes, share = np.polynomial.hermite_e.hermegauss(40)
    share = share / share.sum()
    grids = [nodes] * 3 if not reuse else [nodes]
    eps = np.stack(np.meshgrid(*grids, indexing="ij"), 0) * sigma
    weights = np.ones(eps.shape[1:])
    for axis in range(len(grids)):
        weights = weights * share.reshape([-1 if n == axis else 1 for n in range(len(grids))])
    w = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    s, total = torch.zeros(eps.shape[1:], dtype=torch.float64), 0.0
    for t, x in enumerate((1.0, 0.4, -0.3)):
        s = torch.sin((w + torch.as_tensor(eps[0 if reuse else t])) * s + x)
        total = total + (torch.as_tensor(weights) * s.square()).sum() / 3
    return float(torch.autograd.grad(total, w)[0])


@pytest.mark.parametrize("reuse", [False, True])
def test_it_is_unbiased_for_the_smoothed_loss(reuse):
    model = cg.Recurrent(Scalar())
    x = torch.tensor([1.0, 0.4, -0.3], dtype=torch.float64).reshape(3, 1, 1)
    loss = lambda outputs, targets: outputs.square().sum(-1)  # noqa: E731
    mode = cg.PES(4000, 0.5, reuse_noise=reuse)
    found = np.array(
        [float(cg.value_and_grad(model, loss, x, None, mode=mode, seed=seed)[0].grads["cell.w"]) for seed in range(30)]
    )
    exact = float(cg.value_and_grad(model, loss, x, None)[0].grads["cell.w"])
    smoothed, error = quadrature(0.5, reuse), found.std(ddof=1) / math.sqrt(30)
    assert abs(found.mean() - smoothed) < 4 * error
    assert abs(found.mean() - exact) > 8 * error  # and biased for the loss itself
    assert mode.smoothed and not mode.unbiased and not mode.exact and mode.online and mode.random
