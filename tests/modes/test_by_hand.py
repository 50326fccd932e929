"""Cases that can be followed by hand: a unit of an LRU in whole numbers, and the recursion of the element-wise LSTM's
influence over 70 steps. What is expected is written here, in numbers or as a loop, and asks nothing of the package.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import assert_close, assert_same_grads, squared

# h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t), loss (y_t - 1)^2 / 2: the unit test of Zucchet et al.,
# "Online learning of long-range dependencies" (2023).
X = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1, 1)
LAMBDA, B, C = 0.5 + 0j, 2 + 2j, 2 + 1j
STATES = [2 + 2j, 5 + 5j, 8.5 + 8.5j]
ERRORS = [1.0, 4.0, 7.5]  # y - 1, of y = 2, 5, 8.5
BY_LAMBDA = [0, 2 + 2j, 6 + 6j]  # dh_t/dlambda = lambda dh_{t-1}/dlambda + h_{t-1}
BY_INPUT = [1.0, 2.5, 4.25]  # dh_t/d(gamma B) = lambda dh_{t-1}/d(gamma B) + x_t

# dL/dw = sum_t (y_t - 1) C dh_t/dw as if w were any number, here and in jax.
BY_HAND = {"lambda": 53 + 159j, "gamma": 85.75, "B": 85.75 + 42.875j, "C": 85.75 + 85.75j}
# torch gives the conjugate, the direction in which L grows fastest: for B the 85.75 - 42.875i of the paper's test.
IN_TORCH = {name: complex(found).conjugate() for name, found in BY_HAND.items()}


def half_square(outputs, targets):
    return 0.5 * (outputs - 1).square().squeeze(-1)


def number(value):
    return nn.Parameter(torch.tensor(value, dtype=torch.complex128))


class Unit(nn.Module):
    """The library's layer, and the readout; gamma is 1."""

    def __init__(self):
        super().__init__()
        self.layer, self.c = cg.DiagonalRNN(1, 1, complex=True), number(C)
        self.layer.weight_hh, self.layer.weight_ih = number([LAMBDA]), number([[B]])

    def forward(self, x, state=None):
        states, state = self.layer(x, state)
        return (self.c * states).real, state


class Cell(nn.Module):
    """The same as a cell of one's own, with its gamma."""

    def __init__(self):
        super().__init__()
        self.eigenvalue, self.b = number(LAMBDA), number(B)
        self.gamma = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x, h):
        driven = self.gamma * self.b * x
        return driven if h is None else self.eigenvalue * h + driven


class Read(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = number(C)

    def forward(self, h):
        return (self.c * h).real


NAMES = {
    "layer.weight_hh": "lambda", "layer.weight_ih": "B", "c": "C", "readout.c": "C",
    "cell.eigenvalue": "lambda", "cell.b": "B", "cell.gamma": "gamma",
}  # fmt: skip
MODELS = {"layer": Unit, "cell": lambda: cg.Recurrent(Cell(), Read())}


def in_calls(model, mode, size, x, y, loss_fn, **options):
    """The sum of the losses' gradients, over calls of ``size`` steps."""
    carry, total = None, None
    for begin in range(0, len(x), size):
        part = {name: value[begin : begin + size] for name, value in options.items()}
        steps = slice(begin, begin + size)
        y_part = None if y is None else y[steps]
        found, carry = cg.value_and_grad(model, loss_fn, x[steps], y_part, carry, mode=mode, **part)
        total = found if total is None else total + found
    return {name: total.weight * grad for name, grad in total.grads.items()}, total.weight * total.loss


def test_the_hand_is_right():
    h, by_lambda, by_input = 0, 0, 0
    found = dict.fromkeys(BY_HAND, 0)
    for t, x in enumerate((1, 2, 3)):
        by_lambda, by_input = LAMBDA * by_lambda + h, LAMBDA * by_input + x
        h = LAMBDA * h + B * x
        assert (h, by_lambda, by_input) == (STATES[t], BY_LAMBDA[t], BY_INPUT[t])
        error = (C * h).real - 1
        assert error == ERRORS[t]
        steps = {"lambda": C * by_lambda, "gamma": (C * B * by_input).real, "B": C * by_input, "C": h}
        found = {name: found[name] + error * step for name, step in steps.items()}
    assert found == BY_HAND


MODES = {"reverse": cg.Reverse(), "budget": cg.Reverse("1MB"), "scan": cg.Scan(always=True)}
MODES |= {"rtrl": cg.RTRL(), "snap1": cg.SnAp(1), "eprop total": cg.EProp("total")}
WORKS = [
    *(("layer", mode, 3) for mode in MODES),
    *(("layer", mode, 1) for mode in ("reverse", "rtrl", "snap1")),
    *(("cell", mode, size) for mode in ("reverse", "rtrl", "snap1") for size in (3, 1)),
    ("cell", "budget", 3),
]


@pytest.mark.filterwarnings("ignore:value_and_grad with Full:UserWarning")
@pytest.mark.parametrize(("model", "mode", "size"), WORKS)
def test_a_unit_of_an_lru(model, mode, size):
    found, loss = in_calls(MODELS[model](), MODES[mode], size, X, None, half_square)
    assert float(loss) == 0.5 * sum(error * error for error in ERRORS)
    assert len(found) == (3 if model == "layer" else 4)
    for name, grad in found.items():
        expected = torch.tensor(IN_TORCH[NAMES[name]], dtype=torch.complex128)
        assert grad.dtype == (torch.float64 if NAMES[name] == "gamma" else torch.complex128)
        torch.testing.assert_close(grad.flatten()[0].to(torch.complex128), expected, rtol=1e-13, atol=0)


T, ROWS, UNITS, FEATURES = 70, 10, 5, 3  # the size of Irie et al.'s own check


def elstm():
    """A layer with weights of size 1, its inputs, targets and resets."""
    torch.manual_seed(0)
    layer = cg.ELSTM(FEATURES, UNITS).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, y = torch.randn(T, ROWS, FEATURES).double(), torch.randn(T, ROWS, UNITS).double()
    return layer, x, y, torch.rand(T, ROWS) < 0.05


def paper(layer, x, y, reset):
    """The sum of the losses |c - y|^2 and its gradient, by the recursion of the paper (arXiv:2305.19044)."""
    with torch.no_grad():
        (W_z, W_f), (w_z, w_f), (b_z, b_f) = (p.chunk(2) for p in (layer.weight_ih, layer.weight_hh, layer.bias))
        c, loss = x.new_zeros(ROWS, UNITS), 0.0
        Z, F = x.new_zeros(2, ROWS, UNITS, FEATURES)
        wz, wf, bz, bf = x.new_zeros(4, ROWS, UNITS)
        ih, hh, bias = (torch.zeros_like(part) for part in (layer.weight_ih, layer.weight_hh, layer.bias))
        for t in range(T):
            # A sequence that begins here knows nothing of the one before.
            goes_on = (~reset[t]).double().unsqueeze(-1)
            c, wz, wf, bz, bf = (goes_on * part for part in (c, wz, wf, bz, bf))
            Z, F = (goes_on.unsqueeze(-1) * part for part in (Z, F))
            z = torch.tanh(x[t] @ W_z.T + w_z * c + b_z)
            f = torch.sigmoid(x[t] @ W_f.T + w_f * c + b_f)
            zf, fz = (1 - f) * (1 - z**2), (c - z) * f * (1 - f)
            k = f + zf * w_z + fz * w_f
            Z, F = ((k.unsqueeze(-1) * m + by.unsqueeze(-1) * x[t].unsqueeze(1)) for m, by in ((Z, zf), (F, fz)))
            wz, wf, bz, bf = c * zf + k * wz, c * fz + k * wf, zf + k * bz, fz + k * bf
            c = f * c + (1 - f) * z
            loss += (c - y[t]).square().sum()
            q = 2 * (c - y[t])
            ih += torch.cat([(q.unsqueeze(-1) * m).sum(0) for m in (Z, F)])
            hh += torch.cat([(q * m).sum(0) for m in (wz, wf)])
            bias += torch.cat([(q * m).sum(0) for m in (bz, bf)])
    return {"weight_ih": ih, "weight_hh": hh, "bias": bias}, loss


def plain(layer, x, y, reset):
    """The same by torch's autograd through a loop of its own operations."""
    (W_z, W_f), (w_z, w_f), (b_z, b_f) = (p.chunk(2) for p in (layer.weight_ih, layer.weight_hh, layer.bias))
    c, loss = x.new_zeros(ROWS, UNITS), torch.zeros((), dtype=torch.float64)
    for t in range(T):
        c = torch.where(reset[t].unsqueeze(-1), 0.0, c)
        f = torch.sigmoid(x[t] @ W_f.T + w_f * c + b_f)
        c = f * c + (1 - f) * torch.tanh(x[t] @ W_z.T + w_z * c + b_z)
        loss = loss + (c - y[t]).square().sum()
    named = dict(layer.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, [*named.values()]))), loss.detach()


@pytest.mark.parametrize("resets", [False, True])
def test_the_recursion_of_the_paper_is_the_gradient(resets):
    layer, x, y, reset = elstm()
    assert reset.any()
    found, loss = paper(layer, x, y, reset & resets)
    expected, total = plain(layer, x, y, reset & resets)
    assert_close(loss, total, 1e-12)
    assert_same_grads(found, expected, 1e-12)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32, T])
@pytest.mark.parametrize("mode", [cg.RTRL(), cg.SnAp(1)], ids=str)
def test_an_element_wise_lstm_in_a_stream(mode, size, resets):
    """One step at a time, in chunks that divide the stream or do not, in one call: the sum is that of the paper."""
    layer, x, y, reset = elstm()
    reset &= resets
    expected, total = paper(layer, x, y, reset)
    found, loss = in_calls(layer, mode, size, x, y, squared, reset=reset)
    assert_close(loss, total)
    assert_same_grads(found, expected)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("mode", [cg.Reverse(), cg.Reverse("1MB"), cg.Scan(), cg.Scan(always=True)], ids=str)
def test_an_element_wise_lstm_over_the_whole_sequence(mode, resets):
    layer, x, y, reset = elstm()
    reset &= resets
    expected, total = paper(layer, x, y, reset)
    found, loss = in_calls(layer, mode, T, x, y, squared, reset=reset)
    assert_close(loss, total)
    assert_same_grads(found, expected)
