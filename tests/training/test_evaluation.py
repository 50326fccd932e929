"""Validation against a plain loop over torch.nn, row by row, and the character model against its twin."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from chronograd.data.streams import ChunkStream
from chronograd.training.evaluation import Evaluation, evaluate
from chronograd.training.losses import cross_entropy, squared_error
from chronograd.training.model import CharModel


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("tail", ["short", "pad"])
def test_the_loss_is_that_of_every_row_read_in_one_piece(cell, tail, make_twin, nats):
    model = CharModel(6, cell, hidden=5).double()
    twin = make_twin(model)
    tokens = torch.randint(0, 6, (3 * 17 + 3,))
    stream = ChunkStream(tokens, 3, 5, tail=tail)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(3):
            text = tokens[stream.row_start(row) : stream.row_start(row) + stream.row_length(row) + 1]
            logits, _ = twin(text[:-1].unsqueeze(1), None)
            total += nats(logits, text[1:].unsqueeze(1)).sum().item()
            count += len(text) - 1
    quality = evaluate(model, stream)
    assert quality.tokens == count == len(tokens) - 1
    assert quality.loss == pytest.approx(total / count, rel=1e-12)
    assert quality.perplexity == pytest.approx(math.exp(total / count), rel=1e-12)
    assert 2**quality.bits == pytest.approx(quality.perplexity, rel=1e-12)


def test_a_state_not_carried_is_another_number():
    model = CharModel(6, "gru", hidden=5).double()
    tokens = torch.randint(0, 6, (100,))
    carried = evaluate(model, ChunkStream(tokens, 3, 5))
    start = torch.ones(1, 3, dtype=torch.bool)
    forgot = [replace(chunk, reset=start) for chunk in ChunkStream(tokens, 3, 5)]
    assert evaluate(model, forgot).loss != carried.loss


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    model = CharModel(8, "gru", hidden=4)
    nn.init.zeros_(model.readout.weight)
    nn.init.zeros_(model.readout.bias)
    quality = evaluate(model, ChunkStream(torch.arange(80) % 8, 2, 7))
    assert quality.bits == pytest.approx(3) and quality.perplexity == pytest.approx(8)
    assert quality.to_dict() == {
        "loss": quality.loss,
        "tokens": 79,
        "bits": quality.bits,
        "perplexity": quality.perplexity,
    }


def test_a_huge_loss_has_infinite_perplexity():
    assert Evaluation(loss=1e4, tokens=1).perplexity == math.inf


class Dropping(CharModel):
    def forward(self, inputs, state=None):
        logits, state = super().forward(inputs, state)
        return nn.functional.dropout(logits, 0.5, self.training), state


def test_the_model_is_evaluated_without_dropout_and_left_as_it_was():
    model = Dropping(5, "rnn", hidden=4)
    tokens = torch.randint(0, 5, (60,))
    assert evaluate(model, ChunkStream(tokens, 2, 7)).loss == evaluate(model, ChunkStream(tokens, 2, 7)).loss
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="the stream is empty"):
        evaluate(model.train(), [])
    assert model.training
    evaluate(model.eval(), ChunkStream(tokens, 2, 7))
    assert not model.training


def test_streams_it_would_read_wrongly_are_refused():
    model = CharModel(5, "rnn", hidden=4)
    first = next(ChunkStream(torch.arange(60) % 5, 2, 7))
    later = torch.zeros(7, 2, dtype=torch.bool)
    later[3] = True
    some = torch.zeros(7, 2, dtype=torch.bool)
    some[0, 1] = True
    for reset in (later, some):
        with pytest.raises(ValueError, match="rows start anew at different steps"):
            evaluate(model, [replace(first, reset=reset)])
    short = replace(first, lengths=torch.tensor([7, 3]))
    evaluate(model, [short, first])  # which starts anew
    with pytest.raises(ValueError, match="a row goes on after its end"):
        evaluate(model, [short, replace(first, reset=None)])


def test_cross_entropy_is_its_definition(nats):
    logits = torch.randn(4, 3, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (4, 3))
    torch.testing.assert_close(cross_entropy(logits, targets), nats(logits, targets))


def test_squared_error_is_its_definition_and_refuses_broadcasting():
    outputs, targets = torch.randn(4, 3, 1), torch.randn(4, 3)
    expected = torch.tensor([[(float(o) - float(y)) ** 2 for o, y in zip(*rows)] for rows in zip(outputs, targets)])
    torch.testing.assert_close(squared_error(outputs, targets), expected)
    torch.testing.assert_close(squared_error(outputs.squeeze(-1), targets), expected)
    with pytest.raises(ValueError, match=r"outputs \(4, 3, 2\) and targets \(4, 3\) differ in shape"):
        squared_error(torch.randn(4, 3, 2), targets)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_model_is_its_torch_twin(cell, make_twin):
    model = CharModel(6, cell, hidden=5, layers=2).double()
    tokens = torch.randint(0, 6, (9, 3))
    ours, _ = model(tokens)
    theirs, _ = make_twin(model)(tokens, None)
    torch.testing.assert_close(ours, theirs)


def test_an_embedding_replaces_the_one_hot_input():
    model = CharModel(6, "gru", hidden=5, embedding=3)
    same = CharModel(6, "gru", hidden=5)
    same.readout = model.readout
    same.layer.load_state_dict(
        {**model.layer.state_dict(), "weight_ih_l0": model.layer.weight_ih_l0 @ model.embedding.weight.T}
    )
    tokens = torch.randint(0, 6, (9, 3))
    torch.testing.assert_close(model(tokens)[0], same(tokens)[0])
    with pytest.raises(ValueError, match="cell must be one of 'rnn', 'gru', 'lstm', not 'tcn'"):
        CharModel(6, "tcn")
