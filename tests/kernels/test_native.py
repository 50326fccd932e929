"""The compiled kernels against their pure-torch twin (float64) and torch.nn (float32), on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronograd.kernels import CELLS, Edges, library, run_projected
from chronograd.kernels.compiled import Choice
from layer_case import EDGES, KINDS, Case, can, isas

NN = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_agrees_with_the_twin(native, threads, kind, isa):
    can(native, isa)
    for number, split in enumerate(("auto", "rows", "units")):
        for edges in EDGES:
            choice = Choice(isa, split, number + 1, native)
            Case(kind, (5, 9, 33, 3), edges=edges, seed=number).check(choice)
            if kind == "diagonal":
                Case(kind, (5, 9, 33, 3), True, edges=edges, seed=number).check(choice)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    steps=st.sampled_from([1, 2, 7, 33]),
    rows=st.sampled_from([1, 3, 7, 33]),
    size=st.sampled_from([1, 7, 16, 33, 64, 130]),
    edges=st.sampled_from(EDGES),
    fresh=st.booleans(),
    split=st.sampled_from(["auto", "rows", "units"]),
    block=st.sampled_from([0, 1, 4]),
    inputs=st.sampled_from([1, 2, 3, 4, 5, 17]),
    seed=st.integers(0, 1000),
)
def test_odd_shapes_agree_with_the_twin(
    native, threads, kind, steps, rows, size, edges, fresh, split, block, inputs, seed
):
    complex_ = kind == "diagonal" and seed % 2 == 0
    Case(kind, (steps, rows, size, inputs), complex_, edges, fresh, seed).check(Choice(None, split, block, native))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", sorted(NN))
def test_float32_agrees_with_torch(native, threads, kind, isa):
    can(native, isa)
    torch.manual_seed(0)
    layer = NN[kind](5, 33)
    x = torch.randn(40, 7, 5, requires_grad=True)
    initial = tuple(torch.randn(7, 33, requires_grad=True) for _ in range(CELLS[kind].parts))
    first = tuple(part.unsqueeze(0) for part in initial)
    weights = [getattr(layer, f"{name}_l0") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    leaves = [x, *initial, *weights]
    theirs = layer(x, first if kind == "lstm" else first[0])[0]
    ours = run_projected(
        kind, x, *weights[:2], initial, *weights[2:], Edges(), None, Choice(isa, block=8, native=native)
    )[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves, cotangent), torch.autograd.grad(theirs, leaves, cotangent)):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous_inputs(native, kind):
    case = Case(kind, (6, 3, 7, 5))
    choice = Choice(native=native)
    expected = case.projected(choice)

    def turned(part):
        return part.transpose(0, -1).contiguous().transpose(0, -1)

    found = case.gives(
        lambda c: run_projected(
            c.kind,
            turned(c.x),
            turned(c.weight_ih),
            c.bias_ih,
            tuple(map(turned, c.initial)),
            turned(c.weight),
            c.bias,
            c.edges,
            None,
            choice,
        )
    )
    case.cotangents = [turned(part) for part in case.cotangents]
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    for a, b in zip(case.projected(choice), expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(native, kind):
    case = Case(kind, (4, 3, 3, 2), edges=("reset", "valid"))
    choice = Choice(block=2, native=native)

    def run(x, weight_ih, bias_ih, weight, bias, *states):
        parts = CELLS[kind].parts
        fresh = states[parts:] or None
        return run_projected(kind, x, weight_ih, bias_ih, states[:parts], weight, bias, case.edges, fresh, choice)

    if kind == "relu":
        pytest.skip("not smooth")
    assert torch.autograd.gradcheck(run, case.leaves)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_functions_over_the_whole_range(native, function, isa):
    """Every 1009th float32 (all exponents, both signs): relative error below 2e-7 where the result is normal."""
    can(native, isa)
    x = torch.arange(-(2**31), 2**31, 1009).to(torch.int32).view(torch.float32)
    y = torch.empty_like(x)
    number = ["tanh", "sigmoid"].index(function)
    native.chronograd_apply(library.ISAS.index(isa), 0, number, x.numel(), x.data_ptr(), y.data_ptr())
    exact = getattr(torch, function)(x.double())
    assert torch.equal(y.isnan(), x.isnan())
    normal = exact.abs() >= torch.finfo(torch.float32).tiny
    assert ((y.double() - exact).abs() / exact.abs())[normal].max() < 2e-7
    tiny = ~normal & ~x.isnan()
    assert (y.double() - exact)[tiny].abs().max() < torch.finfo(torch.float32).tiny
    for real, dtype in ((0, torch.float32), (1, torch.float64)):
        ends = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0], dtype=dtype)
        out = torch.empty_like(ends)
        native.chronograd_apply(library.ISAS.index(isa), real, number, 5, ends.data_ptr(), out.data_ptr())
        torch.testing.assert_close(out, getattr(torch, function)(ends), rtol=0, atol=0, equal_nan=True)
        if number == 0:
            assert out[3:].signbit().tolist() == [False, True]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_functions_in_float64_are_within_four_ulps(native, function, isa):
    mp = pytest.importorskip("mpmath")
    can(native, isa)
    random = torch.Generator().manual_seed(0)
    spread = 10.0 ** torch.empty(500, dtype=torch.float64).uniform_(-300, 2.8, generator=random)
    wide = torch.empty(1000, dtype=torch.float64).uniform_(-40, 40, generator=random)
    x = torch.cat((spread, -spread, wide, wide / 40, torch.linspace(-708, -600, 50, dtype=torch.float64)))
    y = torch.empty_like(x)
    number = ["tanh", "sigmoid"].index(function)
    native.chronograd_apply(library.ISAS.index(isa), 1, number, x.numel(), x.data_ptr(), y.data_ptr())
    with mp.workdps(40):
        for at, found in zip(x.tolist(), y.tolist()):
            exact = mp.tanh(mp.mpf(at)) if number == 0 else 1 / (1 + mp.exp(-mp.mpf(at)))
            if abs(exact) > torch.finfo(torch.float64).tiny:
                ulp = torch.tensor(float(exact), dtype=torch.float64).abs()
                ulp = (torch.nextafter(ulp, ulp.new_tensor(torch.inf)) - ulp).item()
                assert abs(mp.mpf(found) - exact) <= 4 * ulp, at


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_passes_as_in_the_twin(native, kind, isa, bad):
    """One bad input in row 1: the other rows do not see it; that row is not finite where the twin's is not."""
    can(native, isa)
    case = Case(kind, (5, 9, 17, 3))
    with torch.no_grad():
        case.x[2, 1, 0] = bad
    ours, theirs = case.projected(Choice(isa, native=native)), case.twin()
    for a, b in zip(ours[: CELLS[kind].parts], theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_a_closed_gate_cuts_what_is_not_finite(native):
    for kind in KINDS:
        case = Case(kind, (4, 3, 5, 2))
        gates = torch.ones(4, 3, dtype=torch.float64)
        gates[2, 1] = 0
        case.edges = Edges(gates)
        case.cotangents[0][3, 1] = torch.nan
        ours, theirs = case.projected(Choice(native=native)), case.twin()
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)
        dx = ours[CELLS[kind].parts]
        # A unit of relu that is off passes nothing on, not even this.
        assert dx[:2].isfinite().all() and (kind == "relu" or not dx[3, 1].isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_what_memory_held(native, threads, kind):
    """torch fills new memory with NaN: nothing of it may reach a result, and runs agree bit for bit."""
    case = Case(kind, (7, 5, 19, 3), edges=EDGES[-1])
    first = case.projected(Choice(block=2, native=native))
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        second = case.projected(Choice(block=2, native=native))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
    for a, b in zip(first, second):
        assert torch.equal(a, b)


def test_nothing_is_kept_without_gradients(native):
    for kind in KINDS:
        case = Case(kind, (9, 3, 7, 4))
        choice = Choice(block=4, native=native)
        with torch.no_grad():
            path = case.path(choice)
        assert path[0].grad_fn is None
        torch.testing.assert_close(path[0], case.projected(choice)[0])


def test_the_way_back_may_be_walked_twice_but_not_differentiated(native):
    case = Case("gru", (5, 2, 3, 2))
    path = case.path(Choice(native=native))
    first = torch.autograd.grad(path[0].sum(), case.weight, retain_graph=True)
    second = torch.autograd.grad(path[0].sum(), case.weight, retain_graph=True)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(path[0].sum(), case.weight, create_graph=True)
