"""The walk back over each unit's own influence against its definition, compiled and in plain torch."""

import pytest
import torch

from chronograd.kernels import own as module
from chronograd.kernels.own import own_back

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def by_definition(own, given):
    """delta_t = given_t + C_{t+1}^T delta_{t+1}, with dense matrices of a unit's numbers, in double precision."""
    parts, steps = len(given), len(given[0])
    wide = torch.complex128 if given[0].is_complex() else torch.float64
    matrices = torch.stack(
        [torch.stack([torch.zeros_like(given[0]) if o is None else o for o in row], -1) for row in own], -2
    ).to(wide)
    delta = torch.stack(given, -1).to(wide)
    for t in range(steps - 1, 0, -1):
        delta[t - 1] += (matrices[t].mT @ delta[t].unsqueeze(-1)).squeeze(-1)
    flow = (matrices[0].mT @ delta[0].unsqueeze(-1)).squeeze(-1)
    return [delta[..., p] for p in range(parts)], [flow[..., p] for p in range(parts)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("absent", [(), ((0, 0), (1, 0)), ((1, 1),)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7), (4, 2, 700)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_recurrence(dtype, shape, absent, native, monkeypatch):
    if not native:
        monkeypatch.setattr(module, "library", lambda: None)
    torch.manual_seed(0)
    for parts in (1, 2):
        own = [[torch.randn(shape, dtype=dtype) for _ in range(parts)] for _ in range(parts)]
        for p, o in absent:
            if p < parts and o < parts:
                own[p][o] = None
        given = [torch.randn(shape, dtype=dtype) for _ in range(parts)]
        expected, left = by_definition(own, given)
        delta = [part.clone() for part in given]
        flow = own_back(own, delta)
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype in (torch.float32, torch.complex64) else {}
        for ours, theirs in zip([*delta, *flow], [*expected, *left]):
            torch.testing.assert_close(ours, theirs.to(dtype), **close)


def test_what_is_laid_out_otherwise_goes_through_torch():
    torch.manual_seed(0)
    own, given = torch.randn(4, 3, 5).mT, torch.randn(4, 3, 5).mT
    expected, _ = by_definition([[own]], [given])
    delta = given.clone()
    own_back([[own]], [delta])
    torch.testing.assert_close(delta, expected[0].float())
