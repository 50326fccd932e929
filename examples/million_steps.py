"""The exact gradient of a sequence of a million steps, in 256 MB: one changed argument.

    python examples/million_steps.py [STEPS]

Stored in full, the states and gates of this layer take 1.5 GB. Under ``mode=cg.Reverse("256MB")`` nothing of that size
exists: states are kept at some steps, what lies between them is run again, and the data is read as it is needed.
"""

import sys
from time import perf_counter

import torch

import chronograd as cg

STEPS, CHUNK, FEATURES = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, 10_000, 32


class Signal:
    """A noisy signal, made chunk by chunk; any chunk can be asked for again. A mapped file would do as well:
    ``cg.Streamed(numpy.load("signal.npy", mmap_mode="r"))``.
    """

    def __len__(self) -> int:
        return -(-STEPS // CHUNK)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        steps = min(CHUNK, STEPS - number * CHUNK)
        noise = torch.randn(steps, 1, FEATURES, generator=torch.Generator().manual_seed(number))
        return noise, noise.mean(-1, keepdim=True).cumsum(0) / 10  # (T, B, d), and what is to be told from it


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = cg.GRU(FEATURES, 64), torch.nn.Linear(64, 1)

    def forward(self, x, state=None):
        outputs, state = self.layer(x, state)
        return self.readout(outputs), state


def loss_fn(outputs, targets):
    return (outputs - targets).square().mean(-1)


def peak_megabytes() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


torch.manual_seed(0)
model = Model()
inputs, targets = cg.Streamed(Signal()).unzip()
cg.value_and_grad(model, loss_fn, inputs[:CHUNK], targets[:CHUNK], mode=cg.Reverse("256MB"))  # warm up
before, begun = peak_megabytes(), perf_counter()

mode = cg.Reverse("256MB")  # all that changes: it was cg.Reverse()
gradient, carry = cg.value_and_grad(model, loss_fn, inputs, targets, mode=mode)

took, more = perf_counter() - begun, peak_megabytes() - before
print(f"{carry.stream.position:,} steps in {took:.1f} s, {more:.0f} MB more than a call of {CHUNK:,}")
print(f"loss {gradient.loss:.4f}, gradient norm {gradient.norm():.4f}")
