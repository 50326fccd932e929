"""Windows as rows of a batch against one backward pass for each window."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from detach_loop import Model, difference, loss_fn
from timing import interleaved, markdown
from torch import Tensor, nn

import chronograd as cg

STEPS, ROWS, FEATURES, UNITS = 140, 16, 64, 128
CASES = ((2, 20), (10, 50))


def window_by_window(model: Model, inputs: Tensor, k1: int, k2: int) -> dict[str, Tensor]:
    """The careful loop by hand: the state before every window is kept, and each window runs from it by itself."""
    model.zero_grad()
    steps, states = len(inputs), {0: None}
    starts = [max(0, end - k2) for end in range(k1, steps + k1, k1)]
    state = None
    with torch.no_grad():
        for begin, end in zip(ordered := sorted({*starts, 0}), [*ordered[1:], None]):
            states[begin] = state
            if end is not None:
                _, state = model(inputs[begin:end], state)
    for block, start in enumerate(starts):
        first, last = block * k1, min(steps, (block + 1) * k1)
        outputs, _ = model(inputs[start:last], states[start])
        (loss_fn(outputs[first - start :], inputs[first:last]).sum() / (steps * inputs.shape[1])).backward()
    return {name: value.grad for name, value in model.named_parameters()}


def as_rows(model: Model, inputs: Tensor, k1: int, k2: int) -> dict[str, Tensor]:
    """The same by ``value_and_grad``."""
    gradient, _ = cg.value_and_grad(model, loss_fn, inputs, inputs, truncation=cg.Window(k1, k2))
    return gradient.grads


def report(rounds: int) -> str:
    """The section of the page."""
    torch.manual_seed(0)
    inputs = torch.randn(STEPS, ROWS, FEATURES)
    rows = []
    for name, layer in (("torch.nn.LSTM", nn.LSTM), ("cg.GRU", cg.GRU)):
        for k1, k2 in CASES:
            model = Model(layer(FEATURES, UNITS), UNITS)
            error = difference([as_rows(model, inputs, k1, k2)], [window_by_window(model, inputs, k1, k2)])
            timed = interleaved(
                {
                    "loop": partial(window_by_window, model, inputs, k1, k2),
                    "rows": partial(as_rows, model, inputs, k1, k2),
                },
                rounds,
            )
            loop, mine = median(timed["loop"]), median(timed["rows"])
            rows.append(
                (
                    name,
                    f"{k1}, {k2}",
                    f"{loop:.3f}",
                    f"{mine:.3f}",
                    f"{mine / loop:.2f}",
                    f"{error:.0e}" if error else "0",
                )
            )
    return (
        "## Windows\n\n"
        f"`Window(k1, k2)` on {STEPS} steps, {ROWS} rows, {FEATURES} features, {UNITS} units, float32, against a loop "
        "that runs each window by itself from its stored state.\n\n"
        + markdown(("layer", "k1, k2", "window by window, s", "as rows, s", "ratio", "gradient difference"), rows)
    )
