"""Newton where a state shrinks to nothing on its way through time and grows again: small changes are not the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from oracle import assert_close, squared

STEPS = 200


class Ring(nn.Module):
    """h' = a_t R h + b_t e_0 with R one turn of a ring, whose diagonal is zero: an iteration of quasi moves what the
    states hold by one step. ``beside`` puts a number next to it that counts steps.
    """

    def __init__(self, beside: bool = False):
        super().__init__()
        self.turn, self.beside = nn.Parameter(torch.eye(4).roll(1, 0)), beside

    def forward(self, x, state):
        h, count = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 1)) if state is None else state.split([4, 1], -1)
        h = x[:, :1] * (h @ self.turn.mT) + x[:, 1:] * torch.eye(4, dtype=x.dtype)[0]
        return torch.cat((h, count + self.beside), -1)


def course(*stretches):
    """Inputs (a_t, b_t) with an impulse at the first step; ``stretches`` are (factor, steps)."""
    a = torch.cat([torch.full((steps,), factor) for factor, steps in stretches])
    return torch.stack((a, torch.zeros_like(a).index_fill(0, torch.tensor(0), 1.0)), -1).unsqueeze(1).double()


def by_hand(model, x, weights):
    """Loss and gradient by a loop of single steps and autograd."""
    state, losses = None, []
    for step in x:
        state = model.cell(step, state)
        losses.append(state[:, :4].square().sum(-1))
    loss = (torch.stack(losses) * weights).sum() / weights.sum()
    return loss.detach(), torch.autograd.grad(loss, model.cell.turn)[0]


def of_ring(outputs, targets):
    return outputs[..., :4].square().sum(-1)


# Down to 1e-18 and up again; down to 1e-14 in seven steps.
COURSES = [((0.5, 60), (2.0, 60), (0.99, 80)), ((0.01, 7), (100.0, 7), (0.99, 186))]


@pytest.mark.parametrize("forward", ["newton", "quasi"])
@pytest.mark.parametrize("stretches", COURSES)
@pytest.mark.parametrize("beside", [False, True])
def test_an_impulse_comes_through(forward, stretches, beside):
    model, x = cg.Recurrent(Ring(beside)).double(), course(*stretches)
    weights = torch.ones(STEPS, 1).double()
    loss, grad = by_hand(model, x, weights)
    ours, _ = cg.value_and_grad(model, of_ring, x, x, mode=cg.Scan(forward, iterations=400))
    assert loss > 0.1
    assert_close(ours.loss, loss)
    assert_close(ours.grads["cell.turn"] / grad.abs().max(), grad / grad.abs().max(), 1e-9)


@pytest.mark.parametrize("stretches", COURSES)
def test_a_cotangent_comes_through(stretches):
    """One loss at the end: what flows back shrinks first, and grows again on its way to the impulse."""
    model, x = cg.Recurrent(Ring()).double(), course(*reversed(stretches))
    weights = torch.zeros(STEPS, 1).double()
    weights[-1] = 1
    loss, grad = by_hand(model, x, weights)
    ours, _ = cg.value_and_grad(model, of_ring, x, x, weights=weights, mode=cg.Scan("quasi", iterations=400))
    assert_close(ours.loss, loss)
    assert_close(ours.grads["cell.turn"] / grad.abs().max(), grad / grad.abs().max(), 1e-9)


def test_too_few_iterations_say_where_it_still_travels():
    model, x = cg.Recurrent(Ring()).double(), course(*COURSES[0])
    with pytest.raises(ValueError, match=r"what came before step 5\d is still on its way through it after 5\d iter"):
        cg.value_and_grad(model, of_ring, x, x, mode=cg.Scan("quasi", iterations=55))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [cg.RNN, cg.GRU, cg.LSTM])
def test_a_loss_at_the_end_takes_no_more_iterations_than_losses_everywhere(build, dtype):
    """The cotangents fade away over hundreds of steps, and have arrived once they are nothing beside the largest."""
    torch.manual_seed(0)
    model, x = build(3, 8).to(dtype), torch.randn(400, 2, 3, dtype=dtype)
    last = torch.zeros(400, 2)
    last[-1] = 1
    everywhere, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x[..., :1]), mode=cg.Scan("quasi"))
    end, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x[..., :1]), mode=cg.Scan("quasi"), weights=last)
    assert end.how[1].iterations <= everywhere.how[1].iterations + 3


@pytest.mark.parametrize("forward", ["newton", "quasi"])
def test_rounding_at_the_kink_of_relu_is_no_reason_to_go_on(forward):
    """Numbers beside zero are on and off with the last digit of the others: they never come to rest."""
    torch.manual_seed(0)
    model, x = cg.RNN(8, 16, nonlinearity="relu"), torch.randn(400, 3, 8)
    x[1:] = 0
    ours, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x[..., :1]), mode=cg.Scan(forward, iterations=40))
    theirs, _ = cg.value_and_grad(model, squared, x, torch.zeros_like(x[..., :1]))
    for name, grad in theirs.grads.items():
        assert_close(ours.grads[name], grad, 1e-4)
