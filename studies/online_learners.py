"""Online learners: copy memory and the adding task with each of them, from the same start.

Question: which of the gradients that walk forward in time learn what the exact gradient learns, and how fast?

Protocol: every learner starts from the same weights of a seed and meets the same batches of it in the same order, with
an update of Adam for each batch of 32 sequences; parameters are fixed within a sequence, so that what is compared is
the gradient and not how stale it is. Only the last part updates within the sequence. Solved means: the mean loss of the
last 20 batches (each is new, so this is a test loss) is below a tenth of what the best guess without memory has. Every
learner tries rates 3e-2 and 1e-2 on the first seed, and 3e-3 if it solved the task at neither; it keeps the best one
(the first to solve, else the lowest loss) for the other two seeds. Adding: 20 steps, ``adding_problem(20, 32)``. Copy:
3 symbols out of 4, 2 blanks, a go sign, the 3 symbols again, 9 steps, all of which count. Models: one layer and a
linear readout, 24 units of GRU, 32 of tanh, or 32 of the element-wise LSTM, whose exact influence is one number for
each weight. PES: 16 antithetic pairs, sigma 0.05, new noise when a chunk of the truncated learner would begin.

Known gaps: short tasks and small layers, so that the exact gradient solves them in some hundred updates. Three seeds,
three rates: the noisy ones may need lower rates and more updates than anybody has here. On adding the tanh layer is run
by the exact gradient only, which does not solve it either. UORO and PES are left out of the element-wise LSTM, where
the exact influence has no more numbers than UORO keeps. Time is not compared: see ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from math import log
from typing import Any

import torch
from page import Page, publish, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import chronograd as cg
from chronograd.data.tasks import adding_problem
from chronograd.style import COLOURS, FAINT, INK, style

ROWS, WINDOW, RATES, LOWER = 32, 20, (3e-2, 1e-2), 3e-3
SYMBOLS, KINDS, BLANKS = 3, 4, 3
STEPS = {"copy": 2 * SYMBOLS + BLANKS, "adding": 20}
BASELINE = {"copy": SYMBOLS * log(KINDS) / STEPS["copy"], "adding": 1 / 6}
NEAR = {"copy": 3, "adding": 5}  # steps of a chunk, and of PES between draws
SIZES = {"copy": (KINDS + 2, KINDS + 1), "adding": (2, 1)}
LAYERS = {"GRU": (cg.GRU, 24), "tanh": (cg.RNN, 32), "element-wise LSTM": (cg.ELSTM, 32)}


class Model(nn.Module):
    def __init__(self, kind: str, task: str) -> None:
        super().__init__()
        (layer, units), (inputs, outputs) = LAYERS[kind], SIZES[task]
        self.layer, self.readout = layer(inputs, units), nn.Linear(units, outputs)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        return self.readout(outputs), state


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """(T, B): squared error, or cross-entropy where targets are classes."""
    if targets.is_floating_point():
        return (outputs.squeeze(-1) - targets).square()
    return cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@cache
def batches(task: str, seed: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, targets and weights, the same for every learner of a seed."""
    draw = torch.Generator().manual_seed(1000 + seed)
    made = []
    for _ in range(count):
        if task == "adding":
            drawn = adding_problem(STEPS[task], ROWS, draw)
            made.append((drawn.inputs, drawn.targets, drawn.weights))
            continue
        symbols = torch.randint(0, KINDS, (SYMBOLS, ROWS), generator=draw)
        tokens, targets = torch.full((2, STEPS[task], ROWS), KINDS)
        tokens[:SYMBOLS], tokens[-SYMBOLS - 1], targets[-SYMBOLS:] = symbols, KINDS + 1, symbols
        made.append((one_hot(tokens, KINDS + 2).float(), targets, torch.ones(STEPS[task], ROWS)))
    return made


@dataclass(frozen=True)
class Learner:
    name: str
    mode: Any = cg.Reverse()
    truncation: Any = cg.Full()


def learners(kind: str, task: str) -> list[Learner]:
    """The exact one first."""
    near = NEAR[task]
    found = [
        Learner("reverse = RTRL"),
        Learner(f"chunks of {near}", truncation=cg.Chunks(near)),
        Learner("SnAp(1)", cg.SnAp(1)),
        Learner("RFLO", cg.RFLO()),
    ]
    if (kind, task) == ("tanh", "adding"):
        return found[:1]
    if kind == "element-wise LSTM":  # SnAp(1) is RTRL there
        return [*found[:2], found[3]]
    if hasattr(cg, "UORO"):
        found.append(Learner("UORO", cg.UORO()))
    if hasattr(cg, "KFRTRL") and kind == "tanh":
        found.append(Learner("KF-RTRL", cg.KFRTRL()))
    return [*found, Learner("PES", cg.PES(16, 0.05, unroll=near))]


@dataclass
class Run:
    """One training: the mean loss of each batch, how many batches until solved."""

    rate: float
    losses: list[float] = field(default_factory=list)
    solved: bool = False

    @property
    def last(self) -> float:
        recent = self.losses[-WINDOW:]
        return sum(recent) / len(recent)

    def share(self, task: str) -> list[float]:
        """Running mean of the loss over that of the best guess without memory."""
        sums = torch.tensor([0.0, *self.losses]).double().cumsum(0)
        width = min(WINDOW, len(self.losses))
        return ((sums[width:] - sums[:-width]) / width / BASELINE[task]).tolist()


def learn(task: str, kind: str, learner: Learner, rate: float, seed: int, budget: int, call: int | None = None) -> Run:
    """Train until solved, or until the budget of batches is used up; an update after every ``call`` steps."""
    torch.manual_seed(seed)
    model, run = Model(kind, task), Run(rate)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for at, batch in enumerate(batches(task, seed, budget)):
        carry, total = cg.Carry.start(ROWS, seed=at), 0.0
        for inputs, targets, weights in zip(*(part.split(call or STEPS[task]) for part in batch), strict=True):
            found, carry = cg.value_and_grad(
                model, loss_of, inputs, targets, carry,
                mode=learner.mode, truncation=learner.truncation, weights=weights,
            )  # fmt: skip
            found.assign(model)
            optimizer.step()
            total += float(found.loss) * found.weight
        run.losses.append(total / float(batch[2].sum()))
        if not run.losses[-1] < 1e6:  # it blew up, or is NaN
            break
        if len(run.losses) >= WINDOW and run.last < BASELINE[task] / 10:
            run.solved = True
            break
    return run


def better(runs: Iterable[Run]) -> Run:
    return min(runs, key=lambda run: (not run.solved, len(run.losses) if run.solved else run.last))


def train(task: str, kind: str, learner: Learner, seeds: int, budget: int, call: int | None = None) -> list[Run]:
    """A run for each seed, the best rate of the first one for all."""
    first = better(learn(task, kind, learner, rate, 0, budget, call) for rate in RATES)
    if not first.solved:
        first = better((first, learn(task, kind, learner, LOWER, 0, budget, call)))
    return [first, *(learn(task, kind, learner, first.rate, seed, budget, call) for seed in range(1, seeds))]


def told(run: Run, task: str) -> str:
    return str(len(run.losses)) if run.solved else f"({run.last / BASELINE[task]:.2f})"


def row(name: str, runs: list[Run], task: str) -> list[str]:
    """Name, rate, median, each seed."""
    solved = sum(run.solved for run in runs)
    middle = sorted(runs, key=lambda run: (not run.solved, len(run.losses) if run.solved else run.last))[len(runs) // 2]
    return [name, f"{runs[0].rate:g}", f"{solved} of {len(runs)}", f"**{told(middle, task)}**",
            ", ".join(told(run, task) for run in runs)]  # fmt: skip


HEAD = ["learner", "rate", "solved", "median", "each seed"]
# One colour and dash for each learner, in every panel; names stand at the lines.
LOOKS: dict[str, tuple[str, Any]] = {
    "reverse = RTRL": (INK, "-"),
    "SnAp(1)": (COLOURS[2], "-"),
    "RFLO": (COLOURS[5], (0, (6, 1.5, 1, 1.5))),
    "UORO": (COLOURS[1], "-"),
    "KF-RTRL": (COLOURS[0], (0, (5, 2))),
    "PES": (COLOURS[4], (0, (1, 1))),
    "chunks": ("#777777", (0, (3, 1.5))),
}


def spread(heights: list[float], apart: float) -> list[float]:
    """Heights moved so that neighbours are ``apart``, in order and about where they were."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = [heights[i] for i in order]
    for _ in range(200):
        for i in range(1, len(moved)):
            if (short := apart - (moved[i] - moved[i - 1])) > 1e-6:
                moved[i - 1], moved[i] = moved[i - 1] - short / 2, moved[i] + short / 2
    return [moved[order.index(i)] for i in range(len(heights))]


def draw(task: str, found: dict[str, dict[str, list[Run]]], budget: int) -> Any:
    """A panel for each model: the median seed of each learner, the others faint."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.1 * len(found), 4.6), layout="constrained")
        for axes, (kind, of_kind) in zip(figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found.items()):
            axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
            axes.axhline(0.1, color=FAINT, linewidth=0.8, linestyle=":")
            ends = []
            for name, runs in of_kind.items():
                colour, dash = LOOKS[name.split(" of")[0]]
                middle = sorted(runs, key=lambda run: (not run.solved, len(run.losses) if run.solved else run.last))
                for run in runs:
                    share = run.share(task)
                    at = range(len(run.losses) - len(share) + 1, len(run.losses) + 1)
                    if run is not middle[len(runs) // 2]:
                        axes.plot(at, share, color=colour, linestyle=dash, linewidth=0.7, alpha=0.35)
                        continue
                    axes.plot(at, share, color=colour, linestyle=dash, linewidth=2)
                    if run.solved:
                        axes.plot(at[-1], share[-1], "o", color=colour, markersize=5)
                    ends.append((name, colour, at[-1], log(max(share[-1], 0.05)), run.solved))
            side = [end for end in ends if not end[4]]
            for (name, colour, x, y, _), height in zip(side, spread([end[3] for end in side], 0.14), strict=True):
                line = {"arrowstyle": "-", "color": colour, "linewidth": 1.2, "relpos": (0, 0.5)}
                axes.annotate(name, (x, 2.718281828**y), (budget * 1.06, 2.718281828**height), color=INK, va="center",
                              fontsize=9, arrowprops=line, annotation_clip=False)  # fmt: skip
            # The last to solve has the highest name, to the right of its line down, so that no line crosses a name.
            below = sorted((end for end in ends if end[4]), key=lambda end: -end[2])
            for place, (name, colour, x, _, _) in enumerate(below):
                height = 0.083 * 0.86**place
                axes.plot([x, x], [0.1, height], color=colour, linewidth=1.2)
                axes.annotate(name, (x, height), (4, 0), textcoords="offset points", color=INK, va="center", fontsize=9)
            axes.set(title=kind, xlabel="batches, an update each", xlim=(0, budget), ylim=(0.042, 2.2), yscale="log")
            axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
            axes.set_yticks([], minor=True)
            for spine in ("left", "bottom"):
                axes.spines[spine].set_linewidth(0.8)
        figure.axes[0].set_ylabel("running loss / loss without memory")
    return figure


def same_numbers() -> str:
    """What gives the same numbers, and is run once."""
    rows = []
    for kind, one, other in (
        ("GRU", cg.RTRL(), cg.Reverse()),
        ("element-wise LSTM", cg.SnAp(1), cg.Reverse()),
        ("GRU", cg.EProp(), cg.RFLO()),
    ):
        torch.manual_seed(0)
        model, (inputs, targets, weights) = Model(kind, "copy").double(), batches("copy", 0, 1)[0]
        carry, total = None, None
        for x, y, w in zip(inputs.double().split(3), targets.split(3), weights.double().split(3), strict=True):
            part, carry = cg.value_and_grad(model, loss_of, x, y, carry, mode=one, weights=w)
            total = part if total is None else total + part
        assert total is not None
        whole, _ = cg.value_and_grad(model, loss_of, inputs.double(), targets, mode=other, weights=weights.double())
        apart = max(float((total.grads[name] - whole.grads[name]).abs().max()) for name in whole.grads)
        rows.append([kind, f"`{one}`, calls of 3 steps", f"`{other}`, one call", f"{apart:.0e}"])
    return table(["layer", "one", "other", "largest difference of a gradient"], rows)


def within(found: dict[str, list[Run]], seeds: int, budget: int) -> str:
    """Copy in calls of 3 steps, an update after each, at the rate that was best for an update a sequence."""
    tried = {
        "reverse = RTRL": Learner("RTRL", cg.RTRL()),
        "SnAp(1)": Learner("SnAp(1)", cg.SnAp(1)),
        "chunks of 3": Learner("chunks of 3", truncation=cg.Chunks(3)),
    }
    rows = []
    for name, learner in tried.items():
        rate = found[name][0].rate
        runs = [learn("copy", "GRU", learner, rate, seed, budget, call=3) for seed in range(seeds)]
        rows.append(row(learner.name, runs, "copy"))
    return table(HEAD, rows)


def summary(every: dict[str, dict[str, dict[str, list[Run]]]]) -> str:
    """Who solved what, in words."""
    lines = []
    for task, found in every.items():
        for kind, of_kind in found.items():
            by_count: dict[int, list[str]] = {}
            for name, runs in of_kind.items():
                by_count.setdefault(sum(run.solved for run in runs), []).append(name)
            seeds = len(next(iter(of_kind.values())))
            told = [f"on {n or 'no'} of {seeds} seeds: {', '.join(by_count[n])}" for n in sorted(by_count)[::-1]]
            lines.append(f"- {task.capitalize()}, {kind}. Solved {'; '.join(told)}.")
    return "\n".join(lines)


def run(quick: bool) -> Page:
    """Copy memory and the adding task with each online learner, from the same start."""
    seeds, budgets = (1, {"copy": 6, "adding": 6}) if quick else (3, {"copy": 700, "adding": 300})
    parts, figures = ["\n\n".join((__doc__ or "").strip().split("\n\n")[1:])], {}
    every: dict[str, dict[str, dict[str, list[Run]]]] = {}
    for task, budget in budgets.items():
        every[task] = found = {
            kind: {learner.name: train(task, kind, learner, seeds, budget) for learner in learners(kind, task)}
            for kind in LAYERS
        }
        figures[task] = draw(task, {kind: of_kind for kind, of_kind in found.items() if len(of_kind) > 1}, budget)
        parts += [f"## {task.capitalize()}, {STEPS[task]} steps, at most {budget} batches", f"figure:{task}"]
        for kind, of_kind in found.items():
            parts += [f"**{kind}**", table(HEAD, [row(name, runs, task) for name, runs in of_kind.items()])]
    parts += [
        "## Updates within the sequence",
        within(every["copy"]["GRU"], seeds, budgets["copy"]),
        "## The same numbers, run once",
        same_numbers(),
    ]
    parts.insert(
        0,
        f"{summary(every)}\n\nIn the tables: batches until solved, or in brackets how the last loss compares with that "
        "of the best guess without memory (1 means that nothing was learned). Median over the seeds.",
    )
    return Page("Online learners", parts, figures)


if __name__ == "__main__":
    publish("online_learners", run)
