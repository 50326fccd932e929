"""One thread, a small text, a torch.nn twin of the character model, and a plain loss to hold ours against."""

import random

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path) -> str:
    """The path of a text of 900 characters with some order in it."""
    words = random.Random(0).choices(
        ["time", "traveller", "so it", "will be", "convenient,", "grey eyes", "shone."], k=200
    )
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(words)[:900], encoding="utf-8")
    return str(path)


class Twin(nn.Module):
    """The same parameters under the same names, run by torch.nn alone."""

    def __init__(self, model):
        super().__init__()
        kinds = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
        ours = model.layer
        self.layer = kinds[type(ours).__name__](ours.input_size, ours.hidden_size, ours.num_layers)
        self.readout = nn.Linear(ours.hidden_size, model.vocabulary_size)
        self.to(model.readout.weight.dtype)
        self.load_state_dict(model.state_dict())

    def forward(self, tokens, state):
        one_hot = torch.eye(self.layer.input_size, dtype=self.readout.weight.dtype)[tokens]
        hidden, state = self.layer(one_hot, state)
        return self.readout(hidden), state


@pytest.fixture
def make_twin():
    return Twin


@pytest.fixture
def nats():
    """-log softmax(logits)[target], from its definition."""

    def loss(logits, targets):
        return torch.logsumexp(logits, -1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    return loss
