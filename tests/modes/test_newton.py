"""Newton over the whole sequence: how many iterations, what it says when they are not enough; Jacobians by formula."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.kernels import CELLS, Edges
from chronograd.modes.scan.jacobians import diagonals, jacobians, step_all
from chronograd.modes.scan.newton import NotConverged, growth, solve
from oracle import assert_close, squared

TORCH_CELLS = {
    "tanh": lambda: nn.RNNCell(3, 4),
    "relu": lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
    "gru": lambda: nn.GRUCell(3, 4),
    "lstm": lambda: nn.LSTMCell(3, 4),
}


@pytest.mark.parametrize("kind", TORCH_CELLS)
def test_jacobians_in_closed_form_are_those_of_torch(kind):
    torch.manual_seed(0)
    module, parts = TORCH_CELLS[kind]().double(), CELLS[kind].parts
    x, flat = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4 * parts, dtype=torch.float64)

    def step(h, one):
        state = tuple(part.unsqueeze(0) for part in h.chunk(parts))
        new = module(one.unsqueeze(0), state if parts == 2 else state[0])
        return torch.cat(new if parts == 2 else (new,), -1)[0]

    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda h, n=n: step(h, x[n]), flat[n]) for n in range(5)]
    )
    weight, inner = module.weight_hh.detach(), CELLS[kind].inner_bias
    drive = (x @ module.weight_ih.mT + module.bias_ih + (0 if inner else module.bias_hh)).detach()
    bias = module.bias_hh.detach() if inner else None
    after, factors = step_all(CELLS[kind], drive, flat.chunk(parts, -1), weight, bias)
    assert_close(torch.cat(after, -1), torch.stack([step(h, one) for h, one in zip(flat, x)]).detach())
    assert_close(jacobians(kind, factors, weight), expected)
    assert_close(diagonals(kind, factors, weight), expected.diagonal(dim1=1, dim2=2))


def test_the_jacobian_of_the_element_wise_lstm_is_its_diagonal():
    torch.manual_seed(0)
    drive, c = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64)

    def step(c, one):
        z, f = (one[:4] + weight[:4] * c).tanh(), (one[4:] + weight[4:] * c).sigmoid()
        return f * c + (1 - f) * z

    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda h, one=one: step(h, one), old) for one, old in zip(drive, c)]
    )
    (after,), factors = step_all(CELLS["elstm"], drive, (c,), weight, None)
    assert_close(after, torch.stack([step(old, one) for one, old in zip(drive, c)]))
    assert_close(jacobians("elstm", factors, weight), expected)
    assert_close(diagonals("elstm", factors, weight), expected.diagonal(dim1=1, dim2=2))


def test_one_newton_for_a_diagonal_jacobian_whatever_it_is_called():
    torch.manual_seed(0)
    model, x = cg.ELSTM(3, 5).double(), torch.randn(300, 2, 3, dtype=torch.float64)
    found = []
    for forward in ("newton", "quasi"):
        gradient, _ = cg.value_and_grad(model, squared, x, torch.zeros(300, 2, 5), mode=cg.Scan(forward))
        (way,) = gradient.how  # the way back is a scan, not solved for
        assert way.loop == "elstm layer of 5 units" and way.how == forward and 2 < way.iterations < 15
        found.append((way.changes, gradient.grads))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def tanh_network(n, g, steps=500, seed=0):
    """h_t = tanh(W h_{t-1} + x_t), W = g N(0, 1) / sqrt(n), x ~ N(0, 1)."""
    random = torch.Generator().manual_seed(seed)
    w = g * torch.randn(n, n, generator=random, dtype=torch.float64) / math.sqrt(n)
    return w, torch.randn(steps, 1, n, generator=random, dtype=torch.float64)


def iterations(n, g, full, allowed=500):
    w, x = tanh_network(n, g)

    def step(before, full):
        h = torch.tanh(before @ w.T + x)
        slope = 1 - h * h
        return h, slope.unsqueeze(-1) * w if full else slope * w.diagonal()

    found = solve(step, torch.zeros(1, n).double(), Edges(), len(x), full=full, iterations=allowed, tolerance=1e-10)
    return len(found.changes)


def test_iterations_grow_with_the_gain_and_explode_where_chaos_begins():
    """field/estimators.md 5, T = 500, tolerance 1e-10, guess zero, DEER / quasi-DEER on other draws of the same kind:
    n = 8: g = .5 5/25, .9 6/40, 1.2 16/200, 2.0 191/491.
    """
    assert iterations(8, 0.5, True) == 5 and 20 <= iterations(8, 0.5, False) <= 32
    assert iterations(8, 0.9, True) in (6, 7) and 35 <= iterations(8, 0.9, False) <= 60
    assert 9 <= iterations(8, 1.2, True) <= 16 and 70 <= iterations(8, 1.2, False) <= 200
    assert iterations(32, 0.5, True) == 5 and iterations(32, 0.9, True) in (6, 7)
    assert iterations(8, 2.0, True) > 50
    with pytest.raises(NotConverged):
        iterations(8, 2.0, False, allowed=200)


def test_the_error_is_squared_each_time():
    w, x = tanh_network(4, 0.8)
    model = cg.Recurrent(lambda x, h: torch.tanh(x if h is None else h @ w.T + x))
    gradient, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x), mode=cg.Scan(), wrt_inputs=True)
    (way,) = gradient.how
    assert way.how == "newton" and way.iterations == len(way.residuals) == len(way.changes) <= 10
    small = [change for change in way.changes if change < 0.1]
    assert all(later <= 10 * earlier**2 + 1e-13 for earlier, later in zip(small, small[1:]))
    assert way.changes[-1] < 1e-12 and f"{way.iterations} iterations" in str(way)


def test_as_many_iterations_as_steps_are_enough_even_in_chaos():
    w, x = tanh_network(6, 4.0, 40)
    model = cg.RNN(6, 6, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(w)
    y = torch.zeros_like(x)
    ours, _ = cg.value_and_grad(model, squared, x, y, mode=cg.Scan(iterations=41))
    theirs, _ = cg.value_and_grad(model, squared, x, y)
    assert_close(ours.loss, theirs.loss)


def chaotic(g=4.0, n=16, steps=300):
    w, x = tanh_network(n, g, steps)
    model = cg.RNN(n, n, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(w)
        model.weight_ih_l0.copy_(torch.eye(n))
    return model, 0.1 * x


@pytest.mark.parametrize("forward", ["newton", "quasi"])
@pytest.mark.parametrize("build", ["layer", "cell"])
def test_chaos_is_refused_with_the_growth_that_was_measured(build, forward):
    model, x = chaotic()
    if build == "cell":
        layer, model = model, cg.Recurrent(nn.RNNCell(16, 16, bias=False).double())
        model.cell.weight_hh, model.cell.weight_ih = layer.weight_hh_l0, layer.weight_ih_l0
    with pytest.raises(
        ValueError, match=r"chaotic.*grow apart by 1\.\d+ a step.*\+0\.\d+.*use mode=cg\.Reverse\(\)"
    ) as caught:
        cg.value_and_grad(model, squared, x, x, mode=cg.Scan(forward, iterations=15))
    assert "\n" not in str(caught.value) and ("tanh layer of 16" if build == "layer" else "cell of 16") in str(
        caught.value
    )


def test_a_recurrence_that_forgets_slowly_is_told_to_go_on():
    w, x = tanh_network(8, 0.9)
    model = cg.RNN(8, 8, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(w)
    with pytest.raises(ValueError, match=r"come together by 0\.\d+ a step; use cg.Scan\(\"newton\"\)"):
        cg.value_and_grad(model, squared, x, x, mode=cg.Scan("quasi", iterations=5))


@pytest.mark.parametrize("forward", ["newton", "quasi"])
def test_states_that_overflow_do_not_pass_for_converged(forward):
    cell = nn.RNNCell(2, 2, nonlinearity="relu")
    with torch.no_grad():
        cell.weight_hh.copy_(3 * torch.eye(2))
        cell.weight_ih.copy_(torch.eye(2))
    x = torch.ones(300, 1, 2)
    with pytest.raises(ValueError, match=r"overflow in 100 iterations; use mode=cg\.Reverse\(\)"):
        cg.value_and_grad(cg.Recurrent(cell), squared, x, x, mode=cg.Scan(forward))


def test_growth_is_the_largest_lyapunov_exponent():
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert growth(0.9 * q.expand(50, 1, 5, 5)) == pytest.approx(math.log(0.9), abs=1e-12)
    several = torch.stack((0.5 * q, 1.2 * q)).expand(50, 2, 5, 5)
    assert growth(several) == pytest.approx(math.log(1.2), abs=1e-12)
    # The driven tanh network against the product of its Jacobians, R of QR by QR.
    w, x = tanh_network(6, 1.5, 400)
    h, frame, total, found = torch.zeros(6).double(), torch.eye(6).double(), 0.0, []
    for one in x[:, 0]:
        h = torch.tanh(w @ h + one)
        found.append((1 - h * h).unsqueeze(-1) * w)
        frame, r = torch.linalg.qr(found[-1] @ frame)
        total += float(r[0, 0].abs().log())
    assert growth(torch.stack(found).unsqueeze(1)) == pytest.approx(total / 400, abs=0.03)


@pytest.mark.parametrize("forward", ["newton", "quasi"])
def test_a_cell_that_is_not_finite_at_zero_takes_the_loop_and_says_so(forward):
    """Newton's guess is zeros, where the direction of a state is 0 / 0; the states that the cell comes to are fine."""

    class Directed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, state):
            state = torch.ones_like(x) if state is None else state
            return (self.linear(x) + state / state.norm(dim=-1, keepdim=True)).tanh()

    torch.manual_seed(0)
    model, x = cg.Recurrent(Directed()).double(), torch.randn(30, 2, 3, dtype=torch.float64)
    ours, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x), mode=cg.Scan(forward))
    theirs, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x))
    assert "not finite" in ours.how[0].why and ours.how[0].how == "jacobians"
    assert_close(ours.loss, theirs.loss)
    for name, grad in theirs.grads.items():
        assert_close(ours.grads[name], grad)


@pytest.mark.parametrize("forward", ["newton", "quasi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_states_and_states_beside_large_ones_are_as_exact_as_others(forward, dtype):
    class Counting(nn.Module):
        """A state beside a sum that grows to 1e10."""

        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(3, 4)

        def forward(self, x, state):
            h, total = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 1)) if state is None else state
            return self.cell(x, h), total + 1e8 * x[:, :1].abs()

    torch.manual_seed(0)
    x = torch.randn(200, 2, 3, dtype=dtype)
    near = 1e-10 if dtype == torch.float64 else 1e-4
    for model, given in (
        (cg.RNN(3, 4, bias=False), 1e-12 * x),
        (cg.Recurrent(Counting(), lambda state: state[0]), x),
    ):
        model.to(dtype)
        zeros = x.new_zeros(200, 2, 4)
        loss_fn = lambda outputs, targets: (outputs - targets).square().sum(-1)  # noqa: E731
        ours, _ = cg.value_and_grad(model, loss_fn, given, zeros, mode=cg.Scan(forward))
        theirs, _ = cg.value_and_grad(model, loss_fn, given, zeros)
        for name, grad in theirs.grads.items():
            assert_close(ours.grads[name] / grad.abs().max(), grad / grad.abs().max(), near)


@pytest.mark.parametrize(("g", "scale", "iterations"), [(1.1, 0.1, 60), (1.2, 0.5, 60), (1.0, 0.1, 60), (0.9, 1, 5)])
def test_following_the_advice_works(g, scale, iterations):
    """Whatever the refusal proposes is taken at its word, and gives the gradient of the loop."""
    model, x = chaotic(g, 16)
    x *= 10 * scale
    with pytest.raises(ValueError, match="did not converge") as caught:
        cg.value_and_grad(model, squared, x, x, mode=cg.Scan("quasi", iterations=iterations))
    proposed = re.findall(r"cg\.\w+\([^)]*\)", str(caught.value).partition("; use ")[2])
    assert proposed[0] == 'cg.Scan("newton")' and proposed[-1] == "cg.Reverse()"
    theirs, _ = cg.value_and_grad(model, squared, x, x)
    for text in proposed:
        ours, _ = cg.value_and_grad(model, squared, x, x, mode=eval(text, {"cg": cg}))
        assert_close(ours.grads["weight_hh_l0"], theirs.grads["weight_hh_l0"], 1e-8)
