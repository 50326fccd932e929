"""The layout of a model's state that is known without a run."""

import pytest
import torch

import chronograd as cg
from chronograd.recurrence.layout import own_layout, read_layout

LAYERS = [cg.RNN, cg.GRU, cg.LSTM, cg.LinearRNN, cg.DiagonalRNN, cg.ELSTM]


@pytest.mark.parametrize("build", LAYERS, ids=lambda b: b.__name__)
def test_the_layout_that_is_known_is_the_one_that_a_run_shows(build):
    model = build(2, 3)
    found = read_layout(model, torch.randn(2, 2, 2))
    known = own_layout(model)
    assert found is not None and known is not None
    assert (known.places, known.origins, known.dims.dims) == (found.places, found.origins, found.dims.dims)
    model.register_forward_hook(lambda module, inputs, outputs: outputs)
    assert own_layout(model) is None
