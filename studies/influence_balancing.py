"""Influence balancing: the nearest steps of the past mislead, so truncated gradients point the wrong way.

Question: which gradient estimators learn where the credit of the last 40 steps has the wrong sign?

Protocol: s' = A s + theta v with 23 units, A[i, i] = A[i, i+1] = 1/2, v = +1 for ten units, -1 for thirteen, s_0 = 1,
loss (s[0] - 1)^2 / 2 at every step. The best theta is -1/6, training begins at 1/2. The model is ``cg.LinearRNN`` with
W_hh = A, fixed, and W_hx = theta v: it moves along v only, dL/dtheta = v . dL/dW_hx. Seeds are rows of one batch: row b
has an input of its own, so the column b of W_hx is its theta, and the library draws for every row by itself. Updates
are SGD on the sum of a call's losses; how many steps a call has is said with every result. "Loss" is the one after 500
steps from s_0 under the final theta.

Known gaps: SGD only, and the rates are those of the papers, not tuned for each method. UORO meets W_hx (23 numbers)
instead of theta (one), which balances its products a little differently. PES is estimated, not trained.

References: Tallec and Ollivier, arXiv:1702.05043 (UORO) and arXiv:1705.08209 (ARTBP), 2017; Vicol et al. 2021 (PES).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from page import Page, publish, table
from torch import Tensor, nn

import chronograd as cg
from chronograd.measure.random_variance import influence_moments
from chronograd.style import COLOURS, FAINT, INK, style

UNITS, BEST = 23, -1 / 6
A = (torch.eye(UNITS) / 2 + torch.diag(torch.ones(UNITS - 1), 1) / 2).double()
V = torch.where(torch.arange(UNITS) < 10, 1.0, -1.0).double()
GONE = 1e4  # a theta beyond it has blown up
ORANGE, BLUE, GREEN, PINK, SKY, RED, _ = COLOURS


def to_one(outputs: Tensor, targets: Any) -> Tensor:
    return 0.5 * (outputs[..., 0] - 1).square()


def first_unit(outputs: Tensor, targets: Any) -> Tensor:
    return outputs[..., 0]


def layer(theta: Tensor) -> cg.LinearRNN:
    """W_hx = theta v, a column for each theta."""
    model = cg.LinearRNN(len(theta), UNITS).double()
    model.weight_hh.requires_grad_(False)
    with torch.no_grad():
        model.weight_hh.copy_(A)
        model.weight_ih.copy_(V.unsqueeze(1) * theta)
    return model


def steps_of(steps: int, rows: int) -> Tensor:
    """Inputs (steps, rows, rows): row b sees column b."""
    return torch.eye(rows, dtype=torch.float64).expand(steps, rows, rows)


def ones(rows: int) -> Tensor:
    return torch.ones(1, rows, UNITS, dtype=torch.float64)


def influence(steps: int, truncation: cg.Full | Any, last_only: bool, rows: int = 1, seed: int = 0) -> Tensor:
    """d/dtheta of s[0] at the last step, or of its mean over all steps, for each row (rows,)."""
    weights = torch.ones(steps, rows, dtype=torch.float64)
    weights[:-1] *= not last_only
    model, carry = layer(torch.full((rows,), 0.5)), cg.Carry.start(rows, seed=seed, state=ones(rows))
    found, _ = cg.value_and_grad(
        model, first_unit, steps_of(steps, rows), None, carry, truncation=truncation, weights=weights
    )
    return rows * V @ found.grads["weight_ih"]


@dataclass
class Run:
    """What training came to: theta of each seed, and the losses on the way."""

    theta: Tensor
    steps: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    gone: dict[int, int] = field(default_factory=dict)  # data steps at which a seed blew up

    def note(self, at: int, model: nn.Module) -> None:
        rows = len(self.theta)
        with torch.no_grad():
            outputs, _ = model(steps_of(500, rows), ones(rows))
        self.steps.append(at)
        self.losses.append(to_one(outputs[-1], None))

    @property
    def told(self) -> str:
        """In a word: the losses, or when it blew up."""
        if len(self.gone) == len(self.theta):
            first, last = min(self.gone.values()), max(self.gone.values())
            return f"blows up after {first if first == last else f'{first} to {last}'} steps"
        ends = self.losses[-1][[row not in self.gone for row in range(len(self.theta))]]
        text = f"{float(ends.min()):.1e}" + (f" to {float(ends.max()):.1e}" if len(ends) > 1 else "")
        return text + (f"; {len(self.gone)} of {len(self.theta)} blow up" if self.gone else "")


def train(
    steps: int,
    call: int,
    rate: Callable[[int], float],
    truncation: Any = cg.Full(),  # noqa: B008
    mode: Any = cg.Reverse(),  # noqa: B008
    seeds: int = 1,
) -> Run:
    """SGD on the sum of each call's losses; a seed that blows up is stopped."""
    run = Run(torch.full((seeds,), 0.5, dtype=torch.float64))
    model, carry, x = layer(run.theta), cg.Carry.start(seeds, seed=1, state=ones(seeds)), steps_of(call, seeds)
    due = 1.0
    for at in range(call, steps + 1, call):
        found, carry = cg.value_and_grad(model, to_one, x, None, carry, truncation=truncation, mode=mode)
        going = torch.tensor([row not in run.gone for row in range(seeds)])
        step = rate(at) * found.weight * (V @ found.grads["weight_ih"])
        run.theta = torch.where(going, run.theta - step, run.theta)
        for row in torch.nonzero(going & (run.theta.abs() > GONE)).flatten().tolist():
            run.gone[row] = at
        with torch.no_grad():
            model.weight_ih.copy_(V.unsqueeze(1) * run.theta)
        if at >= due or at + call > steps or len(run.gone) == seeds:
            run.note(at, model)
            due = at * 1.1
        if len(run.gone) == seeds:
            break
    return run


def growth(k: int, rate: float) -> float:
    """What one update of ``Chunks(k)`` multiplies the distance from the solution by, in the long run: the spectral
    radius of the map from (state, theta) before a chunk to those after it, which is linear.
    """
    from_state, from_theta = torch.eye(UNITS, dtype=torch.float64), torch.zeros(UNITS, dtype=torch.float64)
    seen, of_theta, of_state = torch.zeros_like(V), 0.0, torch.zeros_like(V)  # seen: influence within the chunk
    for _ in range(k):
        from_state, from_theta, seen = A @ from_state, A @ from_theta + V, A @ seen + V
        of_state, of_theta = of_state + seen[0] * from_state[0], of_theta + float(seen[0] * from_theta[0])
    after = torch.zeros(UNITS + 1, UNITS + 1, dtype=torch.float64)
    after[:UNITS, :UNITS], after[:UNITS, UNITS] = from_state, from_theta
    after[UNITS, :UNITS], after[UNITS, UNITS] = -rate * of_state, 1 - rate * of_theta
    return float(torch.linalg.eigvals(after).abs().max())


def exactness() -> float:
    """RTRL in calls of 20 steps against reverse mode in one call, 200 steps at theta = 1/2: the relative difference."""
    x = torch.zeros(200, 1, 1, dtype=torch.float64)
    whole, _ = cg.value_and_grad(cg.Recurrent(Balance()), to_one, x, None)
    carry, parts = None, 0.0
    for piece in x.split(20):
        found, carry = cg.value_and_grad(cg.Recurrent(Balance()), to_one, piece, None, carry, mode=cg.RTRL())
        parts += float(found.grads["cell.theta"]) / 10
    return abs(parts / float(whole.grads["cell.theta"]) - 1)


def states_kept(steps: int, call: int, rate: float, length: int, seeds: int) -> Run:
    """Random truncation as the forward recursion E7, fed with the states that older thetas left behind."""
    draw = torch.Generator().manual_seed(1)
    run = Run(torch.full((seeds,), 0.5, dtype=torch.float64))
    state, seen, total = ones(seeds)[0], torch.zeros(seeds, UNITS, dtype=torch.float64), torch.zeros(seeds).double()
    for at in range(1, steps + 1):
        gate = (torch.rand(seeds, generator=draw) > 1 / length).double() / (1 - 1 / length)
        state, seen = state @ A.T + run.theta.unsqueeze(1) * V, gate.unsqueeze(1) * (seen @ A.T) + V
        total = total + (state[:, 0] - 1) * seen[:, 0]
        if at % call == 0:
            going = torch.tensor([row not in run.gone for row in range(seeds)])
            run.theta, total = torch.where(going, run.theta - rate * total, run.theta), torch.zeros_like(total)
            for row in torch.nonzero(going & (run.theta.abs() > GONE)).flatten().tolist():
                run.gone[row] = at
        if len(run.gone) == seeds:
            break
    run.note(at, layer(run.theta))
    return run


def constant(rate: float) -> Callable[[int], float]:
    return lambda at: rate


def by_root(at: int) -> float:
    return 1e-3 / math.sqrt(1 + at)


class Balance(nn.Module):
    """The cell with its one parameter, for estimators that perturb it."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor | None) -> Tensor:
        return (torch.ones(len(x), UNITS, dtype=torch.float64) if s is None else s) @ A.T + self.theta * V


def evolved(mode: cg.PES, draws: int, **options: Any) -> tuple[float, float, float]:
    """Mean over the draws, its standard error, and the standard deviation of one antithetic pair."""
    x, model = torch.zeros(200, 1, 1, dtype=torch.float64), cg.Recurrent(Balance())
    calls = range(draws // mode.particles)
    every = [cg.value_and_grad(model, to_one, x, None, mode=mode, seed=seed, **options)[0] for seed in calls]
    found = torch.stack([gradient.grads["cell.theta"] for gradient in every])
    deviation = float(found.std())
    return float(found.mean()), deviation / math.sqrt(len(found)), deviation * math.sqrt(mode.particles)


def influences(quick: bool) -> tuple[list[str], Any, dict[int, float]]:
    """Part 1: a(K) by windows, and its mean by blocks."""
    reach = 70 if quick else 140
    end = {k: float(influence(200, cg.Window(1, k), True)) for k in range(1, reach + 1)}
    block = {k: float(influence(k, cg.Full(), False)) for k in range(1, reach + 1)}
    term, total, worst = V, 0.0, 0.0
    for k in end:
        total += float(term[0])
        worst, term = max(worst, abs(total - end[k])), A @ term
    first = next(k for k in end if end[k] < 0)
    top = max(end, key=lambda k: end[k])
    flips = next((k for k in block if block[k] < 0), None)
    shown = [k for k in (1, *range(5, 101, 5)) if k in end]
    rows = [[k, f"{end[k]:.4f}", f"{block[k]:.4f}"] for k in shown]
    full = float(influence(500, cg.Full(), True))
    parts = [
        "## The influence of theta that a truncation sees\n\n"
        "Full computation says ds[0]/dtheta = "
        f"{full:.4f}. Cut at K steps (`cg.Window(1, K)`, the loss at one step) it is a(K): largest at K = {top} "
        f"({end[top]:.3f}), and **first negative at K = {first}**. It is sum_(k<K) (A^k v)[0], to {worst:.0e}. With "
        "a loss at every step and the stream cut into blocks (`cg.Chunks(K)`), the mean over the block counts, and it "
        + (f"turns negative at **K = {flips}** only." if flips else f"has not turned negative at K = {reach}."),
        table(["K", "a(K), window", "mean of a(1..K), block"], rows),
        "figure:influence",
    ]
    return parts, _draw_influence(end, block, first, flips, full), end


def _draw_influence(end: dict[int, float], block: dict[int, float], first: int, flips: int | None, full: float) -> Any:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axhline(full, color=FAINT, linestyle=":", linewidth=1.4)
        axes.plot(list(end), list(end.values()), color=BLUE)
        axes.plot(list(block), list(block.values()), color=RED, linestyle="--")
        axes.text(25, 14.9, "a(K): one loss, window of K", color=BLUE)
        axes.text(47, 8.2, "mean over a block of K", color=RED)
        axes.text(2, full + 0.4, f"full: {full:.0f}", color=INK, fontsize=9)
        for at, colour in ((first, BLUE), (flips, RED)):
            if at is not None:
                axes.plot([at], [0], "o", color=colour, markersize=5)
                axes.annotate(f"K = {at}", (at, 0), (at + 2, 1.0), color=colour, fontsize=9)
        axes.set(xlabel="K, steps that the truncation keeps", ylabel="influence of theta on s[0]")
        axes.set(title="The sign that truncation sees", xlim=(0, len(end)))
    return figure


def trainings(quick: bool) -> tuple[list[str], Any]:
    """Part 2: training."""
    few, many, seeds = (300, 2000, 2) if quick else (3000, 100_000, 5)
    slow = constant(1e-4)
    ends = {k: train(few, 1, slow, cg.Window(1, k)) for k in ((1, 50) if quick else (1, 10, 20, 30, 40, 50, 100, 200))}
    ends["all: RTRL"] = train(few, 1, slow, mode=cg.RTRL())
    sizes = (10, 200) if quick else (1, 10, 20, 40, 50, 100, 200, 300)
    blocks = {k: train(many, k, slow, cg.Chunks(k)) for k in sizes}
    gentle = train(many, 300, constant(3e-5), cg.Chunks(300))
    random = train(many, 20, by_root, cg.RandomTruncation(16), seeds=seeds)
    fast = {
        (length, call): train(many, call, slow, cg.RandomTruncation(length), seeds=seeds)
        for length, call in ((8, 20), (16, 20), (32, 20), (16, 100))
    }
    kept = states_kept(many, 20, 1e-4, 16, seeds)
    exact = train(many, 50, slow, mode=cg.RTRL())
    product = train(many, 50, constant(1e-5), mode=cg.UORO(), seeds=seeds)
    away = float((random.theta - BEST).abs().max())
    lines = [
        ("RTRL", "1e-4", 50, 1, exact),
        ("UORO", "1e-5", 50, seeds, product),
        ("random truncation, mean 16", "1e-3/sqrt(1+t)", 20, seeds, random),
        *((f"random truncation, mean {n}", "1e-4", call, seeds, run) for (n, call), run in fast.items()),
        ("random truncation, mean 16, states kept", "1e-4", 20, seeds, kept),
        *((f"chunks of {k}", "1e-4", k, 1, run, f"{growth(k, 1e-4):.4f}") for k, run in blocks.items()),
        ("chunks of 300", "3e-5", 300, 1, gentle, f"{growth(300, 3e-5):.4f}"),
    ]
    radius = {k: growth(k, 1e-4) for k in range(1, 101)}
    parts = [
        "## Training\n\n"
        f"**Windows**, an update at every step, rate 1e-4, {few} steps: windows up to 40 see the wrong sign and move "
        "away from -1/6 (theta begins at 0.5), those from 50 on move towards it. The gradient of RTRL is the exact one "
        f"(relative difference from reverse mode at a fixed theta: {exactness():.0e}). It ends lower than the long "
        "windows because their open steps are run again under the current theta, while the state of RTRL lags behind "
        "theta; here the lag speeds the approach up.",
        table(
            ["steps kept", "theta", "loss"],
            [
                [k, f"{float(run.theta):.6f}" if not run.gone else "-", run.told if run.gone else f"{_end(run):.1e}"]
                for k, run in ends.items()
            ],
        ),
        f"**A stream of {many} steps**: chunks of up to 100 blow up, where random truncation of mean length 16 reaches "
        f"theta = -1/6 within {away:.0e} on {int(((random.theta - BEST).abs() < 1e-6).sum())} of {seeds} seeds, and "
        "RTRL and UORO do too.",
        "A mean that is right is not enough: at a constant rate of 1e-4 the variance drives theta away for mean length "
        "8, and for 16 when there are 100 steps between updates. For 16 and 20 steps it does not, as the library runs "
        "the open steps again under the current theta; E7 as a recursion that keeps the states of older thetas "
        "(*states kept*, written out in the study) blows up there.",
        "Under chunks, one update is a linear map of (state, theta), and the largest modulus of its eigenvalues, the "
        "*growth* of an update, decides. At rate 1e-4 it is above 1 for "
        f"{sum(grown > 1 for grown in radius.values())} of the 100 lengths from 1 to 100. Chunks of 300 point the "
        "right way, but the sum of so many losses is too large a step at 1e-4.",
        table(
            ["gradient", "rate", "steps for each update", "seeds", "loss at the end", "growth"],
            [[*line[:4], line[4].told, line[5] if len(line) > 5 else ""] for line in lines],
        ),
        "figure:training",
    ]
    named = {"chunks of 10": blocks[10], "random, mean 16": random, "UORO": product, "RTRL": exact}
    named |= {f"chunks of {k}": blocks[k] for k in (100, 200) if k in blocks}
    return parts, _draw_training(named, many)


def _end(run: Run) -> float:
    return float(run.losses[-1].max())


def _draw_training(runs: dict[str, Run], steps: int) -> Any:
    from matplotlib.figure import Figure

    looks = {
        "chunks of 10": (RED, ":", 6),
        "chunks of 100": (RED, "--", 6),
        "chunks of 200": (ORANGE, "-.", -12),
        "RTRL": (INK, "-", -8),
        "random, mean 16": (BLUE, "-", -14),
        "UORO": (GREEN, (0, (6, 2)), -26),
    }
    with style():
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.subplots()
        for name, run in runs.items():
            colour, dash, height = looks[name]
            losses = torch.stack(run.losses).clamp(1e-33, 1e9)
            middle = [median(row) for row in losses.tolist()]
            axes.plot(run.steps, middle, color=colour, linestyle=dash)
            if losses.shape[1] > 1:
                axes.fill_between(
                    run.steps, losses.amin(1).tolist(), losses.amax(1).tolist(), color=colour, alpha=0.18, linewidth=0
                )
            if name == "random, mean 16":  # to the right of its line, where others do not cross it
                axes.text(steps * 0.97, 1e-9, name, color=colour, ha="right", fontsize=9.5)
                continue
            wanted = 10.0**height
            at = next(
                (i for i, loss in enumerate(middle) if (loss > wanted if height > 0 else loss < wanted)),
                len(middle) - 1,
            )
            axes.annotate(name, (run.steps[at], middle[at]), (-6, 0), textcoords="offset points", color=colour,
                          ha="right", va="center", fontsize=9.5)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="steps of data", ylabel="loss", xlim=(20, steps), ylim=(1e-33, 1e9))
        axes.set(title="Influence balancing: loss while training (median; shaded from the best to the worst seed)")
    return figure


def noise(quick: bool) -> tuple[list[str], Any]:
    """Part 3: what the unbiased ones pay."""
    lengths, calls = ((16, 64), 2) if quick else ((8, 10, 16, 20, 32, 50, 64), 40)
    theory = {n: float(influence_moments(A, V, cg.RandomTruncation(n)).std[0]) for n in lengths}
    drawn = {}
    for n in lengths:
        every = [influence(200, cg.RandomTruncation(n), True, 100, seed) for seed in range(calls)]
        drawn[n] = torch.cat(every)
    rows = [
        [n, f"{std:.2f}", f"{float(drawn[n].std()):.2f}",
         f"{float(drawn[n].mean()):.2f} ± {std / math.sqrt(len(drawn[n])):.2f}"]
        for n, std in theory.items()
    ]  # fmt: skip
    pairs = 400 if quick else 20_000
    exact = cg.value_and_grad(cg.Recurrent(Balance()), to_one, torch.zeros(200, 1, 1).double(), None)[0]
    near = cg.value_and_grad(
        cg.Recurrent(Balance()), to_one, torch.zeros(200, 1, 1).double(), None, truncation=cg.Chunks(1)
    )[0]
    found = {
        "PES": evolved(cg.PES(40, 0.1), pairs),
        "NRES": evolved(cg.PES(40, 0.1, reuse_noise=True), pairs),
        "truncated ES": evolved(cg.PES(40, 0.1), pairs, truncation=cg.Chunks(1)),
    }
    listed = [[name, f"{mean:.3f} ± {error:.3f}", f"{std:.1f}"] for name, (mean, error, std) in found.items()]
    parts = [
        "## What the mean costs\n\n"
        "**Random truncation**: the standard deviation of one row's estimate of the influence, -6 in the mean, in "
        "closed form (`influence_moments`) and from draws. The shorter the mean length, the heavier the tails, and the "
        "less a sample's deviation tells.",
        table(
            [
                "mean length 1/c",
                "std, closed form",
                f"std, {100 * calls} draws",
                "mean of the draws ± standard error, closed form",
            ],
            rows,
        ),
        "figure:variance",
        f"**Evolution strategies** at theta = 0.5 over 200 steps, sigma 0.1, new noise at every step, {pairs} "
        f"antithetic pairs. The mean loss's gradient is {float(exact.grads['cell.theta']):.3f} exactly, and "
        f"{float(near.grads['cell.theta']):.3f} where every step is cut off. PES and NRES (one noise for the stream) "
        "estimate the first; truncated ES estimates the second, which has the wrong sign.",
        table(["estimator", "mean ± standard error", "std of one pair"], listed),
    ]
    return parts, _draw_noise(theory, drawn)


def _draw_noise(theory: dict[int, float], drawn: dict[int, Tensor]) -> Any:
    from matplotlib.figure import Figure

    fine = [8 * 1.04**i for i in range(54)]
    line = [float(influence_moments(A, V, cg.RandomTruncation(n)).std[0]) for n in fine]
    with style():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(fine, line, color=BLUE)
        axes.plot(list(drawn), [float(x.std()) for x in drawn.values()], "o", color=RED, markersize=6, fillstyle="none")
        axes.axhline(6, color=FAINT, linestyle=":")
        axes.text(8.2, 6.5, "the influence itself: 6", fontsize=9)
        axes.text(12, 100, "closed form", color=BLUE)
        axes.text(20, 52, f"drawn, {len(next(iter(drawn.values())))} rows", color=RED)
        axes.set(xscale="log", yscale="log", xlabel="mean length 1/c", ylabel="standard deviation", ylim=(5, 400))
        axes.set_xticks(list(theory), [str(n) for n in theory])
        axes.set_xticks([], minor=True)
        axes.set(title="Random truncation: the price of the mean")
    return figure


def run(quick: bool) -> Page:
    """Influence balancing: where truncated gradients point the wrong way, and which estimators learn."""
    seen, influence_figure, _ = influences(quick)
    learned, training_figure = trainings(quick)
    paid, noise_figure = noise(quick)
    about = "\n\n".join((__doc__ or "").strip().split("\n\n")[1:])
    return Page(
        "Influence balancing",
        [about, *seen, *learned, *paid],
        {"influence": influence_figure, "training": training_figure, "variance": noise_figure},
    )


if __name__ == "__main__":
    publish("influence_balancing", run)
