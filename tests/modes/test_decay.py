"""The influence of a diagonal recurrence as sums by powers, against the recursion step by step in double precision."""

import pytest
import torch

from chronograd.kernels import own as module
from chronograd.modes.forward.decay import decayed, power, powers, remembered


def by_recursion(decay, x, initial, path):
    wide = torch.complex128 if decay.is_complex() else torch.float64
    decay, x, initial, path = (part.to(wide) for part in (decay, x, initial, path))
    of_x = torch.zeros(*initial.shape, x.shape[2], dtype=wide)
    of_decay, of_one = torch.zeros_like(initial), torch.zeros_like(decay)
    for t in range(len(x)):
        of_x = decay.unsqueeze(-1) * of_x + x[t].unsqueeze(1)
        of_decay = decay * of_decay + (path[t - 1] if t else initial)
        of_one = decay * of_one + 1
    return of_x, of_decay, of_one


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 63, 65, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_sums_by_powers_are_the_recursion(dtype, steps, native, monkeypatch):
    if not native:
        monkeypatch.setattr(module, "library", lambda: None)
    torch.manual_seed(0)
    size = torch.tensor([0.0, 0.3, -0.6, 0.9, -0.97, 0.999, 1.0, 1.002], dtype=torch.float64)
    decay = size.to(dtype) if not dtype.is_complex else torch.polar(size.abs(), torch.randn(8).double()).to(dtype)
    x, initial, path = (torch.randn(*shape, dtype=dtype) for shape in ((steps, 3, 5), (3, 8), (steps, 3, 8)))
    tolerance = 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-11
    for ours, theirs in zip(decayed(decay, x, initial, path), by_recursion(decay, x, initial, path)):
        assert float((ours - theirs).abs().max()) < tolerance * float(theirs.abs().max())


def test_what_is_forgotten_is_below_rounding():
    decay = torch.rand(200, dtype=torch.float64)
    back = remembered(decay, 10**6)
    assert float((decay**back).max()) < 1e-3 * torch.finfo(torch.float64).eps
    assert int(remembered(torch.tensor([1.0, -1.5]), 77).min()) == 77


def test_powers_keep_the_angle():
    decay = torch.polar(torch.ones(5, dtype=torch.float64), torch.linspace(0.1, 3.0, 5, dtype=torch.float64))
    exact = torch.polar(torch.ones(5, dtype=torch.float64), 4095 * torch.linspace(0.1, 3.0, 5, dtype=torch.float64))
    for found in (power(decay, 4095), powers(decay, 4096)[-1]):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)
    narrow = power(decay.to(torch.complex64), 4095)
    torch.testing.assert_close(narrow.to(torch.complex128), exact, rtol=2e-3, atol=2e-3)
