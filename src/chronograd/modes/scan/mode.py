"""The mode ``Scan``: plain numbers, loads without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from chronograd.modes.base import Mode
from chronograd.modes.budget import parse_bytes, spell_bytes

__all__ = ["FORWARD", "Scan", "parse_scan"]

Forward = Literal["newton", "quasi", "loop"]
FORWARD: tuple[str, ...] = get_args(Forward)


@dataclass(frozen=True)
class Scan(Mode):
    """In parallel over time: O(log T) steps one after the other, where a walk takes T.

    Linear and diagonal recurrences, forward and back, are an associative scan (E5)::

        a_t = b_t + c_t a_{t-1}        (c', b') after (c, b) = (c' c, c' b + b')

    Nonlinear cells are solved over the whole sequence by Newton's method, one scan for each iteration; the way back is
    one more scan, of the Jacobians J_t = dh_t/dh_{t-1} and gates, and the gradients of all parameters are then computed
    for all steps at once::

        h_t <- f(x_t, h_{t-1}^old) + J_t (h_{t-1} - h_{t-1}^old)
        delta_t = a_t dl_t/dh_t + xi_{t+1} J_{t+1}^T delta_{t+1}

    Exact for the terms that the truncation keeps, to ``tolerance``. Takes models whose recurrent loops can be seen:
    layers of torch or ours, however deep inside, and cells in ``cg.Recurrent``; float32 and float64, complex for
    ``cg.DiagonalRNN``; under autocast loops keep the precision of the weights. Afterwards ``gradient.how`` says for
    each loop how it was computed, in how many iterations, and how far it was from the end before each. A cell of
    your own is called in each iteration, with all steps as rows of one batch; it draws no random numbers, and what
    it writes into buffers moves each time. Where products of coefficients overflow and the states do not, the loop is
    run, and ``gradient.how`` says so.

    When not to use it: on a few cores. A scan does two to three times the work of a loop (n^3 for each step where
    Jacobians are full) and pays only where many processors share it, so on a CPU linear and diagonal layers take the
    kernels' loop, and say so in ``gradient.how``. Nor for chaotic recurrences (a positive Lyapunov exponent): Newton's
    method then needs about as many iterations as there are steps, and is refused.

    Args:
        forward: ``"newton"`` with full Jacobians: few iterations, T B n^2 numbers for a state of n. ``"quasi"`` with
            their diagonals alone: more iterations, T B n numbers; the way back is then solved by iteration too.
            ``"loop"``: the states by the ordinary loop, and only the way back by a scan of full Jacobians. The
            Jacobian of ``cg.ELSTM`` is its diagonal, so that all three take T B n numbers and the first two are one.
        always: also scan where the kernels' loop is faster: linear and diagonal layers on a CPU.
        iterations: how many Newton may take.
        tolerance: states are done when no number of a row's state changes by more than this part of its largest value
            over time, and every one is at every step as near to f of the state before, relative to its own size there
            or but for rounding; None is eps^(3/4): 1.8e-12 in float64, 6.4e-6 in float32.
        limit: bytes that full Jacobians may take, or where rows end early the powers of the weight of ``cg.LinearRNN``.

    Raises:
        ValueError: here, for numbers that make no sense. In the call, in one line: where the method does not converge,
            with the growth that was measured; where Jacobians take more than ``limit``; for models whose loops cannot
            be seen, truncations into windows that overlap, half precision, cells that draw random numbers.

    >>> import torch, chronograd as cg
    >>> _ = torch.manual_seed(0)
    >>> model, x = cg.GRU(3, 4).double(), torch.randn(200, 2, 3, dtype=torch.float64)
    >>> loss_fn = lambda outputs, targets: outputs.square().sum(-1)
    >>> ours, _ = cg.value_and_grad(model, loss_fn, x, None, mode=cg.Scan())
    >>> theirs, _ = cg.value_and_grad(model, loss_fn, x, None)
    >>> all(torch.allclose(ours.grads[name], theirs.grads[name], rtol=1e-10) for name in theirs.grads)
    True
    >>> ours.how[0].how, ours.how[0].iterations < 10
    ('newton', True)
    >>> cg.Scan("quasi", iterations=200).spec()
    'scan:quasi,200'

    References: Blelloch 1990 (scans); Martin and Cundy 2018 (linear recurrences); Lim et al. 2024 (DEER: Newton over
    the sequence); Gonzalez et al. 2024 (quasi-DEER: diagonals); Wang et al. 2020 (BPPSA: the way back as a scan).
    """

    name = "scan"
    exact = True
    online = False

    forward: Forward = "newton"
    always: bool = False
    iterations: int = 100
    tolerance: float | None = None
    limit: int = 2 * 10**9

    def __post_init__(self) -> None:
        if self.forward not in FORWARD:
            raise ValueError(f"Scan: forward must be one of {', '.join(FORWARD)}, not {self.forward!r}")
        if not isinstance(self.always, bool):
            raise ValueError(f"Scan: always must be True or False, not {self.always!r}")
        for name in ("iterations", "limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Scan: {name} must be a whole number of at least 1, not {value!r}")
        number = isinstance(self.tolerance, int | float) and not isinstance(self.tolerance, bool)
        if self.tolerance is not None and not (number and 0 < self.tolerance < math.inf):
            raise ValueError(f"Scan: tolerance must be above 0 and finite, or None, not {self.tolerance!r}")

    def spec(self) -> str:
        """Only what is not the default: ``scan``, ``scan:quasi,200``, ``scan:always,1e-08,512MB``."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        other = {field.name: given[field.name] for field in fields(self) if given[field.name] != field.default}
        words = []
        for name, value in other.items():
            text = {"always": "always", "tolerance": repr(float(value)) if name == "tolerance" else ""}.get(name)
            words.append(spell_bytes(value) if name == "limit" else text or str(value))
        return ":".join([self.name, ",".join(words)]) if words else self.name

    def engine(self) -> Any:
        """What the recurrent loops of a model are handed to, for one call."""
        from .engine import ParallelEngine

        return ParallelEngine(self)


def parse_scan(words: list[str]) -> Scan:
    """The mode from the words after ``scan:``, in any order.

    Raises:
        ValueError: a word that is none of them, or says again what another said.

    >>> parse_scan(["quasi", "200"])
    Scan(forward='quasi', always=False, iterations=200, tolerance=None, limit=2000000000)
    """
    given: dict[str, Any] = {}
    for word in words:
        name, value = _read(word)
        if name in given:
            raise ValueError(f"Scan: {word!r} says again what {name} is")
        given[name] = value
    return Scan(**given)


def _read(word: str) -> tuple[str, Any]:
    if word in FORWARD:
        return "forward", word
    if word == "always":
        return "always", True
    try:
        if word[-1:] in "bB":
            return "limit", parse_bytes(word)
        return ("iterations", int(word)) if word.lstrip("+-").isdigit() else ("tolerance", float(word))
    except ValueError:
        raise ValueError(
            f"Scan: {word!r} is none of {', '.join(FORWARD)}, always, a number of iterations, a tolerance such as "
            "1e-8, or bytes such as 512MB"
        ) from None
