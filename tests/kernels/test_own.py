"""The walk back over each unit's own influence against its definition, compiled and in plain torch."""

import pytest
import torch

from chronograd.kernels import own as module
from chronograd.kernels.own import LEAST, own_back, own_cell_back

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


@pytest.mark.parametrize("edges", [(), ("gates",), ("valid",), ("gates", "valid")], ids=str)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["tanh", "relu", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_cell_walks_by_its_states(dtype, kind, weighted, edges):
    torch.manual_seed(0)
    path, given = torch.randn(6, 3, 9, dtype=dtype).tanh(), torch.randn(6, 3, 9, dtype=dtype)
    weight = torch.randn(9, dtype=dtype) if weighted else None
    gates = torch.tensor([0.0, 1.0, 1.5])[torch.randint(3, (6, 3))] if "gates" in edges else None
    valid = torch.rand(6, 3) < 0.7 if "valid" in edges else None
    slope = {"tanh": 1 - path**2, "relu": (path > 0).to(dtype), "linear": torch.ones_like(path)}[kind]
    own = slope * (torch.zeros(9, dtype=dtype) if weight is None else weight)
    if valid is not None:
        slope, own = slope * valid.unsqueeze(-1), torch.where(valid.unsqueeze(-1), own, 1)
    own = own if gates is None else own * gates.unsqueeze(-1).to(dtype)
    found = own_cell_back(kind, path, weight, gates, valid, given)
    if found is None:
        pytest.skip("the kernels are not built")
    (delta,), (flow,) = by_definition([[own]], [given])
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(found[0], (slope * delta).to(dtype), **close)
    torch.testing.assert_close(found[1], flow.to(dtype), **close)
    assert found[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_stops_where_all_is_forgotten(dtype):
    path, weight = torch.zeros(60, 2, 3, dtype=dtype), torch.full((3,), 0.1, dtype=dtype)
    found = own_cell_back("linear", path, weight, None, None, None)
    if found is None:
        pytest.skip("the kernels are not built")
    product, flow, first = found
    expected = 0.1 ** torch.arange(59, -1, -1, dtype=torch.float64)
    least = LEAST * torch.finfo(dtype).eps
    assert expected[first] > least >= expected[first - 1] * 0.1 or expected[first - 1] <= least
    torch.testing.assert_close(product[first:, 0, 0].double(), expected[first:], rtol=1e-4, atol=0.0)
    assert not product[:first].any() and float(flow.abs().max()) <= least
    assert own_cell_back("gru", path, weight, None, None, None) is None
