"""The laws of a model, each tested by running it: what breaks, where first, by how much, and what helps.

A law is a function of a ``Trial`` that yields the problems it finds. All run without training randomness (see
``check``), so two runs may differ by rounding only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .states import leaves, tree_map

__all__ = ["Problem", "Trial", "carried", "causal", "masks", "pieces", "repeats", "rows", "shapes"]

Tree = Any

_TOLERANCE = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-4, torch.complex64: 1e-4}


@dataclass(frozen=True)
class Problem:
    """A law that a model breaks: ``step`` and ``row`` of the first difference and its ``size``, where known."""

    law: str
    what: str
    remedy: str
    step: int | None = None
    row: int | None = None
    size: float | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        parts = [f"{name} {value}" for name, value in (("step", self.step), ("row", self.row)) if value is not None]
        return ", ".join([*parts, *([] if self.size is None else [f"off by {self.size:.2g}"])])


@dataclass(frozen=True)
class Trial:
    """A model, what it is called with, and what it answered: outputs (T, B, ...) and the final state."""

    call: nn.Module
    inputs: Tree
    state: Tree
    outputs: Tree
    final: Tree

    @property
    def size(self) -> tuple[int, int]:
        """Steps T and rows B."""
        first = leaves(self.inputs)[0]
        return first.shape[0], first.shape[1]

    def part(self, begin: int, end: int) -> Tree:
        return tree_map(lambda x: x[begin:end], self.inputs)


def other_values(x: Tensor, seed: int = 0) -> Tensor:
    """Another tensor of the same shape: moved, or for integers (tokens) the same values elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    if x.is_floating_point() or x.is_complex():
        return x + torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
    order = torch.randperm(x.shape[0] * x.shape[1], generator=generator).to(x.device)
    return x.flatten(0, 1)[order].unflatten(0, x.shape[:2])


def difference(found: Tree, expected: Tree) -> tuple[int, int, float] | None:
    """Step, row and size of the first difference beyond rounding of two trees of (T, B, ...) tensors."""
    first = None
    for a, b in zip(leaves(found), leaves(expected)):
        if a.shape != b.shape:
            return 0, 0, float("inf")
        apart = (a - b).abs() if b.is_floating_point() or b.is_complex() else (a != b).double()
        apart = torch.where(a.isnan() & b.isnan(), 0, apart).nan_to_num(nan=float("inf"))
        scale = float(b.abs().nan_to_num(posinf=0).max()) if b.numel() else 0.0
        wrong = apart.flatten(2).amax(-1) if apart.dim() > 2 else apart
        real = b.is_floating_point() or b.is_complex()
        at = (wrong > (_TOLERANCE.get(b.dtype, 0.02) * max(scale, 1e-3) if real else 0)).nonzero()
        if len(at) and (first is None or int(at[0, 0]) < first[0]):
            step, row = at[0].tolist()
            first = (step, row, float(wrong[step, row]))
    return first


def shapes(trial: Trial) -> Iterator[Problem]:
    """Outputs are (T, B, ...)."""
    steps, rows = trial.size
    for leaf in leaves(trial.outputs):
        if tuple(leaf.shape[:2]) != (steps, rows):
            turned = "; these are batch first: transpose them" if leaf.shape[:2] == (rows, steps) else ""
            yield Problem(
                "shape",
                f"outputs have shape {tuple(leaf.shape)} for inputs of {steps} steps and {rows} rows",
                f"return one output for each step and row, (T, B, ...) = ({steps}, {rows}, ...){turned}",
            )
    if not leaves(trial.outputs):
        yield Problem("shape", "there is no tensor in the outputs", "return (outputs, state), outputs (T, B, ...)")


def repeats(trial: Trial) -> Iterator[Problem]:
    """The same call gives the same outputs: nothing is kept inside the model."""
    found = difference(trial.call(trial.inputs, trial.state)[0], trial.outputs)
    if found:
        yield Problem(
            "repeats",
            "the same call gives other outputs the second time",
            "keep what changes in the state that the model returns, not in the module; "
            "draw no random numbers in evaluation mode",
            *found,
        )


def causal(trial: Trial) -> Iterator[Problem]:
    """Changing later inputs leaves earlier outputs."""
    steps, _ = trial.size
    for at in sorted({1, steps // 2, steps - 1} - {0, steps}):
        changed = tree_map(lambda x, at=at: torch.cat([x[:at], other_values(x)[at:]]), trial.inputs)
        outputs = trial.call(changed, trial.state)[0]
        found = difference(tree_map(lambda y, at=at: y[:at], outputs), tree_map(lambda y, at=at: y[:at], trial.outputs))
        if found:
            yield Problem(
                "causal",
                f"outputs before step {at} change with the inputs from step {at} on",
                "look at the past only (no bidirectional layer, no attention or mean over all steps); "
                "else only Full() within one call has a meaning",
                *found,
            )
            return


def rows(trial: Trial) -> Iterator[Problem]:
    """Changing other rows, or adding some, leaves a row."""
    _, count = trial.size
    for row in sorted({0, count - 1}):
        inputs, state = trial.inputs, trial.state
        if count == 1 and state is None:
            inputs = tree_map(lambda x: torch.cat([x, other_values(x, 1)], 1), inputs)
        else:
            at = torch.arange(count) == row

            def change(x: Tensor, at: Tensor = at) -> Tensor:
                return torch.where(at.to(x.device).reshape(1, -1, *[1] * (x.dim() - 2)), x, other_values(x, 1))

            inputs = tree_map(change, inputs)
        outputs = trial.call(inputs, state)[0]
        found = difference(
            tree_map(lambda y, row=row: y[:, row : row + 1], outputs),
            tree_map(lambda y, row=row: y[:, row : row + 1], trial.outputs),
        )
        if found:
            yield Problem(
                "rows",
                f"the outputs of row {row} change with the inputs of other rows",
                statistics(trial.call) or "treat each row of the batch by itself",
                found[0],
                row,
                found[2],
            )
            return


def statistics(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            return f"{name} takes statistics over the batch in training: use LayerNorm, or set it to .eval()"
    return None


def pieces(trial: Trial) -> Iterator[Problem]:
    """Running in pieces, down to single steps, equals running whole."""
    steps, _ = trial.size
    for cuts in ([steps // 2], [1], [steps - 1], list(range(1, steps))):
        bounds = [0, *sorted({cut for cut in cuts if 0 < cut < steps}), steps]
        state, outputs = trial.state, []
        for begin, end in zip(bounds[:-1], bounds[1:]):
            out, state = trial.call(trial.part(begin, end), state)
            outputs.append(out)
        found = difference(tree_map(lambda *parts: torch.cat(parts), *outputs), trial.outputs)
        cut = f"in pieces cut before steps {bounds[1:-1]}" if len(bounds) < steps + 1 else "in single steps"
        if found:
            yield Problem(
                "pieces",
                f"run {cut}, the outputs are not those of one run",
                "return in the state all that the next step needs, and use it when it comes back",
                *found,
            )
            return
        for number, (a, b) in enumerate(zip(leaves(state), leaves(trial.final))):
            if a.shape == b.shape and (apart := difference(a[None, None], b[None, None])):
                yield Problem(
                    "pieces",
                    f"run {cut}, state tensor {number} ends elsewhere than in one run",
                    "return the state after the last step",
                    size=apart[2],
                )
                return


def carried(trial: Trial) -> Iterator[Problem]:
    """The state that comes back reaches the next outputs, in value and in gradient."""
    steps, _ = trial.size
    _, before = trial.call(trial.part(0, 1), trial.state)
    float_leaves = [h for h in leaves(before) if h.is_floating_point() or h.is_complex()]
    if not float_leaves:
        return
    rest = trial.part(1, steps) if steps > 1 else trial.inputs
    moved = tree_map(lambda h: h + 1 if h.is_floating_point() or h.is_complex() else h, before)
    if not difference(trial.call(rest, moved)[0], trial.call(rest, before)[0]):
        yield Problem(
            "carried",
            "another state gives the same outputs: what the model is given back is not used",
            "go on from the state that is passed in",
        )
        return

    def leaf(x: Tensor) -> Tensor:
        return x.detach().clone().requires_grad_(x.is_floating_point() or x.is_complex())

    # cuDNN has no way back in evaluation mode, in which models that draw random numbers are tested.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        entering = tree_map(leaf, before)
        outputs, after = trial.call(tree_map(leaf, rest), entering)
        made = [y.abs().sum() for y in leaves(outputs) if y.requires_grad]
    wrt = [h for h in leaves(entering) if h.requires_grad]
    reached = torch.autograd.grad(made, wrt, allow_unused=True) if made else [None]
    if all(grad is None for grad in reached):
        yield _detached("the state is detached where it comes in")
    elif not any(h.requires_grad for h in leaves(after)):
        yield _detached("the state is detached before it is returned")


def _detached(what: str) -> Problem:
    return Problem(
        "carried",
        f"{what}, so no gradient flows over the edge between two calls",
        "remove the detach: chronograd cuts where the truncation says",
    )


def masks(call: Callable[[Tree, Tree], Any], inputs: Tree, state: Tree) -> Iterator[Problem]:
    """No random numbers are drawn once for a whole call (one dropout mask for all steps)."""
    steps = leaves(inputs)[0].shape[0]
    if steps < 2:
        return
    draws = []
    for last in (steps, steps - 1):
        with _Draws() as seen:
            call(tree_map(lambda x, last=last: x[:last], inputs), state)
        draws.append(seen.count)
    # What is drawn for each step is drawn more often, or in a larger tensor, over more steps.
    once = [key for key, times in draws[0].items() if draws[1].get(key) == times]
    for name, shape in once[:1]:
        yield Problem(
            "one mask",
            f"{name} draws a tensor of shape {shape} once for a whole call, however many steps it has",
            "draw anew for each step, or keep the mask in the state; else only Full() within one call has a meaning",
        )


class _Draws(TorchDispatchMode):
    """Count the random draws by operation and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and leaves(out):
            self.count[func._overloadpacket.__name__, tuple(leaves(out)[0].shape)] += 1
        return out
