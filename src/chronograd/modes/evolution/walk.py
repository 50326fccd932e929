"""Evolution strategies along a stream: where noise changes, where all is cut, and what the losses say of a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chronograd.carry import Piece
from chronograd.kernels import Edges
from chronograd.modes.forward.onward import Onward, Parameters, refuse_bytes
from chronograd.modes.losses import Losses
from chronograd.modes.replay import device_of, reset_gates, split
from chronograd.recurrence.states import detach, leaves

from .history import History
from .mode import PES
from .noise import noise
from .swarm import Swarm

__all__ = ["EvolutionWalk"]

STEPS = 256


class EvolutionWalk:
    """Walks forward from one place where the noise changes, or all rows are cut, to the next (``PES``)."""

    ways: tuple[Any, ...] = ()

    def __init__(self, mode: PES, onward: Onward, section: dict[str, Any]) -> None:
        self.mode, self.onward = mode, onward
        self.block = max(1, STEPS // mode.unroll) * mode.unroll if mode.analytic else STEPS
        self.parameters = Parameters(onward.tally.parameters)
        self.swarm = Swarm(onward.recurrence, self.parameters)
        self.key: int | None = section.get("key")  # of the noise in use: the unroll's number, or where it began
        self.states: list[Tensor] | None = section.get("states")
        self.history = History.read(section) if "sums" in section else None
        self._noise: Tensor | None = None
        self._check(section)

    def section(self) -> dict[str, Any]:
        if self.key is None:
            return {}
        known = {} if self.history is None else self.history.section()
        return {"setting": self.mode.setting, "key": self.key, "states": self.states, **known}

    def through(self, piece: Piece, state: Any, losses: Losses, position: int) -> Any:
        """Take the steps of a piece."""
        self._check_grid(position)
        for begin, end, cut in self._stretches(piece, position):
            part = split(split(piece, end)[0], begin)[1]
            if part.reset is not None and bool(part.reset[0].all()):  # all rows begin, which is a cut
                state, cut, part = None, True, replace(part, reset=_after_first(part.reset))
            state = self._stretch(part, state, losses[begin:end], position + begin, cut)
        return state

    def _stretches(self, piece: Piece, position: int) -> Iterator[tuple[int, int, bool]]:
        """First step, end, and whether all rows are cut before the first."""
        cuts = set((piece.gates == 0).all(1).nonzero().flatten().tolist())
        unroll = self.mode.unroll
        changes = [] if self.mode.reuse_noise else range(-position % unroll, piece.steps, unroll)
        bounds = sorted({0, *cuts, *changes})
        for begin, end in zip(bounds, [*bounds[1:], piece.steps]):
            yield begin, end, begin in cuts

    def _stretch(self, piece: Piece, state: Any, losses: Losses, position: int, cut: bool) -> Any:
        recurrence, tally, scale = self.onward.recurrence, self.onward.tally, self.onward.scale
        edges = Edges(reset_gates(piece.reset), piece.reset, piece.valid).to(device_of(piece))
        with torch.set_grad_enabled(self.mode.analytic):
            outputs, after = recurrence.run(piece.inputs, state, edges)
            if not self.parameters.values:
                tally.add(losses.sum(outputs), scale)
                return detach(after)
            self._enter(piece, state, position, cut, after)
            parts = self._parts(piece, losses)
            found = [part.sum(outputs) for _, part in parts]
        own = [] if not self.mode.analytic else [self._gradient(loss) for loss in found if loss is not None]
        for loss in found:
            tally.add(None if loss is None else loss.detach(), scale)
        counted = [(number, part) for (number, part), loss in zip(parts, found) if loss is not None]
        after = detach(after)
        used = sum(leaf.nbytes for leaf in leaves(outputs)) + piece.steps * sum(leaf.nbytes for leaf in leaves(after))
        assert self._noise is not None
        sums, self.states = self.swarm.losses(
            self._noise, self.states, state, piece, [part for _, part in counted], used
        )
        if counted:
            self._add(sums, [number for number, _ in counted], own)
        return after

    def _enter(self, piece: Piece, state: Any, position: int, cut: bool, like: Any) -> None:
        """Bring noise, history and states to the beginning of some steps; ``like`` is a state of the model."""
        begins = cut or self.key is None
        key = position // self.mode.unroll
        if self.mode.reuse_noise:
            key = position if begins or self.key is None else self.key
        if begins:
            self._refuse_beyond(1, like)
            given, pairs = leaves(state), self.mode.particles
            self.states = None if state is None else [leaf.detach().expand(2, pairs, *leaf.shape) for leaf in given]
        if self._noise is None or key != self.key:
            base = self.parameters.join([value.detach() for value in self.parameters.values.values()], ())
            assert self.onward.seed is not None  # a mode that draws has one
            self._noise = noise(self.onward.seed, key, self.mode.particles, base, self.mode.sigma)
        if begins and not self.mode.reuse_noise:
            self.history = History.begin(self._noise, piece.rows)
        elif key != self.key and not self.mode.reuse_noise:
            assert self.history is not None
            self.history.meet(self._noise)
        self.key = key
        self._like = like

    def _parts(self, piece: Piece, losses: Losses) -> list[tuple[int, Losses]]:
        """The losses of each group of rows that share a history, with the group's number."""
        if self.history is None:
            return [(0, losses)]
        assert self._noise is not None
        masks = self.history.restart(piece.reset, self._noise, lambda groups: self._refuse_beyond(groups, self._like))
        if len(self.history.sums) == 1:
            return [(0, losses)]
        masks = masks or self.history.masks(piece.steps)
        used = torch.ones(piece.steps, piece.rows, dtype=torch.bool) if losses.used is None else losses.used
        return [(number, replace(losses, used=used & mask)) for number, mask in enumerate(masks)]

    def _gradient(self, loss: Tensor) -> Tensor:
        """p (P,): the gradient of a loss within the current steps; added to the tally."""
        if not loss.requires_grad:
            raise ValueError(
                f"mode {self.mode}: the loss depends on no trainable parameter in a way that autograd can follow; "
                "leave analytic out, which needs its derivative"
            )
        found = torch.autograd.grad(loss, list(self.parameters.values.values()), retain_graph=True, allow_unused=True)
        flat = self.parameters.join(list(found), ())
        self.onward.tally.add_found(self.parameters.split(flat * self.onward.scale))
        return flat

    def _add(self, sums: Tensor, groups: list[int], own: list[Tensor]) -> None:
        """Add what the losses (G, 2, N) of some groups say; ``own`` are the gradients p (P,) of each, if known."""
        assert self._noise is not None
        difference = (sums[:, 0] - sums[:, 1]).to(self._noise)
        met = self._noise.unsqueeze(0) if self.history is None else self.history.sums[groups]
        if own:
            difference = difference - 2 * torch.stack(own) @ self._noise.T
            met = met - self._noise
        factor = self.onward.scale / (2 * self.mode.sigma**2 * self.mode.particles)
        flat = factor * (difference.flatten() @ met.flatten(0, 1))
        self.onward.tally.add_found(self.parameters.split(flat))

    def _refuse_beyond(self, groups: int, like: Any) -> None:
        """Refuse what would take more than the mode's limit: noise, histories, states."""
        mode = self.mode
        number = max((value.element_size() for value in self.parameters.values.values()), default=0)
        noises = 1 if mode.reuse_noise else 1 + groups
        states = sum(leaf.nbytes for leaf in leaves(like))
        wanted = mode.particles * (noises * self.parameters.size * number + 2 * states)
        what = f"{mode.particles} pairs, {self.parameters.size} parameters, {states / 1e3:,.1f} KB of state"
        if groups > 1:
            what += f", {groups} groups of rows that began at different steps"
        instead = "fewer particles" if groups == 1 else "reuse_noise=True, which needs none of the groups"
        refuse_bytes(mode, wanted, mode.limit, what, instead, "particles")

    def _check(self, section: dict[str, Any]) -> None:
        """Refuse the particles of other settings, or of another model.

        Raises:
            ValueError: in one line.
        """
        if self.key is None:
            return
        if section["setting"] != self.mode.setting:
            raise ValueError(
                f"the carry holds particles of mode {section['setting']}, which mode {self.mode} cannot go on with; "
                "keep the settings, or begin anew with carry.cut()"
            )
        rows, expected = len(self.onward.rows), (self.mode.particles, self.parameters.size)
        history = self.history
        if history is not None and (tuple(history.sums.shape[1:]) != expected or len(history.group) != rows):
            raise ValueError(
                f"the carry's particles perturb {history.sums.shape[-1]} parameters, but this model has "
                f"{self.parameters.size}: give each model the carry that its own calls returned, and None to begin with"
            )

    def _check_grid(self, position: int) -> None:
        off = position % self.mode.unroll
        if self.mode.analytic and self.key is not None and off:
            raise ValueError(
                f"mode {self.mode} walks back over each unroll of {self.mode.unroll} steps, and this call begins "
                f"{off} steps into one; end calls at multiples of {self.mode.unroll} steps of the stream, or cut there"
            )


def _after_first(reset: Tensor) -> Tensor | None:
    """The resets after the first step; None where there are none."""
    return torch.cat((torch.zeros_like(reset[:1]), reset[1:])) if bool(reset[1:].any()) else None
