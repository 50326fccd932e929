"""Persistent evolution strategies: a gradient from losses alone, without a derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from chronograd.modes.base import Mode
from chronograd.modes.budget import parse_bytes, spell_bytes

__all__ = ["PES", "parse_pes"]


@dataclass(frozen=True)
class PES(Mode):
    """Persistent evolution strategies: perturb the parameters of many runs, and weigh their losses by what they met.

    N antithetic pairs of particles each run the model along with the data, with states of their own, under the
    parameters w + eps and w - eps. Each pair draws new noise eps ~ N(0, sigma^2) every ``unroll`` steps and sums up
    what it has met, xi = sum of eps since the stream began::

        g = 1 / (2 sigma^2 N) sum_i (L_i(+) - L_i(-)) xi_i

    With ``reuse_noise`` one eps lasts as long as the stream, and xi_i = eps_i (NRES). With ``analytic`` the losses' own
    gradient p within the current unroll comes from autograd on the run without noise, and only what lies before it from
    the particles (PES-Analytic; xi without the current eps)::

        g = p + 1 / (2 sigma^2 N) sum_i (L_i(+) - L_i(-) - 2 eps_i . p) (xi_i - eps_i)

    A run without noise goes along: ``gradient.loss`` and ``carry.state`` are its own.

    Truncation: a cut of all rows sets every particle back to the state of the run without noise and xi to the current
    eps (with ``reuse_noise``, draws a new one). So ``Chunks(k)`` with ``unroll=k`` is the ordinary truncated ES, with
    the bias of truncated backpropagation. A row that resets starts all its particles from ``state=None`` and its own xi
    at the current eps. Noise lies on the grid of stream positions and is a function of the seed and of it, never of
    calls, devices or row ids: all rows share a particle's parameters.

    Bias: none for the smoothed loss E L(w + eps), each unroll with a noise of its own (``smoothed``); towards the
    loss's own gradient of order sigma^2, none where it is quadratic. With ``analytic`` p is not smoothed, which leaves
    a difference of that order to both. Variance: of order P / N; the pairs cancel whatever is even in the noise; for
    PES it grows with the number of unrolls since the stream, reset or cut, by NRES less where later losses resemble
    earlier ones. Fixed parameters are assumed: after an optimizer's step states and noise are those of the old ones.

    Cost for P parameters, S numbers of state: 2 N runs forward and N P for each unroll in time, 2 N S B + 2 N P numbers
    of memory, whatever the length of the stream; another N P for each group of rows that began at another unroll
    (nothing for them with ``reuse_noise``). Particles are mapped by ``torch.func.vmap``, as many at once as fit in the
    processor's cache; built-in layers take plain torch there, or their kernels particle by particle where steps are
    many and large. What ``vmap`` cannot follow (writing in place, Python's branches on values) runs particle by
    particle.

    Takes any model of the contract, with or without derivatives (``torch.no_grad``, sign, argmax; not with
    ``analytic``). Random numbers that the model draws are the same for all particles.

    When not to use it: where the loss has derivatives that are worth something, a walk back costs two or three runs and
    has no variance. It pays where they explode (chaotic recurrences: smoothing tames them) or do not exist, and where
    parameters are few.

    Known gaps: a parameter that no loss reaches has noise for its gradient, so freeze it; a loss sees perturbed
    parameters only through the model's attributes (``model.readout.weight``), not through tensors taken from it before;
    rows frozen by ``lengths`` go on collecting noise, which adds variance and no bias; ``analytic`` needs calls that
    end on the grid of ``unroll``.

    Args:
        particles: antithetic pairs N; 2 N particles run.
        sigma: standard deviation of the noise, of all parameters alike.
        unroll: steps with the same noise; with ``reuse_noise`` it changes nothing.
        reuse_noise: one noise for the whole stream, or from the last cut on (NRES).
        analytic: take the gradient within the current unroll from autograd; not with ``reuse_noise``.
        limit: bytes that particles and their noise may take.

    Raises:
        ValueError: here, for numbers that make no sense. In the call, in one line: where particles would take more than
            ``limit``; under ``RandomTruncation`` and windows that overlap; for models that hide their steps; a carry
            of other settings; with ``analytic``, losses without a derivative and calls off the grid of ``unroll``.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.LinearRNN(2, 3).double(), torch.randn(20, 4, 2, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.sign().mean(-1)  # no derivative
    >>> mode, carry, total = cg.PES(particles=50, sigma=0.1, unroll=5), cg.Carry.start(4, seed=1), None
    >>> for step in x.split(1):
    ...     gradient, carry = cg.value_and_grad(model, loss_fn, step, None, carry, mode=mode)
    ...     total = gradient if total is None else total + gradient
    >>> whole, _ = cg.value_and_grad(model, loss_fn, x, None, seed=1, mode=mode)
    >>> all(torch.allclose(total.grads[name], whole.grads[name], rtol=1e-10) for name in whole.grads)
    True
    >>> mode.spec()
    'pes:50,0.1,5'

    References: Vicol, Metz and Sohl-Dickstein 2021 (PES, PES-Analytic); Li et al. 2023 (NRES); Metz et al. 2019
    (truncated ES); Salimans et al. 2017 (ES).
    """

    particles: int
    sigma: float
    unroll: int = 1
    reuse_noise: bool = False
    analytic: bool = False
    limit: int = 2 * 10**9

    name = "pes"
    exact = False
    walks = True
    random = True

    def __post_init__(self) -> None:
        for name, what in (("particles", "pairs"), ("unroll", "steps"), ("limit", "bytes")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"PES: {name} must be a number of {what}, at least 1, not {value!r}")
        number = isinstance(self.sigma, int | float) and not isinstance(self.sigma, bool)
        if not number or not 0 < self.sigma < math.inf:
            raise ValueError(f"PES: sigma must be a number above 0 and finite, not {self.sigma!r}")
        for name in ("reuse_noise", "analytic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"PES: {name} must be True or False, not {getattr(self, name)!r}")
        if self.reuse_noise and self.analytic:
            raise ValueError(
                "PES: analytic splits the noise of the current unroll from that of before, and with reuse_noise there "
                "is one noise for all; leave one of them out"
            )

    @property
    def online(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it needs no more than one step at a time: ``analytic`` walks back over each unroll."""
        return self.unroll == 1 or not self.analytic

    @property
    def row(self) -> str:
        return "evolution"

    @property
    def smoothed(self) -> bool:
        return not self.analytic

    @property
    def setting(self) -> str:
        """What a carry's particles depend on: the mode as text, without its limit."""
        words = [str(self.particles), repr(float(self.sigma))]
        words += [] if self.unroll == 1 else [str(self.unroll)]
        words += ["reuse"] if self.reuse_noise else []
        words += ["analytic"] if self.analytic else []
        return ":".join([self.name, ",".join(words)])

    def spec(self) -> str:
        """``pes:100,0.1``, ``pes:100,0.1,5,analytic,512MB``: what is the default is left out."""
        return self.setting + ("" if self.limit == type(self).limit else f",{spell_bytes(self.limit)}")

    def walk(self, onward: Any, section: dict[str, Any]) -> Any:
        from .walk import EvolutionWalk

        return EvolutionWalk(self, onward, section)


def parse_pes(words: list[str]) -> PES:
    """The mode from the words after ``pes:``: numbers in order, the others anywhere after them.

    Raises:
        ValueError: a word that is none of them, or numbers that are missing.

    >>> parse_pes(["100", "0.1", "reuse"])
    PES(particles=100, sigma=0.1, unroll=1, reuse_noise=True, analytic=False, limit=2000000000)
    """
    given: dict[str, Any] = {}
    numbers: list[str] = []
    for word in words:
        if word in ("reuse", "analytic"):
            given["reuse_noise" if word == "reuse" else word] = True
        elif word[-1:] in "bB" and word[:1].isdigit():
            given["limit"] = parse_bytes(word)
        else:
            numbers.append(word)
    readers = {"particles": int, "sigma": float, "unroll": int}
    if not 2 <= len(numbers) <= 3:
        raise ValueError(f"PES: {', '.join(numbers) or 'nothing'} is not PARTICLES,SIGMA or PARTICLES,SIGMA,UNROLL")
    for (name, reader), word in zip(readers.items(), numbers):
        try:
            given[name] = reader(word)
        except ValueError:
            raise ValueError(f"PES: {name} must be a number, not {word!r}") from None
    return PES(**given)
