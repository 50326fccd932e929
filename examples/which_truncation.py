"""Ask which truncation to use, on your own model and data: a table, one recommended line, and a figure.

python examples/which_truncation.py [FIGURE.svg]
"""

import sys

import torch

import chronograd as cg

torch.manual_seed(0)
model = cg.Recurrent(torch.nn.GRUCell(2, 32), torch.nn.Linear(32, 1))
inputs = torch.randn(60, 8, 2)
targets = inputs[..., :1].roll(5, 0)  # what came in five steps ago


def loss_fn(outputs, targets):
    return (outputs - targets).square().mean(-1)


result = cg.compare(model, loss_fn, inputs, targets, ["chunks:5", "chunks:20", "window:5,20", "random:20"], draws=8)
print(result.table())
print(result.recommendation)
if len(sys.argv) > 1:
    result.plot().savefig(sys.argv[1])
