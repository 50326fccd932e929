"""Assertions for the tests of your own models and estimators: gradients that match, are unbiased, survive a restart.

Each raises ``AssertionError`` in one line that says which parameter is off, by how much, and what was allowed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .carry import Carry
from .estimate import Gradient
from .gradient import value_and_grad
from .modes import Mode, Reverse
from .recurrence.states import leaves, tree_map
from .truncation import Full, Truncation

__all__ = ["assert_gradients_match", "assert_resumable", "assert_unbiased"]

Grads = Gradient | Mapping[str, Tensor]


def assert_gradients_match(ours: Grads, theirs: Grads, tolerance: float = 1e-10) -> None:
    """Two gradients agree, parameter by parameter; a name that one side lacks must be zero on the other.

    Args:
        ours, theirs: a ``Gradient``, or tensors by parameter name.
        tolerance: largest difference allowed, relative to the largest entry of ``theirs`` over all parameters.

    Raises:
        AssertionError: naming the parameter.

    >>> assert_gradients_match({"w": torch.ones(2)}, {"w": torch.ones(2), "unused": torch.zeros(3)})
    >>> assert_gradients_match({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])})
    Traceback (most recent call last):
    AssertionError: gradient of 'w' is off by 1 at [1], where 2e-10 is allowed
    """
    a, b = _named(ours), _named(theirs)
    size = max((float(grad.abs().max()) for grad in b.values() if grad.numel()), default=0.0)
    for name in sorted({*a, *b}):
        one, two = a.get(name), b.get(name)
        known = two if one is None else one
        assert known is not None
        one, two = (torch.zeros_like(known) if part is None else part for part in (one, two))
        if one.shape != two.shape:
            raise AssertionError(f"gradient of {name!r} has shape {tuple(one.shape)}, not {tuple(two.shape)}")
        if not one.numel():
            continue
        error = (one - two).abs()
        at = int(error.nan_to_num(torch.inf).argmax())
        worst, allowed = float(error.flatten()[at]), tolerance * size
        place = [int(i) for i in torch.unravel_index(torch.tensor(at), error.shape)]
        if not worst <= allowed:
            raise AssertionError(
                f"gradient of {name!r} is off by {worst:.3g} at {place}, where {allowed:.3g} is allowed"
            )


def assert_unbiased(
    draw: Callable[[int], Grads],
    exact: Grads,
    draws: int = 100,
    *,
    directions: int = 8,
    errors: float = 4.0,
    seed: int = 0,
) -> None:
    """The mean over draws lies within ``errors`` standard errors of the exact gradient, along a few fixed directions.

    Along directions and not by coordinate: thousands of coordinates would fail by chance. The estimator's variance must
    be finite for this to mean anything.

    Args:
        draw: ``draw(n)`` is the n-th estimate, n = 0, 1, ...
        exact: what its mean should be.
        draws: how many to take, at least 2.
        directions: random directions, the same for the same ``seed``.
        errors: standard errors allowed.

    Raises:
        AssertionError: naming the direction and the distance.

    >>> g = torch.Generator().manual_seed(0)
    >>> assert_unbiased(lambda n: {"w": 1 + torch.randn(3, generator=g)}, {"w": torch.ones(3)})
    """
    if draws < 2:
        raise ValueError(f"assert_unbiased: draws must be at least 2, not {draws}")
    target = _named(exact)
    names = sorted(target)

    def flat(grads: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([(grads[n] if n in grads else torch.zeros_like(target[n])).flatten().double() for n in names])

    goal = flat(target)
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(directions, goal.numel(), generator=generator, dtype=torch.float64)
    found = torch.stack([along @ flat(_named(draw(n))) for n in range(draws)])
    error = found.std(0) / draws**0.5
    distance = (found.mean(0) - along @ goal).abs()
    for number in range(directions):
        away, unit = float(distance[number]), float(error[number])
        # Estimates without noise must hit exactly, up to rounding.
        allowed = errors * unit + 1e-9 * float((along @ goal).abs().max())
        if not away <= allowed:
            raise AssertionError(
                f"along direction {number} the mean of {draws} draws is {away:.3g} from the exact gradient, "
                f"{away / unit if unit else torch.inf:.1f} standard errors where {errors:g} are allowed"
            )


def assert_resumable(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    truncation: Truncation = Full(),  # noqa: B008
    mode: Mode = Reverse(),  # noqa: B008
    chunk: int = 1,
    seed: int = 0,
) -> None:
    """A stream whose carry is written to bytes and read back after every call goes on as if nothing had happened.

    Args:
        model, loss_fn, inputs, targets, truncation, mode: as for ``value_and_grad``.
        chunk: steps of a call.

    Raises:
        AssertionError: naming the step after which loss, gradient or state differ in any bit.

    >>> import chronograd as cg
    >>> loss_fn = lambda outputs, targets: (outputs - targets).square().mean(-1)
    >>> x = torch.randn(6, 2, 3)
    >>> assert_resumable(cg.GRU(3, 3), loss_fn, x, x, truncation=cg.Window(1, 3))
    """
    steps, rows = leaves(inputs)[0].shape[:2]
    plain = written = Carry.start(rows, seed=seed)
    for begin in range(0, steps, chunk):
        x, y = (tree_map(lambda z, b=begin: z[b : b + chunk], tree) for tree in (inputs, targets))
        generator = torch.get_rng_state()
        one, plain = value_and_grad(model, loss_fn, x, y, plain, truncation=truncation, mode=mode)
        torch.set_rng_state(generator)
        two, written = value_and_grad(model, loss_fn, x, y, _through_bytes(written), truncation=truncation, mode=mode)
        same = torch.equal(one.loss, two.loss) and one.grads.keys() == two.grads.keys()
        same = same and all(torch.equal(one.grads[name], two.grads[name]) for name in one.grads)
        same = same and all(torch.equal(a, b) for a, b in zip(leaves(plain.state), leaves(written.state)))
        if not same:
            raise AssertionError(
                f"after step {begin + chunk} the stream that was written and read back differs from the other"
            )


def _named(grads: Grads) -> Mapping[str, Tensor]:
    return grads.grads if isinstance(grads, Gradient) else grads


def _through_bytes(carry: Carry) -> Carry:
    file = io.BytesIO()
    torch.save(carry.state_dict(), file)
    file.seek(0)
    return Carry.from_state_dict(torch.load(file, weights_only=True))
