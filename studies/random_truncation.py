"""Does random truncation help, at equal compute, as the textbook's section on backpropagation through time doubts?

Protocol: two tasks, a GRU of 64 units, Adam, gradients clipped at norm 1, five seeds. *Characters* of The Time Machine,
16 rows side by side with a carried state, an update every k = 20 characters; the first 85% to train on, the next 5% to
pick a rate by, the last 10% for what is shown. *Adding* the two marked numbers of 100, 32 fresh sequences an update,
each a stream of its own, k = 10; 500 more each to pick by and to show; always answering 1 has a squared error of 1/6. A
seed gives every method the same start and the same data. Seeds of their own pick each method's learning rate from one
grid, by the loss at equal compute, and again by that at equal updates; the grid goes on for as long as the best rate is
at its end. On characters one seed decides; on adding, where seeds differ more, a second seed helps to decide between
the two rates that are best on the first. The regular truncation comes twice: its losses reach back k / 2 steps on
average, those of a random one of mean length k about k, as the regular ones of length 2k do.

Compute: steps of the batch, those run forward plus those walked back. Regular truncation whose chunks are the calls
runs k steps and walks back k. Where a loss reaches into earlier calls, the steps still open are run again under the
current parameters, as the library does to give the gradient it promises. The rows of a batch are cut at different
places, so random truncation runs again as far as the row that reaches back furthest. Adaptive truncation pays for
windows that overlap and for measuring. Full truncation pays for all characters since its carry was last cut, here every
200, as it would grow without end. On adding a sequence runs forward whole, and back as far as the plan reaches from its
last step, where the loss is. Equal updates compares methods that saw the same data, and counts none of this.

Known gaps: one model and one size; few seeds to choose the rate, and on adding two of the picks were poor (at rate 0.03
regular k = 10 has 0.0080 at equal updates and random polynomial 0.038 at equal compute, which changes no verdict); not
trained to the end; clipping biases estimators that have no bias; steps are not seconds; on characters the seeds differ
in weights and draws only. Running rows together is what random truncation costs here, not the least it could cost;
equal updates, where no cost is counted, are the comparison most favourable to it.

Without a network set CHRONOGRAD_TIMEMACHINE to a copy of the text; without either the library's built-in text is read.
Reference: Tallec and Ollivier, "Unbiasing truncated backpropagation through time" (2017).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from page import Page, publish, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import chronograd as cg
from chronograd.data.corpora import load_corpus
from chronograd.data.streams import ChunkStream
from chronograd.data.tasks import adding_problem
from chronograd.data.vocabulary import CharVocabulary
from chronograd.style import COLOURS, INK, style
from chronograd.truncation import GatePlan, Place, Truncation
from chronograd.truncation.reach import steps_reached

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 6e-2, 1e-1, 2e-1)
RATES = (3e-3, 1e-2, 3e-2)  # tried first; then the grid's next one for as long as the best is at an end
AT = ("compute", "updates")
CHOOSERS = (100, 101)  # seeds that pick learning rates and do nothing else
LOOKS = ((COLOURS[1], "-", "o"), (COLOURS[4], "--", "s"), (COLOURS[5], "-", "^"), (COLOURS[0], "--", "v"))
LOOKS += ((COLOURS[3], ":", "D"), (INK, "-.", "x"))
Batch = tuple[Tensor, Tensor, Tensor | None, Tensor]  # inputs, targets, reset, weights
Found = Sequence[tuple["Task", dict[str, "Result"]]]


@dataclass(frozen=True)
class Task:
    """``batches(seed)`` go on for ever; ``held_out`` are the batches to pick a rate by and to show; the carry is cut
    every ``whole`` steps under Full, and under all methods if ``apart``.
    """

    name: str
    unit: str
    k: int
    window: int  # of the adaptive truncation
    rows: int
    sizes: tuple[int, int]  # features, outputs
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: Callable[[int], Iterator[Batch]]
    held_out: Sequence[Batch]
    whole: int
    apart: bool
    budget: int
    updates: int
    choosers: int  # how many seeds pick the learning rate

    @property
    def methods(self) -> dict[str, Truncation]:
        return {
            f"regular, k = {self.k}": cg.Chunks(self.k),
            f"regular, k = {2 * self.k}": cg.Chunks(2 * self.k),
            "random, geometric": cg.RandomTruncation(self.k),
            "random, polynomial": cg.RandomTruncation(self.k, tail="polynomial"),
            "adaptive": cg.AdaptiveTruncation(0.1, self.window),
            "full": cg.Full(),
        }


class Model(nn.Module):
    def __init__(self, features: int, outputs: int, units: int = 64) -> None:
        super().__init__()
        self.rnn, self.readout = cg.GRU(features, units), nn.Linear(units, outputs)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(inputs, state)
        return self.readout(hidden), state


def characters(quick: bool) -> tuple[Task, str]:
    """The task, and which text it is."""
    asked = os.environ.get("CHRONOGRAD_TIMEMACHINE", "builtin" if quick else "timemachine")
    try:
        corpus = load_corpus(asked, preprocess="letters")
    except (OSError, ImportError):  # no network
        corpus = load_corpus("builtin", preprocess="letters")
    source = "the library's built-in text" if corpus.name == "builtin" else "The Time Machine"
    text = (corpus.text or "")[: 40_000 if quick else None]
    tokens = torch.from_numpy(CharVocabulary.from_text(text).encode(text)).long()
    ends = [0, *(int(share * len(tokens)) for share in (0.85, 0.9, 1))]
    train, *others = (tokens[a:b] for a, b in zip(ends, ends[1:], strict=False))
    size, rows, k = int(tokens.max()) + 1, 16, 20

    def stretch(chunk: Any) -> Batch:
        return one_hot(chunk.inputs, size).float(), chunk.targets, chunk.reset, torch.ones(chunk.inputs.shape)

    task = Task(
        "characters", "bits per character", k, 80, rows, (size, size),
        lambda outputs, targets: cross_entropy(outputs.movedim(-1, 1), targets, reduction="none") / math.log(2),
        lambda seed: map(stretch, ChunkStream(train, rows, k, tail="drop", epochs=None)),
        [stretch(next(ChunkStream(part, rows, len(part) // rows - 1, tail="drop"))) for part in others],
        200, False, 1000 if quick else 80_000, 10 if quick else 400, 1,
    )  # fmt: skip
    return task, f"{source}, {len(tokens):,} characters of {size} kinds"


def adding(quick: bool) -> Task:
    length, rows = 100, 32

    def batches(rows: int, seed: int) -> Iterator[Batch]:
        generator, first = torch.Generator().manual_seed(seed), torch.arange(length).unsqueeze(1) == 0
        while True:
            drawn = adding_problem(length, rows, generator)
            yield drawn.inputs, drawn.targets, first.expand(-1, rows), drawn.weights

    return Task(
        "adding", "squared error", 10, length, rows, (2, 1),
        lambda outputs, targets: (outputs[..., 0] - targets).square(),
        lambda seed: batches(rows, seed), [next(batches(64 if quick else 500, seed)) for seed in (9001, 9002)],
        length, True, 1000 if quick else 60_000, 10 if quick else 300, 2,
    )  # fmt: skip


def work(truncation: Truncation, carry: cg.Carry, reset: Tensor | None, counted: Tensor) -> tuple[int, float]:
    """Steps of the batch that a call runs forward and walks back, by its plan; the mean look-back of its losses."""
    stream, steps = carry.stream, len(counted)
    place = Place(stream.position, steps, stream.rows, stream.seed or 0, stream.since, reset)
    known = {"look_back": carry.truncation.get("look_back")} if isinstance(truncation, cg.AdaptiveTruncation) else {}
    plan = truncation.plan(place, **known)
    time, total = torch.arange(steps).unsqueeze(1), carry.open_steps + steps
    reached = torch.minimum(steps_reached(plan, place), carry.open_steps + time + 1)  # no further than a carry.cut()
    if isinstance(plan, GatePlan):
        total += int(time.expand_as(reached)[counted].max() - (time - reached)[counted].min())
    else:
        for span in plan.spans:
            if counted[span.first - place.position : span.last - place.position + 1].any():
                total += 2 * (span.last + 1 - max(span.start, carry.segment.start))
        if (place.position + steps) % truncation.window == 0:  # it measures
            total += 2 * truncation.depth * len(truncation.samples)
    return total, float(reached[counted].double().mean())


@dataclass(frozen=True)
class Run:
    """(compute, updates, held-out loss) along the way, the loss at equal updates, and means per update."""

    curve: list[tuple[int, int, float]]
    at_updates: float
    work: float
    look_back: float

    def loss(self, at: str) -> float:
        return self.curve[-1][2] if at == "compute" else self.at_updates


def train(task: Task, truncation: Truncation, rate: float, seed: int, held_out: Batch) -> Run:
    """Train until the budget of compute and the number of updates are both used up; see the loss on the way."""
    torch.manual_seed(seed)
    model = Model(*task.sizes)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    carry, spent, looked, curve, at_updates = cg.Carry.start(task.rows, seed=seed), 0, 0.0, [], math.nan

    @torch.no_grad()
    def evaluate(inputs: Tensor, targets: Tensor, _: Tensor | None, weights: Tensor) -> float:
        return float((task.loss(model(inputs)[0], targets) * weights).sum() / weights.sum())

    for update, (inputs, targets, reset, weights) in enumerate(task.batches(seed), start=1):
        if carry.stream.position % task.whole == 0 and (task.apart or isinstance(truncation, cg.Full)):
            carry = carry.cut()
        steps, looks = work(truncation, carry, reset, weights > 0)
        gradient, carry = cg.value_and_grad(
            model, task.loss, inputs, targets, carry, truncation=truncation, reset=reset, weights=weights
        )
        gradient.assign(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent, looked = spent + steps, looked + looks
        if update == task.updates:
            at_updates = evaluate(*held_out)
        if len(curve) < 8 and spent >= task.budget * (len(curve) + 1) // 8:
            curve.append((spent, update, evaluate(*held_out)))
        if len(curve) == 8 and update >= task.updates:
            return Run(curve, at_updates, spent / update, looked / update)
    raise AssertionError("batches end")


@dataclass(frozen=True)
class Result:
    """What a method's runs came to at equal ``compute`` and ``updates``, each at the learning rate picked for it."""

    rates: dict[str, float]
    runs: dict[str, list[Run]]

    def loss(self, at: str) -> tuple[float, float]:
        """Mean and standard error over the seeds."""
        found = torch.tensor([run.loss(at) for run in self.runs[at]])
        return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def study(task: Task, rates: Sequence[float], seeds: int) -> dict[str, Result]:
    pick, show = task.held_out
    results = {}
    for method, truncation in task.methods.items():
        tried: dict[float, Run] = {}
        best, asked = dict.fromkeys(AT, rates[0]), list(rates) if len(rates) > 1 else []
        while asked:
            tried |= {x: train(task, truncation, x, CHOOSERS[0], pick) for x in asked}
            places = [GRID.index(min(tried, key=lambda x: tried[x].loss(at))) for at in AT]
            asked = [x for i, x in enumerate(GRID) if x not in tried and any(abs(i - place) < 2 for place in places)]
        if tried:
            two = {at: sorted(tried, key=lambda x: tried[x].loss(at))[:2] for at in AT}
            again = {
                x: [tried[x], *(train(task, truncation, x, seed, pick) for seed in CHOOSERS[1 : task.choosers])]
                for x in sorted({*two["compute"], *two["updates"]})
            }
            best = {at: min(two[at], key=lambda x: sum(run.loss(at) for run in again[x])) for at in AT}
        runs = {x: [train(task, truncation, x, seed, show) for seed in range(seeds)] for x in sorted({*best.values()})}
        results[method] = Result(best, {at: runs[rate] for at, rate in best.items()})
    return results


def shown(value: tuple[float, float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}" if value[0] >= 1 else f"{value[0]:.4f} ± {value[1]:.4f}"


def verdict(task: Task, results: dict[str, Result], at: str) -> tuple[str, bool]:
    """Random against the better regular truncation, in words; and whether it won. Two standard errors decide."""
    regular = [(*result.loss(at), name) for name, result in results.items() if name.startswith("regular")]
    (*base, name), words, won = min(regular), [], False
    for method in ("random, geometric", "random, polynomial"):
        loss = results[method].loss(at)
        apart = abs(loss[0] - base[0]) > 2 * math.hypot(loss[1], base[1])
        won |= apart and loss[0] < base[0]
        word = ("better" if loss[0] < base[0] else "worse") if apart else "not told apart"
        words.append(f"{shown(loss)} {method.replace(',', '')} ({word})")
    return f"on {task.name}, in {task.unit}, {shown((base[0], base[1]))} {name}, {' and '.join(words)}", won


def answer(found: Found) -> str:
    sentences = []
    for at, opening in (("compute", "At equal compute"), ("updates", "At equal updates, its cost not counted,")):
        told, won = zip(*(verdict(task, results, at) for task, results in found), strict=True)
        gains = "helps on both tasks" if all(won) else "helps on one task of two" if any(won) else "does not help"
        sentences.append(f"{opening} random truncation {gains}: {'; '.join(told)}.")
    return " ".join(sentences)


def draw(found: Found) -> Any:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(9, 7.2), layout="constrained")
        axes = figure.subplots(2, 2, sharey="col")
        for (top, bottom), (task, results) in zip(axes.T, found, strict=True):
            for result, (colour, dash, mark) in zip(results.values(), LOOKS, strict=True):
                for axis, at in ((top, "compute"), (bottom, "updates")):
                    seen = torch.tensor([run.curve for run in result.runs[at]], dtype=torch.float64)
                    if at == "updates":  # and the loss at equal updates
                        last = torch.tensor([[[0, task.updates, run.at_updates]] for run in result.runs[at]])
                        seen = torch.cat([seen, last.double()], 1)
                        seen = seen[:, seen[..., 1].mean(0).argsort()]
                    spent, updates, loss = seen.mean(0).T  # from (seeds, marks, 3)
                    error = seen[..., 2].std(0) / math.sqrt(len(seen))
                    along = spent / 1000 if at == "compute" else updates
                    axis.errorbar(along, loss, error, color=colour, ls=dash, marker=mark, ms=5, capsize=2.5)
            top.set(title=f"{task.name}, against compute", xlabel="thousands of steps run forward or back")
            bottom.set(title=f"{task.name}, against updates", xlabel="updates", xscale="log")
            low, high = bottom.get_xlim()
            ticks = [t for t in (10, 20, 50, 100, 200, 500, 1000, 2000) if low < t < high]
            bottom.set_xticks(ticks, [str(t) for t in ticks])
            bottom.set_xticks([], minor=True)
            bottom.axvline(task.updates, color=INK, lw=0.8, zorder=0)
            for axis in (top, bottom):
                axis.set(ylabel=task.unit, yscale="log" if task.name == "adding" else "linear")
        lines = [container[0] for container in axes[0, 0].containers]
        figure.legend(
            lines,
            ["regular, k", "regular, 2k", *list(found[0][1])[2:]],
            loc="outside lower center",
            ncols=3,
            handlelength=4,
        )
    return figure


def rows(results: dict[str, Result]) -> str:
    head = ["method", "look-back", "work an update", "updates", "rate", "at equal compute", "rate", "at equal updates"]
    body = []
    for method, result in results.items():
        runs = result.runs["compute"]
        seen = torch.tensor([(run.look_back, run.work, run.curve[-1][1]) for run in runs]).mean(0).tolist()
        losses = [entry for at in AT for entry in (f"{result.rates[at]:g}", shown(result.loss(at)))]
        body.append([method, f"{seen[0]:.1f}", f"{seen[1]:.0f}", f"{seen[2]:.0f}", *losses])
    return table(head, body)


def run(quick: bool) -> Page:
    """Regular, random, adaptive and full truncation at equal compute: does randomness help?"""
    warnings.filterwarnings("ignore", message=".*reaches back over")  # Full on a stream: that is what is asked here
    (text, source), sums, (seeds, rates) = characters(quick), adding(quick), (2, RATES[1:2]) if quick else (5, RATES)
    found = [(task, study(task, rates, seeds)) for task in (text, sums)]
    _, protocol, compute, gaps, *_ = (__doc__ or "").split("\n\n")
    parts = [
        answer(found),
        f"""Losses are on data never trained on, mean ± standard error over {seeds} seeds; *better* and *worse* are said
where the means differ by more than two standard errors of their difference. Text: {source}. Learning rates: of
{", ".join(f"{rate:g}" for rate in rates)}, and further out where the best was at an end.""",
        "figure:loss",
        f"""*Held-out loss: above against compute, below against updates, with a line at the equal number of updates
({text.updates} and {sums.updates}); in each row at the learning rate that is
best for its comparison. k is {text.k} for characters and {sums.k} for adding.*""",
    ]
    for task, results in found:
        parts += [f"## {task.name.capitalize()}: {task.unit}", rows(results)]
        parts += [f"Equal compute: {task.budget:,} steps, in so many *updates*. Equal updates: {task.updates}."]
    parts += ["*Look-back*: the mean number of steps that a loss reaches, its own included.", protocol, compute, gaps]
    return Page("Does random truncation help?", parts, {"loss": draw(found)})


if __name__ == "__main__":
    publish("random_truncation", run)
