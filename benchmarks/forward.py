"""The modes that walk forward: RTRL against ``torch.func.jacrev`` and against its own matrix products, the cheap ones
against a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from read import Read
from timing import interleaved, markdown, medians
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import chronograd as cg

__all__ = ["report"]

UNITS, ROWS, FEATURES = 64, 16, 32
CALLS = (1, 16, 128)
LONG, WIDE = (128, 1024), 256


def energy(outputs: Tensor, targets: None) -> Tensor:
    """A loss that asks for all outputs."""
    return (outputs.abs() if outputs.is_complex() else outputs).square().sum(-1)


class Stream:
    """Calls of some steps, each with the carry of the one before."""

    def __init__(self, model: nn.Module, mode: cg.RTRL | cg.SnAp | cg.RFLO | cg.Reverse, steps: int, rows: int) -> None:
        self.model, self.mode, self.carry = model, mode, None
        self.inputs = torch.randn(steps, rows, FEATURES)

    def call(self) -> None:
        _, self.carry = cg.value_and_grad(self.model, energy, self.inputs, None, self.carry, mode=self.mode)
        if not self.mode.online:
            self.carry = self.carry.cut()


class Naive:
    """One step of RTRL as it is usually written: the Jacobians of a cell by ``jacrev``, mapped over rows, and the
    influence of each weight multiplied by them.
    """

    def __init__(self, layer: nn.RNN) -> None:
        self.cell = nn.RNNCell(FEATURES, UNITS)
        self.weights = {name: getattr(layer, f"{name}_l0").detach() for name in dict(self.cell.named_parameters())}
        self.both = vmap(jacrev(self._step, argnums=(0, 1)), in_dims=(None, 0, 0))
        self.h = torch.zeros(ROWS, UNITS)
        self.influence = {name: torch.zeros(ROWS, UNITS, *w.shape) for name, w in self.weights.items()}
        self.inputs = torch.randn(ROWS, FEATURES)

    def _step(self, weights: dict[str, Tensor], h: Tensor, x: Tensor) -> Tensor:
        return functional_call(self.cell, weights, (x, h))

    def step(self) -> dict[str, Tensor]:
        by_weight, by_state = self.both(self.weights, self.h, self.inputs)
        for name, direct in by_weight.items():
            self.influence[name] = direct + torch.einsum("bij,bj...->bi...", by_state, self.influence[name])
        self.h = self._step(self.weights, self.h, self.inputs)
        return {name: torch.einsum("bi,bi...->...", 2 * self.h, m) for name, m in self.influence.items()}


class Products:
    """The matrix products of RTRL alone, on arrays of its shapes: over a call of T steps, S walks back as B S rows,
    what the weights meet, and the influence from before; and what the losses say of it.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.weight = torch.randn(UNITS, UNITS)
        self.walks = torch.randn(ROWS * UNITS, UNITS)
        self.flows = torch.randn(steps, ROWS, UNITS * UNITS)
        self.met = torch.randn(steps, ROWS, FEATURES + UNITS + 2)
        self.influence = torch.randn(ROWS, UNITS, UNITS * (FEATURES + UNITS + 2))
        self.jacobian, self.signal = torch.randn(ROWS, UNITS, UNITS), torch.randn(1, ROWS * UNITS)

    def call(self) -> None:
        made = torch.bmm(self.jacobian, self.influence)
        self.signal @ self.influence.flatten(0, 1)
        if self.steps == 1:  # a single step's products are J M and q M
            return
        for _ in range(self.steps):
            self.walks @ self.weight
        for row in range(ROWS):
            made[row].view(UNITS * UNITS, -1).addmm_(self.flows[:, row].mT, self.met[:, row])


def _rtrl(rounds: int) -> str:
    torch.manual_seed(0)
    layer = cg.RNN(FEATURES, UNITS)
    streams = {steps: Stream(layer, cg.RTRL(), steps, ROWS) for steps in CALLS}
    products = {steps: Products(steps) for steps in CALLS}
    jobs: dict[str, Callable[[], object]] = {"jacrev": Naive(layer).step}
    jobs |= {f"ours {steps}": stream.call for steps, stream in streams.items()}
    jobs |= {f"products {steps}": job.call for steps, job in products.items()}
    took = medians(interleaved(jobs, rounds, at_least=10.0))
    rows = []
    for steps in CALLS:
        ours, own = took[f"ours {steps}"] / steps, took[f"products {steps}"] / steps
        rows.append([str(steps), f"{1e3 * ours:.2f}", f"{took['jacrev'] / ours:.1f}", f"{ours / own:.2f}"])
    head = ["steps in a call", "ms a step", "jacrev / ours", "ours / its matrix products"]
    return (
        f"`RTRL()` on `cg.RNN` of {UNITS} units, {FEATURES} features, {ROWS} rows, float32, against one step by "
        f"`torch.func.jacrev` and einsum, {1e3 * took['jacrev']:.1f} ms. Calls of many steps take the influence over a "
        "block in as many walks back as there are units; a call of one step has the product of J with all of it to "
        f"make.\n\n{markdown(head, rows)}"
    )


def _cheap(rounds: int) -> str:
    torch.manual_seed(0)
    model, wide = Read(cg.RNN(FEATURES, UNITS), UNITS), Read(cg.DiagonalRNN(FEATURES, WIDE), WIDE)
    cases = [
        ("`SnAp(1)`, RNN", model, UNITS, cg.SnAp(1)),
        ("`RFLO()`, RNN", model, UNITS, cg.RFLO()),
        ("`RTRL()`, DiagonalRNN", wide, WIDE, cg.RTRL()),
        ("`Reverse()`, RNN, for comparison", model, UNITS, cg.Reverse()),
    ]

    def infer(model: Read, x: Tensor) -> None:
        with torch.no_grad():
            model(x)

    def loss_alone(model: Read, outputs: Tensor) -> None:
        losses = energy(model.readout(outputs), None)
        torch.autograd.grad(losses.sum(), [outputs, *model.readout.parameters()])

    rows = []
    for name, model, units, mode in cases:
        for steps in LONG:
            stream = Stream(model, mode, steps, ROWS)
            outputs = model.layer(stream.inputs)[0].detach().requires_grad_()
            jobs = {
                "ours": stream.call,
                "pass": partial(infer, model, stream.inputs),
                "loss": partial(loss_alone, model, outputs),
            }
            took = medians(interleaved(jobs, rounds, at_least=2.0))
            whole, loss = took["ours"] / took["pass"], took["loss"] / took["pass"]
            cells = f"{1e6 * took['ours'] / steps:.1f}", f"{whole:.2f}", f"{loss:.2f}", f"{whole - loss:.2f}"
            rows.append([name, str(units), str(steps), *cells])
    head = ["mode and layer", "units", "steps in a call", "microseconds a step", "ours / forward pass"]
    head += ["readout's and loss's own gradient / forward pass", "difference"]
    return (
        f"The cheap ones on a layer and a readout of one number, whose square is the loss; {ROWS} rows, {FEATURES} "
        "features; against the same model's forward pass without gradients, in our kernels. The readout's and the "
        "loss's own gradient, dl/dh of every step, is what these modes are given; it is timed by itself too. A call "
        f"takes about a millisecond whatever it computes, which short calls show.\n\n{markdown(head, rows)}"
    )


def report(rounds: int, threads: int) -> str:
    """The section of the page."""
    torch.set_num_threads(threads)
    return f"## Forward in time\n\n{_rtrl(rounds)}\n\n{_cheap(rounds)}"
