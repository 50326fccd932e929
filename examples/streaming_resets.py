"""Sequences of different lengths packed into endless rows: each starts anew inside a row, wherever that falls.

Rows hold one random sequence after the other; the target at every step is the sum of the current sequence so far, so a
model that does not reset cannot know it. Calls of 25 steps cut sequences anywhere, and the gradient does not notice.

    python examples/streaming_resets.py
"""

import warnings

import torch

import chronograd as cg

STEPS, ROWS, CALL = 500, 4, 25
torch.manual_seed(0)

starts = torch.rand(STEPS, ROWS) < 0.1
starts[0] = True
inputs = torch.randn(STEPS, ROWS, 1)
targets = torch.zeros_like(inputs)
for t in range(STEPS):
    before = torch.where(starts[t].unsqueeze(-1), 0.0, targets[t - 1]) if t else 0.0
    targets[t] = before + inputs[t]

model = cg.Recurrent(torch.nn.GRUCell(1, 24), torch.nn.Linear(24, 1))


def loss_fn(outputs, targets):
    return (outputs - targets).square().mean(-1)


def gradient_of(steps_in_a_call):
    """The stream's gradient, added up over its calls."""
    carry, total = None, None
    for x, y, new in zip(*(tensor.split(steps_in_a_call) for tensor in (inputs, targets, starts))):
        gradient, carry = cg.value_and_grad(model, loss_fn, x, y, carry, truncation=cg.Full(), reset=new)
        total = gradient if total is None else total + gradient
    return total


with warnings.catch_warnings():
    # Full() over several calls warns that it keeps history; here the resets bound it.
    warnings.simplefilter("ignore", UserWarning)
    pieces = gradient_of(CALL)
whole = gradient_of(STEPS)
error = max(float((pieces.grads[name] - whole.grads[name]).abs().max()) for name in whole.grads)
print(f"{STEPS // CALL} calls against one: loss {pieces.loss:.4f} and {whole.loss:.4f}, gradients {error:.0e} apart")
assert error < 1e-4

optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
losses = []
for _epoch in range(2):
    carry = None
    for x, y, new in zip(*(tensor.split(CALL) for tensor in (inputs, targets, starts))):
        gradient, carry = cg.value_and_grad(model, loss_fn, x, y, carry, truncation=cg.Chunks(CALL), reset=new)
        gradient.assign(model)
        optimizer.step()
        losses.append(float(gradient.loss))
print(f"trained: mean loss of an epoch {sum(losses[:20]) / 20:.3f}, then {sum(losses[-20:]) / 20:.3f}")
assert sum(losses[-20:]) < sum(losses[:20])
