"""What a model draws from and writes into while it runs: torch's generators, and its own buffers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chronograd.recurrence.adapters import Recurrence

from .replay import restore, snapshot

__all__ = ["Scene", "Surroundings"]


@dataclass(frozen=True)
class Scene:
    """The states of torch's generators, and the numbers in the buffers that the model writes."""

    random: list[Tensor]
    buffers: list[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.random, *self.buffers))


class Surroundings:
    """Looked at and set back, so that steps run again find what they found the first time."""

    def __init__(self, recurrence: Recurrence) -> None:
        self._places = recurrence.written
        self._last = Scene(snapshot(), self._read())

    def now(self) -> Scene:
        """As they are; the same tensors as the last time where nothing was drawn and nothing written."""
        random, buffers = snapshot(), self._read()
        if not _same(random, self._last.random):
            self._last = Scene(random, self._last.buffers)
        if not _same(buffers, self._last.buffers):
            self._last = Scene(self._last.random, buffers)
        return self._last

    def set(self, scene: Scene) -> None:
        """As they were."""
        restore(scene.random)
        with torch.no_grad():
            for (module, name), value in zip(self._places, scene.buffers):
                buffer = module._buffers[name]
                if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                    module._buffers[name] = value.clone()
                elif not torch.equal(buffer, value):
                    buffer.copy_(value)

    def _read(self) -> list[Tensor]:
        held = (module._buffers[name] for module, name in self._places)
        return [torch.empty(0) if buffer is None else buffer.detach().clone() for buffer in held]


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
