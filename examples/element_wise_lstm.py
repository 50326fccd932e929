"""The element-wise LSTM with an output gate in its readout, on the adding problem.

The gate decides what of a state is read and feeds nothing back, so it sees all steps at once, after the recurrence; the
recurrence alone is what a gradient through time walks over. Its Jacobian is diagonal: ``cg.Scan`` gives the same
gradient by scans of one number for each unit.

    python examples/element_wise_lstm.py
"""

import torch

import chronograd as cg
from chronograd.data.tasks import adding_problem

STEPS, ROWS, UNITS = 20, 64, 32


class Gated(torch.nn.Module):
    """h_t = sigmoid(W_o x_t + U_o c_t + b_o) * c_t, read by a linear map; the state of the model is c alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = cg.ELSTM(2, UNITS)
        self.gate = torch.nn.Linear(2 + UNITS, UNITS)
        self.readout = torch.nn.Linear(UNITS, 1)

    def forward(self, inputs, state=None):
        c, state = self.layer(inputs, state)
        h = torch.sigmoid(self.gate(torch.cat((inputs, c), -1))) * c
        return self.readout(h).squeeze(-1), state


def loss_fn(outputs, targets):
    return (outputs - targets).square()


torch.manual_seed(0)
model = Gated()
task = adding_problem(STEPS, ROWS, seed=0)
found = {}
for mode in (cg.Reverse(), cg.Scan()):
    found[mode], _ = cg.value_and_grad(model, loss_fn, task.inputs, task.targets, weights=task.weights, mode=mode)
walked, scanned = found.values()
apart = max(float((walked.grads[name] - scanned.grads[name]).abs().max()) for name in walked.grads)
print(f"the walk back and the scan: gradients {apart:.0e} apart; {scanned.how[0]}")
assert apart < 1e-5

optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
losses = []
for step in range(200):
    task = adding_problem(STEPS, ROWS, seed=step)
    gradient, _ = cg.value_and_grad(model, loss_fn, task.inputs, task.targets, weights=task.weights)
    gradient.assign(model)
    optimizer.step()
    losses.append(float(gradient.loss))
last = sum(losses[-20:]) / 20
print(f"the sum of two marked numbers of {STEPS}: squared error {last:.4f}; answering 1 always has {task.baseline:.4f}")
assert last < task.baseline / 3
