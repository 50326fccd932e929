"""The influence of a diagonal recurrence as sums by powers, against the recursion step by step in double precision."""

import pytest
import torch

from chronograd.modes.forward.decay import Decayed, decayed, power, powers, remembered


def by_recursion(decay, x, weight, bias, h, known):
    wide = torch.complex128 if decay.is_complex() else torch.float64
    decay, x, weight, bias, h = (part.to(wide) for part in (decay, x, weight, bias, h))
    of_x, of_decay, of_one = (part.to(wide) for part in known)
    for t in range(len(x)):
        of_x = decay.view(-1, 1, 1) * of_x + x[t]
        of_decay = decay.unsqueeze(-1) * of_decay + h.mT
        of_one = decay.unsqueeze(-1) * of_one + 1
        h = decay * h + x[t] @ weight.mT + bias
    return of_x, of_decay, of_one


@pytest.mark.parametrize("going_on", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 63, 65, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_sums_by_powers_are_the_recursion(dtype, steps, biased, going_on):
    torch.manual_seed(0)
    size = torch.tensor([0.0, 0.3, -0.6, 0.9, -0.97, 0.999, 1.0, 1.002], dtype=torch.float64)
    decay = size.to(dtype) if not dtype.is_complex else torch.polar(size.abs(), torch.randn(8).double()).to(dtype)
    x, weight, bias, initial = (torch.randn(*shape, dtype=dtype) for shape in ((steps, 3, 5), (8, 5), (8,), (3, 8)))
    known = Decayed(*(torch.randn(*shape, dtype=dtype) for shape in ((8, 3, 5), (8, 3), (8, 3))))
    tolerance = 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-11
    found = decayed(decay, x, weight, bias if biased else None, initial, known if going_on else None)
    zeros = [torch.zeros_like(part) for part in known]
    expected = by_recursion(decay, x, weight, bias if biased else bias * 0, initial, known if going_on else zeros)
    for ours, theirs in zip(found, expected):
        error, whole = (ours - theirs).abs().flatten(1).amax(1), theirs.abs().flatten(1).amax(1)
        assert bool((error <= tolerance * whole.clamp(min=1e-3)).all())


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
