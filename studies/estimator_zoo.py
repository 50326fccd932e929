"""The zoo of estimators against the exact gradient: who is exact, who is wrong by how much, who is noisy by how much.

Question: what does each way to a gradient lose against walking back over everything, and how does that depend on the
look-back and on the number of units?

Protocol: h_t = tanh(W h_{t-1} + U x_t), W ~ N(0, g^2 / n), U ~ N(0, 1/2), two inputs, two outputs o = V h, V ~ N(0,
1/n), loss |o - y|^2 / 2 at each of 50 steps, x and y ~ N(0, 1), float64. The gradient is that of the mean loss with
respect to W and U; V is fixed. Everything is drawn anew for every net, by its number. The gain is g = 1 for every n, at
which gradients fade, but not at once: by what factor a step is measured and told below. g = 1.5 is a counter-example.

Errors are relative to the length of the exact gradient G: bias |E Ghat - G| / |G|, variance E |Ghat - G|^2 / |G|^2 of
one draw on one row. Rows draw each by themselves, so a call with 16 rows of the same sequence is the mean of 16 draws,
and the variance of one is 16 times that of the call. Figures without noise are medians over the nets. Variances are
geometric means over the nets, with the standard error of that mean, which holds both kinds of chance: the draws' and
the nets'. All seeds are fixed.

Two more nets say where an estimator is at home. *Sparse*: each unit hears itself and two others, so that influence
takes some steps to come round. *Leaky*: h_t = 0.9 h_{t-1} + 0.1 tanh(W h_{t-1} + U x_t), which keeps what it has. Both
are cells of one's own in ``cg.Recurrent``, where KF-RTRL, made for plain layers, is refused.

Known gaps: nets at their random start, noise as targets, one length. Whether an estimator learns is another question
than how far off it is (Marschall, Cho and Savin 2020); see the studies of influence balancing and of online learners.

References: Menick et al. 2021 (SnAp); Murray 2019 (RFLO); Tallec and Ollivier 2017 (UORO, ARTBP); Mujika, Meier and
Steger 2018 (KF-RTRL, and that its noise does not grow with n); Cooijmans and Martens 2019 (UORO's does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import torch
from page import Page, publish, table
from torch import Tensor, nn

import chronograd as cg
from chronograd.style import COLOURS, INK, style

T, ROWS, DIRECTIONS = 50, 16, 2
REACHES = (1, 2, 4, 8, 16, 32)
ORANGE, BLUE, GREEN, PINK, SKY, RED, _ = COLOURS
Pair = tuple[Any, Any]
EXACT_PAIR: Pair = (cg.Full(), cg.Reverse())
EXACT: dict[str, Pair] = {"RTRL": (cg.Full(), cg.RTRL()), "Scan": (cg.Full(), cg.Scan(always=True))}
CUT: dict[str, Pair] = {f"window of {k}": (cg.Window(1, k), cg.Reverse()) for k in REACHES}
CUT |= {f"chunks of {k}": (cg.Chunks(k), cg.Reverse()) for k in REACHES[1:]}
LOCAL: dict[str, Pair] = {"RFLO": (cg.Full(), cg.RFLO()), "SnAp(1)": (cg.Full(), cg.SnAp(1))}
LATER: dict[str, Pair] = {f"SnAp({n})": (cg.Full(), cg.SnAp(n)) for n in (2, 3, 4)}
DEFINITE = EXACT | LOCAL | LATER | CUT
CALLED = {"RTRL": "`RTRL()`, given one step a call,", "Scan": "`Scan(always=True)`"}
RANDOM: dict[str, Pair] = {
    "UORO": (cg.Full(), cg.UORO()),
    "KF-RTRL": (cg.Full(), cg.KFRTRL()),
    "random truncation, mean 8": (cg.RandomTruncation(8), cg.Reverse()),
    "the same, polynomial tail": (cg.RandomTruncation(8, tail="polynomial"), cg.Reverse()),
}


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1)


class Cell(nn.Module):
    """A leaky tanh unit each, which hear one another where the mask is 1."""

    mask: Tensor

    def __init__(self, mask: Tensor, gain: float, leak: float) -> None:
        super().__init__()
        n, self.leak = len(mask), leak
        self.register_buffer("mask", mask)
        self.w = nn.Parameter(mask * gain * torch.randn(n, n) / mask.sum(1, keepdim=True).sqrt())
        self.u = nn.Parameter(torch.randn(n, 2) / math.sqrt(2))

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        h = x.new_zeros(len(x), len(self.mask)) if h is None else h
        return (1 - self.leak) * h + self.leak * torch.tanh(h @ (self.w * self.mask).T + x @ self.u.T)


class Layer(nn.Module):
    """A layer of the library, and its fixed readout."""

    def __init__(self, n: int, gain: float = 1.0) -> None:
        super().__init__()
        self.layer, self.readout = cg.RNN(2, n, bias=False), nn.Linear(n, 2, bias=False)
        nn.init.normal_(self.layer.weight_hh_l0, std=gain / math.sqrt(n))
        nn.init.normal_(self.layer.weight_ih_l0, std=1 / math.sqrt(2))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states, state = self.layer(x, state)
        return self.readout(states), state


def sparse(n: int) -> nn.Module:
    mask = torch.eye(n)
    for unit in range(n):
        mask[unit, [(unit + 1 + int(other)) % n for other in torch.randperm(n - 1)[:2]]] = 1
    return cg.Recurrent(Cell(mask, 1.0, 1.0), nn.Linear(n, 2, bias=False))


def leaky(n: int) -> nn.Module:
    return cg.Recurrent(Cell(torch.ones(n, n), 1.0, 0.1), nn.Linear(n, 2, bias=False))


@dataclass(frozen=True)
class Noise:
    """An unbiased estimator on one net: its relative variance, the standard error that the draws leave, and how many
    standard errors the mean of all draws is from the exact gradient along fixed random directions.
    """

    variance: float
    error: float
    distances: tuple[float, ...]


class Net:
    """One random net and its data."""

    def __init__(self, build: Callable[[int], nn.Module], n: int, number: int) -> None:
        torch.manual_seed(1000 * n + number)
        self.model = build(n).double()
        readout: Any = self.model.readout
        readout.weight.requires_grad_(False)
        nn.init.normal_(readout.weight, std=1 / math.sqrt(n))
        self.x, self.y = torch.randn(T, 1, 2).double(), torch.randn(T, 1, 2).double()

        self.seed = 10**6 * n + 10**4 * number
        self.exact = self.gradient(EXACT_PAIR)

    def gradient(self, pair: Pair, rows: int = 1, seed: int = 0, size: int = T) -> Tensor:
        """As one vector, in calls of ``size`` steps."""
        truncation, mode = pair
        carry, total = cg.Carry.start(rows, seed=seed), None
        for x, y in zip(self.x.expand(-1, rows, -1).split(size), self.y.expand(-1, rows, -1).split(size), strict=True):
            found, carry = cg.value_and_grad(self.model, half_square, x, y, carry, truncation=truncation, mode=mode)
            total = found if total is None else total + found
        assert total is not None
        return torch.cat([total.grads[name].flatten() for name in sorted(total.grads)])

    def off(self, pair: Pair) -> tuple[float, float]:
        """Of an estimator without noise: relative bias, and cosine of the angle to the exact gradient."""
        # One step a call, so that all of the past is in the influence: within a call RTRL walks back over its steps.
        found, exact = self.gradient(pair, size=1 if isinstance(pair[1], cg.RTRL) else T), self.exact
        return float((found - exact).norm() / exact.norm()), float(found @ exact / found.norm() / exact.norm())

    def noise(self, name: str, calls: int) -> Noise:
        """Of one that is right in the mean, from ``calls`` calls of 16 draws each."""
        truncation, mode = RANDOM[name]
        assert truncation.unbiased and mode.unbiased
        exact, begin = self.exact, self.seed + 1000 * [*RANDOM].index(name)
        every = [self.gradient(RANDOM[name], ROWS, seed) for seed in range(begin, begin + calls)]
        errors = (torch.stack(every) - exact) / exact.norm()
        squares = ROWS * errors.square().sum(1)
        generator = torch.Generator().manual_seed(0)
        along = errors @ torch.randn(len(exact), DIRECTIONS, generator=generator, dtype=torch.float64)
        distances = along.mean(0).abs() / (along.std(0) / math.sqrt(calls))
        return Noise(float(squares.mean()), float(squares.std()) / math.sqrt(calls), tuple(distances.tolist()))


@dataclass
class Group:
    """Nets of one kind and size, measured: for every estimator one entry a net."""

    n: int
    off: dict[str, list[tuple[float, float]]]
    noise: dict[str, list[Noise]]

    def bias(self, name: str) -> float:
        return median(bias for bias, _ in self.off[name])

    def cosine(self, name: str) -> float:
        return median(cosine for _, cosine in self.off[name])

    def variance(self, name: str) -> tuple[float, float]:
        """Geometric mean over the nets and its standard error."""
        logs = [math.log(found.variance) for found in self.noise[name]]
        mean = math.exp(fmean(logs))
        return mean, mean * stdev(logs) / math.sqrt(len(logs))

    def told(self, name: str) -> str:
        mean, error = self.variance(name)
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{mean:.{digits}f} ± {error:.{digits}f}"

    @property
    def fade(self) -> float:
        """By which factor a step what lies beyond a window shrinks, between windows of 4 and of 16."""
        return (self.bias("window of 16") / self.bias("window of 4")) ** (1 / 12)


def measure(
    build: Callable[[int], nn.Module], n: int, nets: int, calls: int, off: dict[str, Pair], random: Sequence[str]
) -> Group:
    group = Group(n, {name: [] for name in off}, {name: [] for name in random})
    for number in range(nets):
        net = Net(build, n, number)
        for name, pair in off.items():
            group.off[name].append(net.off(pair))
        for name in random:
            group.noise[name].append(net.noise(name, calls))
    return group


def slope(groups: Sequence[Group], name: str) -> tuple[float, float]:
    """Of log variance over log n, by least squares over all nets, and its standard error."""
    points = [(math.log(g.n), math.log(found.variance)) for g in groups for found in g.noise[name]]
    mx, my = fmean(x for x, _ in points), fmean(y for _, y in points)
    across = sum((x - mx) ** 2 for x, _ in points)
    found = sum((x - mx) * (y - my) for x, y in points) / across
    rest = sum((y - my - found * (x - mx)) ** 2 for x, y in points)
    return found, math.sqrt(rest / (len(points) - 2) / across)


def exactness(groups: Sequence[Group]) -> str:
    worst = {name: max(bias for g in groups for bias, _ in g.off.get(name, ())) for name in EXACT}
    assert all(error < 1e-12 for error in worst.values()), worst
    said = " and ".join(f"{CALLED[name]} is off by {_short(error)}" for name, error in worst.items())
    return f"**Exact**: over all nets of this page {said} of the gradient's length at most (1e-12 is allowed)."


def unbiasedness(groups: Sequence[Group], calls: int) -> str:
    every = [d for g in groups for found in g.noise.values() for one in found for d in one.distances]
    beyond = sum(d > 4 for d in every)
    noise = median(one.error / one.variance for g in groups for found in g.noise.values() for one in found)
    return (
        f"**Unbiased**: along {DIRECTIONS} fixed random directions the mean of {calls * ROWS} draws lies within 4 "
        f"standard errors of the exact gradient in {len(every) - beyond} of {len(every)} cases (every random estimator "
        f"on every net), {max(every):.1f} at most; {sum(d > 2 for d in every) / len(every):.1%} are beyond 2, where "
        f"chance has 4.6%. Draws alone leave a variance uncertain by {noise:.0%} on one net (median); nets differ more."
    )


def _short(error: float) -> str:
    return f"{error:.3f}" if error >= 1e-3 else f"{error:.0e}" if error else "0"


def zoo(groups: Sequence[Group]) -> str:
    """The one table."""
    middle = groups[-2]
    rows: list[list[Any]] = []
    for name in middle.off:
        cells = [_short(g.bias(name)) for g in groups]
        rows.append([name, "bias", *cells, f"{middle.cosine(name):.3f}"])
    for name in RANDOM:
        rate, error = slope(groups, name)
        rows.append([name, "variance", *(g.told(name) for g in groups), f"n^({rate:.2f} ± {error:.2f})"])
    head = ["estimator", "", *(f"n = {g.n}" for g in groups), f"cosine at n = {middle.n}; growth of the variance"]
    return table(head, rows)


def others(kinds: dict[str, Group]) -> str:
    first = next(iter(kinds.values()))

    rows = [
        [name, "bias", *(_short(g.bias(name)) if name in g.off else "-" for g in kinds.values())] for name in DEFINITE
    ]
    rows += [
        [name, "variance", *(("-" if name not in g.noise else g.told(name)) for g in kinds.values())] for name in RANDOM
    ]
    return table([f"n = {first.n}", "", *kinds], rows)


def counter(groups: Sequence[Group], more: Sequence[Group]) -> str:
    rows: list[list[Any]] = []
    for gain, listed in (("1", groups), ("1.5", more)):
        rows.append([f"g = {gain}", "fades a step by", *(f"{g.fade:.2f}" for g in listed), ""])
        for name in ("UORO", "KF-RTRL"):
            rate, error = slope(listed, name)
            rows.append(["", f"variance, {name}", *(g.told(name) for g in listed), f"n^({rate:.2f} ± {error:.2f})"])
    return table(["", "", *(f"n = {g.n}" for g in groups), "growth"], rows)


def draw(groups: Sequence[Group], more: Sequence[Group], kinds: dict[str, Group]) -> Any:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(9.2, 7.4), layout="constrained")
        panels = figure.subplots(2, 2)
        for axes, (kind, group) in zip(panels.flat, kinds.items(), strict=False):
            _draw_bias(axes, kind, group)
        _draw_variance(panels[1, 1], groups, more)
    return figure


def _draw_bias(axes: Any, kind: str, group: Group) -> None:
    for what, colour, dash, mark in (("window", BLUE, "-", "o"), ("chunks", ORANGE, "--", "s")):
        points = [(k, group.bias(f"{what} of {k}")) for k in REACHES if f"{what} of {k}" in group.off]
        axes.plot(*zip(*points), color=colour, linestyle=dash, marker=mark, markersize=4, label=f"{what} of K steps")
    axes.axhline(group.bias("RFLO"), color=RED, linestyle=":", label="RFLO")
    later = [(int(name[5:-1]), group.bias(name)) for name in ("SnAp(1)", *LATER)]
    later = [(n, bias) for n, bias in later if bias > 1e-9]
    if len(later) == 1:
        axes.axhline(later[0][1], color=GREEN, linestyle="-.", label="SnAp(1); SnAp(2) is exact")
    else:
        axes.plot(*zip(*later), color=GREEN, marker="D", markersize=5, label="SnAp(K)")
    axes.set(xscale="log", yscale="log", xlabel="K, steps", ylabel="relative bias", title=f"{kind}, n = {group.n}")
    axes.set_xticks(REACHES, [str(k) for k in REACHES])
    axes.set_xticks([], minor=True)
    axes.set_ylim(3e-4, 1.5)
    axes.legend(fontsize=8.5, loc="lower left")


def _draw_variance(axes: Any, groups: Sequence[Group], more: Sequence[Group]) -> None:
    looks = {"UORO": (RED, "o"), "KF-RTRL": (BLUE, "s"), "random truncation, mean 8": (GREEN, "^")}
    for listed, dash, fill in ((groups, "-", "full"), (more, ":", "none")):
        for name, (colour, mark) in looks.items():
            if name not in listed[0].noise:
                continue
            sizes, found = [g.n for g in listed], [g.variance(name) for g in listed]
            axes.errorbar(
                sizes, [mean for mean, _ in found], [error for _, error in found], color=colour, linestyle=dash,
                marker=mark, markersize=5, fillstyle=fill, capsize=2, elinewidth=1,
            )  # fmt: skip
            if listed is groups:
                rate, error = slope(listed, name)
                height = 0.37 * math.exp(fmean(math.log(mean) for mean, _ in found))
                label = f"{name}: n^({rate:.2f} ± {error:.2f})"
                axes.text(
                    math.sqrt(sizes[0] * sizes[-1]), height, label, color=colour, ha="center", va="center", size=9
                )
    axes.text(0.03, 0.93, "full: g = 1, dotted: g = 1.5", transform=axes.transAxes, color=INK, fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="units n", ylabel="relative variance of one draw", ylim=(0.01, 3e3))
    axes.set_xticks([g.n for g in groups], [str(g.n) for g in groups])
    axes.set_xticks([], minor=True)
    axes.set(title="noise by size, dense net")


def findings(groups: Sequence[Group], kinds: dict[str, Group]) -> str:
    """In words."""
    last, middle = groups[-1], kinds["dense"]
    (up, up_error), (flat, flat_error) = slope(groups, "UORO"), slope(groups, "KF-RTRL")
    uoro, kron, cut = (last.variance(name)[0] for name in ("UORO", "KF-RTRL", "random truncation, mean 8"))
    return (
        f"**Noise**: UORO's variance grows as n^({up:.2f} ± {up_error:.2f}), KF-RTRL's as n^({flat:.2f} ± "
        f"{flat_error:.2f}). A step of KF-RTRL costs n times as much, though: the mean of {last.n} draws of UORO has a "
        f"variance of {uoro / last.n:.1f} at n = {last.n}, one draw of KF-RTRL {kron:.1f}. Where the past can be "
        f"walked back, random truncation of mean 8 has {cut:.2g}: gradients fade here, so its weights do not grow far."
        f"\n\n**Bias**: on a dense net of {middle.n} units `SnAp(1)` is off by {middle.bias('SnAp(1)'):.2f}, and "
        f"one-step truncation, which is what RFLO comes to on a plain tanh layer, by {middle.bias('RFLO'):.2f}; a "
        f"window of 4 by {middle.bias('window of 4'):.2f}, of 16 by {_short(middle.bias('window of 16'))}. `SnAp(2)` "
        "and beyond are RTRL there, at its cost. Chunks of K are far worse than windows of K, since the first losses "
        f"after a cut see little: those of 32 are still off by {middle.bias('chunks of 32'):.2f}. Their bias goes "
        "about with the root of the number of cuts here, where targets are noise and what is lost at one cut has "
        "nothing to do with the next."
    )


def elsewhere(kinds: dict[str, Group]) -> str:
    thin, slow = kinds["sparse"], kinds["leaky"]
    steps = ", ".join(f"{thin.bias(name):.2f} with `{name}`" for name in ("SnAp(1)", *LATER))
    beaten = max((k for k in REACHES if slow.bias(f"window of {k}") > slow.bias("SnAp(1)")), default=0)
    chunks = max((k for k in REACHES[1:] if slow.bias(f"chunks of {k}") > slow.bias("SnAp(1)")), default=0)
    return (
        f"On the sparse net each step of SnAp takes a further part of the bias away: {steps}. On the leaky net, whose "
        "units keep what they have for ten steps or so, what a unit knows of itself is worth more: `SnAp(1)` is off by "
        f"{slow.bias('SnAp(1)'):.3f}, less than windows of up to {beaten} steps and chunks of up to {chunks}, and "
        f"needs no past (`RFLO`, which leaves out its own recurrent weight, by {slow.bias('RFLO'):.3f}). Noise is "
        "larger there, since more of the past counts."
    )


def run(quick: bool) -> Page:
    """The zoo of estimators against the exact gradient, on tanh nets of 8 to 64 units."""
    sizes, nets, calls, few = ((6, 12), 2, 8, 6) if quick else ((8, 16, 32, 64), 8, 64, 32)
    groups = [measure(Layer, n, nets, calls, DEFINITE, [*RANDOM]) for n in sizes]
    wide = [measure(lambda n: Layer(n, 1.5), n, nets, calls // 2, DEFINITE, ["UORO", "KF-RTRL"]) for n in sizes]
    slow = {name: pair for name, pair in DEFINITE.items() if name != "Scan"}
    names = [name for name in RANDOM if name != "KF-RTRL"]
    kinds = {"dense": next(g for g in groups if g.n == few)}
    kinds |= {"sparse": measure(sparse, few, nets, calls // 4, slow, names)}
    kinds |= {"leaky": measure(leaky, few, nets, calls // 4, slow, names)}
    every = [*groups, *wide, kinds["sparse"], kinds["leaky"]]
    about = "\n\n".join((__doc__ or "").strip().split("\n\n")[1:])
    parts = [about, "## What came out", exactness(every), unbiasedness(groups, calls), findings(groups, kinds)]
    parts += ["figure:zoo", "## The zoo on a dense net, g = 1", zoo(groups), "## Where memory grows with n"]
    parts += [
        f"At g = 1.5 gradients fade the more slowly the more units there are, by {wide[0].fade:.2f} a step at n = "
        f"{wide[0].n} and by {wide[-1].fade:.2f} at n = {wide[-1].n}, so that an estimate holds more old terms. The "
        f"variance of KF-RTRL then goes as n^({slope(wide, 'KF-RTRL')[0]:.2f} ± {slope(wide, 'KF-RTRL')[1]:.2f}), of "
        f"UORO as n^({slope(wide, 'UORO')[0]:.2f} ± {slope(wide, 'UORO')[1]:.2f}): KF-RTRL's noise stays the same "
        "where memory does.",
        counter(groups, wide),
    ]
    parts += ["## Nets that are sparse, or leak", elsewhere(kinds), others(kinds)]
    return Page("The zoo of estimators against the exact gradient", parts, {"zoo": draw(groups, wide, kinds)})


if __name__ == "__main__":
    publish("estimator_zoo", run)
