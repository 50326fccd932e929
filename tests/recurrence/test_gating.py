"""Gates deep inside a user's model give exactly the gradients of a loop with detach, whatever layer is inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.kernels import Edges
from chronograd.recurrence.adapters import adapt
from chronograd.recurrence.gating import GatedForward

LAYERS = {
    "nn.RNN": lambda: nn.RNN(4, 5, 2),
    "nn.RNN relu": lambda: nn.RNN(4, 5, nonlinearity="relu"),
    "nn.GRU": lambda: nn.GRU(4, 5, 2, bias=False),
    "nn.LSTM": lambda: nn.LSTM(4, 5, 2),
    "nn.GRU batch_first": lambda: nn.GRU(4, 5, batch_first=True),
    "cg.GRU": lambda: cg.GRU(4, 5, 2),
    "cg.LSTM": lambda: cg.LSTM(4, 5),
    "cg.ELSTM": lambda: cg.ELSTM(4, 5),
    "nn.LSTMCell": lambda: cg.Recurrent(nn.LSTMCell(4, 5)),
}


class Deep(nn.Module):
    """Embedding, normalization, a recurrent layer, a readout of two layers; the state a dict of what the layer has."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.layers = nn.ModuleDict({"inner": nn.ModuleList([layer])})
        self.readout = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, tokens, state=None):
        x = self.norm(self.embed(tokens))
        layer = self.layers["inner"][0]
        swap = getattr(layer, "batch_first", False)
        h, new = layer(x.transpose(0, 1) if swap else x, None if state is None else state["memory"])
        return self.readout(h.transpose(0, 1) if swap else h), {"memory": new}


def model_with(name):
    torch.manual_seed(0)
    return Deep(LAYERS[name]()).double(), torch.randint(6, (9, 3))


def gradients(model, outputs):
    loss = (outputs * torch.arange(outputs.numel()).reshape(outputs.shape).sin()).sum()
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


def detach(state):
    return {
        "memory": tuple(h.detach() for h in state["memory"])
        if isinstance(state["memory"], tuple)
        else state["memory"].detach()
    }


@pytest.mark.parametrize("name", LAYERS)
def test_chunks_equal_the_detach_loop(name):
    model, tokens = model_with(name)
    state, pieces = None, []
    for begin in range(0, 9, 4):
        out, state = model(tokens[begin : begin + 4], state)
        state = detach(state)
        pieces.append(out)
    expected = gradients(model, torch.cat(pieces))
    gates = torch.ones(9, 3, dtype=torch.float64)
    gates[[4, 8]] = 0
    recurrence = adapt(model, tokens)
    assert recurrence.kind == "layers"
    outputs, final = recurrence.run(tokens, None, Edges(gates))
    torch.testing.assert_close(outputs, torch.cat(pieces))
    found = gradients(model, outputs)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_cut_at_different_steps_equal_each_row_alone(name):
    model, tokens = model_with(name)
    cuts = {0: [2, 5], 1: [], 2: [7]}
    gates = torch.ones(9, 3, dtype=torch.float64)
    rows = []
    for row, at in cuts.items():
        gates[at, row] = 0
        state, pieces = None, []
        for begin, end in zip([0, *at], [*at, 9]):
            out, state = model(tokens[begin:end, row : row + 1], state)
            state = detach(state)
            pieces.append(out)
        rows.append(torch.cat(pieces))
    expected = gradients(model, torch.cat(rows, 1))
    found = gradients(model, adapt(model, tokens).run(tokens, None, Edges(gates))[0])
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_without_edges_nothing_changes(name):
    model, tokens = model_with(name)
    with GatedForward(Edges()) as seen:
        outputs, final = model(tokens)
    torch.testing.assert_close(outputs, model(tokens)[0])
    (track,) = seen.tracks
    assert track.length == 9 and seen.blocked is None
    kept = final["memory"] if isinstance(final["memory"], tuple) else (final["memory"],)
    for part, tensor in enumerate(kept):
        assert tensor is track.final[part]
        assert torch.equal(track.after(part, 8), tensor)


def test_dropout_draws_the_numbers_of_the_model_itself():
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 4, 3, dropout=0.5).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    gates = torch.full((5, 2), 2.0, dtype=torch.float64)
    recurrence = adapt(layer, x)
    assert recurrence.kind == "layers"
    torch.manual_seed(1)
    plain = layer(x)[0]
    torch.manual_seed(1)
    gated = recurrence.run(x, None, Edges(gates))[0]
    torch.testing.assert_close(gated, plain)


def test_what_cannot_be_caught_is_said():
    x = torch.randn(4, 2, 3)
    for layer in (nn.GRU(3, 4, bidirectional=True), nn.LSTM(3, 4, proj_size=2)):
        with GatedForward(Edges()) as seen:
            layer.double()(x.double())
        assert seen.blocked == "a bidirectional or projected layer inside the model" and not seen.tracks
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]))
    with GatedForward(Edges()) as seen:
        nn.GRU(3, 4)(packed)
    assert seen.blocked == "a packed sequence inside the model"
    with GatedForward(Edges(torch.full((4, 2), 0.5))) as seen:
        nn.GRU(3, 4)(x[:2])
    assert seen.blocked == "a recurrent layer that does not run over all steps"
