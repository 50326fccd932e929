"""Train on a stream with the detach loop, and with ``value_and_grad``: the same losses, step by step.

python examples/detach_loop.py
"""

import torch
from torch import nn

import chronograd as cg

K, STEPS, ROWS = 20, 400, 8


class Model(nn.Module):
    """An LSTM and a readout, as one would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32)
        self.readout = nn.Linear(32, 1)

    def forward(self, inputs, state=None):
        outputs, state = self.lstm(inputs, state)
        return self.readout(outputs), state


def loss_fn(outputs, targets):
    """One loss for each step and row, (T, B)."""
    return (outputs - targets).square().mean(-1)


def start():
    torch.manual_seed(0)
    model = Model()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


time = torch.arange(STEPS + 1.0).view(-1, 1, 1)
wave = torch.sin(0.2 * time + torch.arange(ROWS).view(1, -1, 1))
inputs, targets = wave[:-1], wave[1:]

# By hand.
model, optimizer = start()
state, by_hand = None, []
for x, y in zip(inputs.split(K), targets.split(K)):
    if state is not None:
        state = tuple(part.detach() for part in state)
    outputs, state = model(x, state)
    loss = loss_fn(outputs, y).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    by_hand.append(loss.item())

# By chronograd.
model, optimizer = start()
carry, ours = None, []
for x, y in zip(inputs.split(K), targets.split(K)):
    gradient, carry = cg.value_and_grad(model, loss_fn, x, y, carry, truncation=cg.Chunks(K))
    gradient.assign(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    ours.append(gradient.loss.item())

difference = max(abs(a - b) for a, b in zip(by_hand, ours))
print(f"loss from {ours[0]:.3f} to {ours[-1]:.3f} in {len(ours)} updates; largest difference {difference:.0e}")
assert difference < 1e-5
