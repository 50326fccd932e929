"""How a stretch of steps advances a stream under a mode that walks forward: nothing stays open, and what the mode knows
of the past is handed on in the carry.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .advance import Run, under
from .carry import Carry, Segment
from .modes import Mode
from .modes.forward.onward import Onward
from .modes.replay import loaded, split
from .stretch import Stretch
from .truncation import GatePlan, Truncation
from .truncation.draws import signs

__all__ = ["advance_forward", "check_history"]

NAME, LAYOUT = "name", "layout"


def advance_forward(run: Run, stretch: Stretch, truncation: Truncation, mode: Mode) -> Carry:
    """Add the gradient of a stretch under gates; the carry after it."""
    plan = truncation.plan(stretch.place)
    assert isinstance(plan, GatePlan)
    carry, rest = stretch.carry, under(stretch, plan).piece
    stream, steps = carry.stream, rest.steps
    section = {key: value for key, value in carry.mode.items() if key not in (NAME, LAYOUT)}
    if LAYOUT in carry.mode:  # spares every call a look at the model
        run.recurrence.expect(carry.mode[LAYOUT])
    draw = partial(signs, stream.seed or 0)  # modes that draw have a seed (lay_stretch)
    walk = mode.walk(Onward(run.recurrence, run.tally, run.scale, stream.seed, stream.rows, draw), section)
    state = carry.segment.state
    for at in range(0, steps, walk.block):
        piece, rest = split(rest, walk.block) if rest.steps > walk.block else (rest, rest)
        losses = run.losses[at : at + piece.steps].in_memory()
        state = walk.through(loaded(piece), state, losses, stream.position + at)
    run.ways.extend(walk.ways)
    known = walk.section()
    if known:
        known = {NAME: mode.past, LAYOUT: run.recurrence.plain_layout, **known}
    end = stream.position + steps
    stream = replace(stream, position=end, since=plan.since, begun=stretch.begun, state=state)
    return replace(carry, stream=stream, segment=Segment(end, state), mode=known)


def check_history(carry: Carry, mode: Mode) -> None:
    """Refuse to go on with what another mode knows of the past.

    Raises:
        ValueError: in one line, with what to do.
    """
    known = carry.mode.get(NAME)
    if mode.walks and carry.segment.pieces:
        raise ValueError(
            f"the carry holds {carry.open_steps} open steps of a mode that walks back, which mode {mode} does not run "
            "again; go on with that mode, or begin here with carry.cut()"
        )
    if known is not None and known != (mode.past if mode.walks else None):
        raise ValueError(
            f"the carry holds what mode {known} knows of the past, which mode {mode} cannot use; go on with mode "
            f"{known}, or begin here with carry.cut()"
        )
