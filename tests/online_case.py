"""What the tests of the unbiased online modes share: models, their single steps, and the measurement of the notes."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product

import torch
from torch import nn

import chronograd as cg
from forward_case import Read
from oracle import assert_close, assert_same_grads, squared

T, B = 9, 3
_draw = torch.Generator().manual_seed(0)
X, Y = (torch.randn(T, B, 2, dtype=torch.float64, generator=_draw) for _ in range(2))
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[4, 0] = RESET[7, 1] = RESET[4, 2] = True
LENGTHS = torch.tensor([T, 8, 5])
EDGES = {"plain": {}, "reset": {"reset": RESET}, "all": {"reset": RESET, "lengths": LENGTHS}}


class Leaky(nn.Module):
    """A cell of the user's own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.RNNCell(2, 3)

    def forward(self, x, state):
        state = x.new_zeros(len(x), 3) if state is None else state
        return 0.5 * state + 0.5 * self.inner(x, state) * state.cos()


def own_cell():
    return cg.Recurrent(Leaky(), nn.Linear(3, 2))


def build(make):
    torch.manual_seed(1)
    return make().double()


def gradient(model, mode, x=X, y=Y, carry=None, **options):
    return cg.value_and_grad(model, squared, x, y, carry, mode=mode, **options)


def mean_over_signs(monkeypatch, model, mode, x, y, units, seed=0, reset=None, **options):
    """The mean of one row's gradient over all signs: each pattern is a row, and all rows draw the same gates."""
    table = torch.tensor(list(product((-1, 1), repeat=units * len(x))), dtype=torch.int8)
    count = len(table)
    by_step = table.view(count, len(x), units).transpose(0, 1)

    def drawn(seed, position, steps, rows, count, salt=0):
        return by_step[position : position + steps]

    monkeypatch.setattr("chronograd.advance_forward.signs", drawn)
    carry = cg.Carry.start(count, seed=seed)
    carry = replace(carry, stream=replace(carry.stream, rows=torch.zeros(count, dtype=torch.int64)))
    x, y, reset = x.expand(-1, count, -1), y.expand(-1, count, -1), None if reset is None else reset.expand(-1, count)
    return gradient(model, mode, x, y, carry, reset=reset, **options)[0].grads


def replicas(mode, count, edges, truncation=None):
    """``draw(n)``: the mean of ``count`` estimates, taken at once as rows of their own."""
    truncation = truncation or cg.Full()
    x, y = X.repeat(1, count, 1), Y.repeat(1, count, 1)
    options = {key: part.repeat(count) if part.dim() == 1 else part.repeat(1, count) for key, part in edges.items()}

    def draws_of(model):
        return lambda n: gradient(model, mode, x, y, truncation=truncation, seed=n, **options)[0]

    return draws_of


def relative_variance(mode, units, nets=3, rows=40, calls=3, steps=50):
    """E |ghat - g|^2 / |g|^2 for dense tanh layers, the median over random nets; each row is an estimate."""
    found = []
    for net in range(nets):
        torch.manual_seed(net)
        model = Read(cg.RNN(2, units, bias=False), units).double()
        with torch.no_grad():
            model.layer.weight_hh_l0.normal_(0, units**-0.5)
            model.layer.weight_ih_l0.normal_(0, 2**-0.5)
        x, y = (torch.randn(steps, 1, 2, dtype=torch.float64).expand(steps, rows, 2) for _ in range(2))
        names = ("layer.weight_hh_l0", "layer.weight_ih_l0")

        def flat(mode, model=model, x=x, y=y, names=names, **options):
            grads = gradient(model, mode, x, y, **options)[0].grads
            return torch.cat([grads[name].flatten() for name in names])

        exact = flat(cg.Reverse())
        errors = [(flat(mode, seed=seed) - exact).square().sum() / exact.square().sum() for seed in range(calls)]
        found.append(rows * float(torch.stack(errors).mean()))
    return sorted(found)[len(found) // 2]


def check_stream(model, mode):
    """A stream of calls, its carry saved and loaded in between, gives what one call gives, and stays as small."""
    carry, total, sizes = None, None, []
    for begin, end in ((0, 1), (1, 2), (2, 5), (5, T)):
        seed = {"seed": 7} if carry is None else {}
        x, y = X[begin:end], Y[begin:end]
        part, carry = gradient(model, mode, x, y, carry, reset=RESET[begin:end], **seed)
        file = io.BytesIO()
        torch.save(carry.state_dict(), file)
        sizes.append(file.tell())
        file.seek(0)
        carry = cg.Carry.from_state_dict(torch.load(file, weights_only=True))
        total = part if total is None else total + part
    whole, last = gradient(model, mode, reset=RESET, seed=7)
    assert_same_grads(total.grads, whole.grads)
    assert max(sizes) - min(sizes) < 600 and carry.open_steps == 0
    for key, part in last.mode["influence"].items():
        assert_close(carry.mode["influence"][key], part)
