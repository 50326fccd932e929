"""The other side of ``scan.py``: it needs jax and numpy, neither torch nor chronograd.

The scan is the good one: the inputs of all steps are projected before it in one product, and forward and backward are
one compiled function of weights, inputs and cotangent that gives the gradients of weights and inputs. Each line of
standard input is ``prepare LAYER FOLDER`` (weights, inputs and cotangent are in FOLDER/given.npz, the gradients go to
FOLDER/found.npz) or ``go``, which is answered by the seconds of one call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np


def rnn(weights, x):
    w = weights["weight_hh_l0"].T
    drive = x @ weights["weight_ih_l0"].T + (weights["bias_ih_l0"] + weights["bias_hh_l0"])

    def step(h, a):
        h = jnp.tanh(a + h @ w)
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], w.shape[0])), drive)[1]


def gru(weights, x):
    w, bias = weights["weight_hh_l0"].T, weights["bias_hh_l0"]
    drive = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]

    def step(h, a):
        ar, az, an = jnp.split(a, 3, axis=-1)
        ur, uz, un = jnp.split(h @ w + bias, 3, axis=-1)
        r, z = jax.nn.sigmoid(ar + ur), jax.nn.sigmoid(az + uz)
        n = jnp.tanh(an + r * un)
        h = n + z * (h - n)
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], w.shape[0])), drive)[1]


def lstm(weights, x):
    w = weights["weight_hh_l0"].T
    drive = x @ weights["weight_ih_l0"].T + (weights["bias_ih_l0"] + weights["bias_hh_l0"])

    def step(state, a):
        h, c = state
        i, f, g, o = jnp.split(a + h @ w, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], w.shape[0]))
    return jax.lax.scan(step, (zeros, zeros), drive)[1]


def compiled(outputs):
    """Forward and backward as one function: (weights, x, cotangent) -> the gradients of weights and x."""

    def total(weights, x, cotangent):
        return jnp.vdot(outputs(weights, x), cotangent)

    return jax.jit(jax.grad(total, argnums=(0, 1)))


def prepare(name: str, folder: Path):
    """The function of a layer with its arguments; one call has been made."""
    with np.load(folder / "given.npz") as given:
        parts = {each: jnp.asarray(given[each]) for each in given.files}
    x, cotangent = parts.pop("inputs"), parts.pop("cotangent")
    function = compiled({"RNN": rnn, "GRU": gru, "LSTM": lstm}[name])
    gradients, of_x = jax.block_until_ready(function(parts, x, cotangent))
    np.savez(folder / "found.npz", inputs=of_x, **gradients)
    return lambda: jax.block_until_ready(function(parts, x, cotangent))


def main() -> None:
    print(jax.__version__, flush=True)
    run = None
    for line in sys.stdin:
        if line.startswith("go"):
            assert run is not None
            start = perf_counter()
            run()
            answer = repr(perf_counter() - start)
        else:
            _, name, folder = line.split()
            run = prepare(name, Path(folder))
            answer = "ready"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
