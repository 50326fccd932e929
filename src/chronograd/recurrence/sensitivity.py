r"""How a state depends on the parameters of every step before it: E4, E5, E6 and E7 of the section, as code.

For h_t = f(x_t, h_{t-1}, w), the parameters act on h_t directly and through h_{t-1}. With the two partial
derivatives of each step, b_t = df_t/dw and c_t = df_t/dh_{t-1} (the Jacobian J_t), the total derivative a_t =
dh_t/dw obeys

    E4   dh_t/dw = df_t/dw + df_t/dh_{t-1} dh_{t-1}/dw                  `forward_sensitivity`
    E5   a_t = b_t + c_t a_{t-1}  =>  a_t = b_t + sum_{i<t} (c_t c_{t-1} ... c_{i+1}) b_i + (c_t ... c_1) a_0
                                                                        `recurrence`, `closed_sum`
    E6   dh_t/dw = df_t/dw + sum_{i<t} (prod_{j=i+1..t} df_j/dh_{j-1}) df_i/dw      `unrolled_sensitivity`
    E7   z_t = df_t/dw + xi_t df_t/dh_{t-1} z_{t-1}                     `gated_sensitivity`

`linearize` finds the partial derivatives by torch.func for any differentiable f on flat vectors; everything
after it is linear algebra on them. Index legend: t step, h state unit, p parameter; H of the one and P of the
other.

**What E7 feeds back.** Read as printed in the textbook, the right side of E7 holds the *exact* dh_{t-1}/dw,
not z_{t-1}. Both readings have the right mean, but they are different things:

- fed with z_{t-1} (`gated_sensitivity`): E[z_t] = dh_t/dw wherever E[xi_t | xi_1 .. xi_{t-1}] = 1,
  independent gates in particular. A zero gate ends the sum there: nothing earlier is needed, which is the
  point of truncation, and the gates multiply up along the way, which is where the variance comes from. This
  is what the text describes ("a weighted sum of sequences of varying length"), and what the project's
  RandomTruncation means.
- fed with the exact derivative (`one_gate_sensitivity`): E[z_t] = dh_t/dw for *any* gates of mean 1,
  dependent or not, because each z_t holds a single gate. But it needs the exact derivative that truncation
  was to avoid, so it saves nothing; its variance does not grow with the length of the past.

Where a gate's mean depends on the gates before it the two part: the recursion is then biased, the printed
form is not.

Cost, for one sequence: `linearize` T reverse passes of H rows each and O(T H (H + P)) memory;
`forward_sensitivity` O(T H^2 P) operations (this is RTRL: O(H P) of state, H^2 P per step, whatever is stored
here); `unrolled_sensitivity` O(T^2 H^2 P) operations. Teaching and oracle code: the modes of this project do
not use it.

References: Williams & Zipser, "A learning algorithm for continually running fully recurrent neural networks",
Neural Computation 1 (1989); Tallec & Ollivier, "Unbiasing truncated backpropagation through time" (2017),
arXiv:1705.08209; Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, section "Backpropagation Through Time".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

__all__ = [
    "Linearization",
    "closed_sum",
    "forward_sensitivity",
    "gated_sensitivity",
    "linearize",
    "one_gate_sensitivity",
    "recurrence",
    "unrolled_sensitivity",
]

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Linearization:
    """The states of one run and the partial derivatives of each step there, for one sequence or for B rows.

    `states` (T, [B,] H) is h_1 .. h_T; `partial_w` (T, [B,] H, P) is df_t/dw with h_{t-1} held fixed;
    `partial_h` (T, [B,] H, H) is df_t/dh_{t-1}, entry [i, j] how unit i answers to unit j.
    """

    states: Tensor
    partial_w: Tensor
    partial_h: Tensor


def linearize(f: Step, xs: Tensor, h0: Tensor, w: Tensor) -> Linearization:
    """Run h_t = f(x_t, h_{t-1}, w) and take df_t/dw and df_t/dh_{t-1} at every step, by torch.func.jacrev.

    Args:
        f: any differentiable function of flat vectors, f(x (D,), h (H,), w (P,)) -> h (H,).
        xs: inputs, (T, D), or (T, B, D) for B rows that share w.
        h0: the state before the first step, (H,), or (B, H) with rows.
        w: the parameters, flat, (P,).

    Returns:
        States and partial derivatives, detached from any graph.

    Raises:
        ValueError: a shape does not fit, or f returns another shape than its state's.

    >>> step = lambda x, h, w: w * h
    >>> lin = linearize(step, torch.zeros(3, 1), torch.tensor([0.5]), torch.tensor([2.0]))
    >>> lin.states.flatten().tolist(), lin.partial_w.flatten().tolist()
    ([1.0, 2.0, 4.0], [0.5, 1.0, 2.0])
    """
    if w.dim() != 1:
        raise ValueError(f"w must be one flat vector (P,), got shape {tuple(w.shape)}; flatten the parameters first")
    if xs.dim() not in (2, 3) or xs.shape[0] == 0:
        raise ValueError(f"xs must be (T, D) or (T, B, D) with T >= 1, got shape {tuple(xs.shape)}")
    if h0.dim() != xs.dim() - 1 or h0.shape[:-1] != xs.shape[1:-1]:
        wanted = "(H,)" if xs.dim() == 2 else f"(B, H) with B = {xs.shape[1]}"
        raise ValueError(f"h0 must be {wanted} to go with xs of shape {tuple(xs.shape)}, got shape {tuple(h0.shape)}")

    def checked(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        out = f(x, h, w)
        if out.shape != h.shape:
            raise ValueError(f"f must return a state of shape {tuple(h.shape)}, it returned {tuple(out.shape)}")
        return out

    step, partials = checked, jacrev(checked, argnums=(1, 2))
    if xs.dim() == 3:
        step, partials = vmap(step, in_dims=(0, 0, None)), vmap(partials, in_dims=(0, 0, None))
    states, partial_w, partial_h = [], [], []
    with torch.no_grad():
        h = h0
        for x in xs:
            by_h, by_w = partials(x, h, w)
            h = step(x, h, w)
            states.append(h)
            partial_w.append(by_w)
            partial_h.append(by_h)
        return Linearization(torch.stack(states), torch.stack(partial_w), torch.stack(partial_h))


def recurrence(b: Tensor, c: Tensor, a0: Tensor | None = None) -> Tensor:
    """Step through a_t = b_t + c_t a_{t-1} (the left side of E5).

    Args:
        b: (T, ...). With scalar c, any shape; with matrix c, vectors (T, ..., n) or matrices (T, ..., n, m).
        c: scalars (T,), or matrices (T, ..., n, n) whose leading dimensions are b's.
        a0: the value before the first step, of the shape of b[0]; None means zero, as in the section.

    Returns:
        a_1 .. a_T, of the shape of b. O(T) products.

    Raises:
        ValueError: the shapes do not fit.

    >>> recurrence(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([9.0, 0.5, 2.0])).tolist()
    [1.0, 1.5, 4.0]
    """
    _require_recurrence(b, c, a0)
    a, values = torch.zeros_like(b[0]) if a0 is None else a0, []
    for b_t, c_t in zip(b, c):
        a = b_t + _apply(c_t, a)
        values.append(a)
    return torch.stack(values)


def closed_sum(b: Tensor, c: Tensor, a0: Tensor | None = None, reach: int | None = None) -> Tensor:
    """The general solution of a_t = b_t + c_t a_{t-1}, written as a sum (the right side of E5).

        a_t = b_t + sum_{i=1}^{t-1} (c_t c_{t-1} ... c_{i+1}) b_i  +  (c_t ... c_1) a_0

    With matrices the order of the product matters: the latest c stands on the left.

    Args:
        b, c, a0: as for `recurrence`.
        reach: keep only the last `reach` terms b_t, b_{t-1}, ...; None keeps all. This is the section's
            truncated sum: the term that would hold a_{t-reach} is dropped (the window k1 = 1, k2 = reach of
            this project).

    Returns:
        a_1 .. a_T, of the shape of b. Each product is formed for each t anew, O(T^2) products.

    Raises:
        ValueError: the shapes do not fit, or reach < 1.

    >>> closed_sum(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([9.0, 0.5, 2.0])).tolist()
    [1.0, 1.5, 4.0]
    >>> closed_sum(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([9.0, 0.5, 2.0]), reach=2).tolist()
    [1.0, 1.5, 3.0]
    """
    _require_recurrence(b, c, a0)
    if reach is not None and reach < 1:
        raise ValueError(f"reach is the number of terms kept and must be at least 1, got {reach}")
    values = []
    for t in range(len(b)):
        a, product = b[t], c[t]
        first = 0 if reach is None else max(0, t - reach + 1)
        for i in range(t - 1, first - 1, -1):
            a = a + _apply(product, b[i])
            product = product @ c[i] if c.dim() > 1 else product * c[i]
        if a0 is not None and (reach is None or t < reach):
            a = a + _apply(product, a0)  # by now the product runs down to c_1
        values.append(a)
    return torch.stack(values)


def forward_sensitivity(lin: Linearization, dh0_dw: Tensor | None = None) -> Tensor:
    """dh_t/dw for every t by the forward recursion (E4): dh_t/dw = df_t/dw + df_t/dh_{t-1} dh_{t-1}/dw.

    Args:
        lin: what `linearize` returned.
        dh0_dw: ([B,] H, P), where the initial state depends on w; None means it does not.

    Returns:
        (T, [B,] H, P).

    >>> lin = linearize(lambda x, h, w: w * h, torch.zeros(3, 1), torch.tensor([0.5]), torch.tensor([2.0]))
    >>> forward_sensitivity(lin).flatten().tolist()          # h_t = h_0 w^t, so dh_t/dw = t h_0 w^(t-1)
    [0.5, 2.0, 6.0]
    """
    return recurrence(lin.partial_w, lin.partial_h, dh0_dw)


def unrolled_sensitivity(lin: Linearization, dh0_dw: Tensor | None = None, reach: int | None = None) -> Tensor:
    """dh_t/dw for every t by the unrolled sum (E6), optionally cut after `reach` terms.

        dh_t/dw = df_t/dw + sum_{i=1}^{t-1} (prod_{j=i+1}^{t} df_j/dh_{j-1}) df_i/dw

    Args:
        lin: what `linearize` returned.
        dh0_dw: ([B,] H, P), or None where the initial state does not depend on w.
        reach: keep this many terms, the latest; None keeps all (see `closed_sum`).

    Returns:
        (T, [B,] H, P); with reach=None equal to `forward_sensitivity`.

    The example of the truncated sum, x_{t+1} = w x_t with w = 0.2 and x_0 = 0.9: in full, then cut to two
    terms, to one.

    >>> lin = linearize(lambda x, h, w: w * h, torch.zeros(3, 1), torch.tensor([0.9]), torch.tensor([0.2]))
    >>> [round(unrolled_sensitivity(lin, reach=k)[-1].item(), 3) for k in (None, 2, 1)]
    [0.108, 0.072, 0.036]
    """
    return closed_sum(lin.partial_w, lin.partial_h, dh0_dw, reach)


def gated_sensitivity(lin: Linearization, gates: Tensor) -> Tensor:
    """The gated recursion (E7), fed with its own last value: z_t = df_t/dw + xi_t df_t/dh_{t-1} z_{t-1}.

    Unbiased, E[z_t] = dh_t/dw, where E[xi_t | xi_1 .. xi_{t-1}] = 1; the module's text compares it with the
    printed form.

    Args:
        lin: what `linearize` returned, for one sequence or for B rows.
        gates: xi, (T,), or (T, B) with one column per row. Where `lin` is a single sequence, the columns are
            B draws of the gates over that one sequence. gates[0] multiplies z_0 = 0 and has no effect.

    Returns:
        (T, H, P) for a single sequence with gates (T,), else (T, B, H, P).

    Raises:
        ValueError: the gates' shape does not fit.

    >>> lin = linearize(lambda x, h, w: w * h, torch.zeros(3, 1), torch.tensor([0.5]), torch.tensor([2.0]))
    >>> gated_sensitivity(lin, torch.tensor([1.0, 0.0, 1.0])).flatten().tolist()      # cut before step 2
    [0.5, 1.0, 4.0]
    """
    b, c = _gated(lin, gates)
    return recurrence(b, c)


def one_gate_sensitivity(lin: Linearization, gates: Tensor) -> Tensor:
    """E7 as printed, the exact derivative on the right: z_t = df_t/dw + xi_t df_t/dh_{t-1} dh_{t-1}/dw.

    Unbiased for any gates of mean 1, dependent or not, but it needs the exact dh_{t-1}/dw and so saves
    nothing: not a way to truncate. It is here so that the two readings of E7 can be compared.

    Args:
        lin: what `linearize` returned.
        gates: xi, (T,) or (T, B), as for `gated_sensitivity`.

    Returns:
        (T, H, P) or (T, B, H, P), as for `gated_sensitivity`.

    >>> lin = linearize(lambda x, h, w: w * h, torch.zeros(3, 1), torch.tensor([0.5]), torch.tensor([2.0]))
    >>> one_gate_sensitivity(lin, torch.tensor([1.0, 0.0, 1.0])).flatten().tolist()  # step 3 sees no cut
    [0.5, 1.0, 6.0]
    """
    b, c = _gated(lin, gates)
    exact = forward_sensitivity(lin)
    before = torch.cat((torch.zeros_like(exact[:1]), exact[:-1]))
    if before.dim() < b.dim():
        before = before.unsqueeze(1)
    return b + c @ before


def _gated(lin: Linearization, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Partial derivatives spread over the gates' columns, the recurrent one multiplied by them."""
    steps, rows = lin.states.shape[0], lin.states.shape[1:-1]
    fits = (
        gates.dim() in (1, 2) and gates.shape[0] == steps and (gates.dim() == 1 or not rows or gates.shape[1:] == rows)
    )
    if not fits:
        wanted = f"({steps},) or ({steps}, {rows[0]})" if rows else f"({steps},) or ({steps}, B)"
        raise ValueError(f"gates must be (T,) or (T, B), here {wanted}; got shape {tuple(gates.shape)}")
    b, c = lin.partial_w, lin.partial_h
    if gates.dim() == 2 and not rows:
        b, c = b.unsqueeze(1), c.unsqueeze(1)
    xi = gates.reshape(gates.shape + (1,) * (c.dim() - gates.dim()))
    c = xi * c
    return b.expand(c.shape[:-1] + b.shape[-1:]), c


def _apply(c: Tensor, a: Tensor) -> Tensor:
    """c a, for a scalar or a matrix c and a scalar, vector or matrix a."""
    if c.dim() == 0:
        return c * a
    return (c @ a.unsqueeze(-1)).squeeze(-1) if a.dim() == c.dim() - 1 else c @ a


def _require_recurrence(b: Tensor, c: Tensor, a0: Tensor | None) -> None:
    shapes = f"b {tuple(b.shape)}, c {tuple(c.shape)}"
    if b.dim() == 0 or c.dim() == 0 or b.shape[0] == 0 or b.shape[0] != c.shape[0]:
        raise ValueError(f"b and c need one first dimension T >= 1, the steps; got {shapes}")
    if c.dim() == 2 or (c.dim() > 2 and c.shape[-1] != c.shape[-2]):
        raise ValueError(f"c must be scalars (T,) or square matrices (T, ..., n, n); got {shapes}")
    if c.dim() > 2 and b.shape != c.shape[:-1] and b.shape[:-1] != c.shape[:-1]:
        raise ValueError(f"with matrices c (T, ..., n, n), b must be (T, ..., n) or (T, ..., n, m); got {shapes}")
    if a0 is not None and a0.shape != b.shape[1:]:
        raise ValueError(f"a0 must have the shape of b[0], {tuple(b.shape[1:])}; got {tuple(a0.shape)}")
