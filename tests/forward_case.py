"""Models, data and edges for the modes that walk forward."""

from __future__ import annotations

import torch
from torch import nn

import chronograd as cg
from oracle import Deep, Opaque, squared

__all__ = ["EDGES", "GATES", "MODELS", "RESET", "B", "Read", "T", "X", "Y", "build", "gradient"]

T, B = 11, 3
torch.manual_seed(0)
X, Y = torch.randn(T, B, 2, dtype=torch.float64), torch.randn(T, B, 2, dtype=torch.float64)
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[4, 0] = RESET[8, 1] = RESET[4, 2] = True
EDGES = {
    "plain": {},
    "reset": {"reset": RESET},
    "all": {"reset": RESET, "lengths": torch.tensor([T, 9, 6]), "weights": torch.rand(T, B, dtype=torch.float64)},
}
GATES = [cg.Full(), cg.Chunks(4), cg.Window(5, 2), cg.RandomTruncation(3), cg.RandomTruncation(3, tail="polynomial")]


class Read(nn.Module):
    """A layer, and a readout of the real parts of its states."""

    def __init__(self, layer, units):
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(units, 2)

    def forward(self, x, state=None):
        states, state = self.layer(x, state)
        return self.readout(states.real if states.is_complex() else states), state


class Begun(nn.Module):
    """A cell whose initial state is learned."""

    def __init__(self):
        super().__init__()
        self.cell, self.begin = nn.GRUCell(2, 2), nn.Parameter(torch.randn(2))

    def forward(self, x, state):
        return self.cell(x, self.begin.expand(len(x), 2) if state is None else state)


class Branching(nn.Module):
    """A cell that ``torch.func`` cannot follow: it looks at its numbers, and writes in place."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 2)

    def forward(self, x, state):
        state = x.new_zeros(len(x), 2) if state is None else state
        after = self.cell(x, state)
        scale = torch.empty_like(after)
        for row in range(len(x)):
            scale[row] = 2.0 if float(x[row].detach().sum()) > 0 else 0.5
        return after * scale


class Glance(nn.Module):
    """Outputs look at h_{t-1} and at a parameter that the recurrence uses too."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 2)

    def forward(self, x, state=None):
        state = x.new_zeros(x.shape[1], 2) if state is None else state
        outputs = []
        for step in x:
            after = self.cell(step, state)
            outputs.append(after * state @ self.cell.weight_ih)
            state = after
        return torch.stack(outputs), state


class Embedded(nn.Module):
    """Parameters before the recurrence, in it, and shared with the readout."""

    def __init__(self):
        super().__init__()
        self.code, self.layer = nn.Linear(2, 2), cg.RNN(2, 2)

    def forward(self, x, state=None):
        states, state = self.layer(self.code(x), state)
        return states @ self.code.weight, state


MODELS = {
    "tanh": lambda: Read(cg.RNN(2, 4), 4),
    "relu": lambda: Read(cg.RNN(2, 4, nonlinearity="relu", bias=False), 4),
    "gru": lambda: Read(cg.GRU(2, 3, num_layers=2), 3),
    "lstm": lambda: Read(cg.LSTM(2, 3, num_layers=2), 3),
    "torch": lambda: Read(nn.LSTM(2, 3), 3),
    "linear": lambda: Read(cg.LinearRNN(2, 4, bias=True), 4),
    "diagonal": lambda: Read(cg.DiagonalRNN(2, 4, bias=True), 4),
    "complex": lambda: Read(cg.DiagonalRNN(2, 4, complex=True), 4),
    "deep": lambda: Deep(cg.LSTM(3, 3), nn.GRU(3, 3)),
    "opaque": Opaque,
    "begun": lambda: cg.Recurrent(Begun()),
    "branching": lambda: cg.Recurrent(Branching()),
    "glance": Glance,
    "embedded": Embedded,
}


def build(name):
    torch.manual_seed(1)
    model = MODELS[name]()
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                wide = torch.complex128 if value.is_complex() else torch.float64
                module._parameters[key] = nn.Parameter(value.detach().to(wide))
    return model


def gradient(model, mode, x=X, y=Y, carry=None, **options):
    options = {"truncation": cg.Full(), **options}
    return cg.value_and_grad(model, squared, x, y, carry, mode=mode, **options)
