"""What a training run is asked to do, as plain values, and how they are written down as TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from chronograd.modes import parse as parse_mode
from chronograd.truncation import parse as parse_truncation

__all__ = ["CELLS", "TrainConfig", "to_toml"]

CELLS = ("rnn", "gru", "lstm")
MOST_LR = 1e37  # the first step size of Adam is ten times this, and float32 ends at 3.4e38


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: everything that decides its numbers, and nothing else.

    Attributes:
        corpus: a corpus name or a path.
        preprocess: ``"letters"`` or ``""`` for none.
        tokens: ``"characters"``, or ``"bytes"`` (then a file is memory-mapped, never read whole).
        model: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        hidden: units of a layer.
        layers: how many layers.
        batch: rows B.
        chunk: steps T of one update.
        truncation: for example ``"chunks:35"``.
        mode: for example ``"reverse"``.
        steps: updates to make.
        lr: learning rate of Adam, at most ``MOST_LR``.
        clip: largest global norm of a gradient; 0 does not clip.
        seed: of the initial parameters and of random truncations.
        checkpoint_every: updates from one checkpoint (and validation) to the next.

    Raises:
        ValueError: a value out of its range, named.

    >>> TrainConfig("builtin", model="lstm").hidden
    256
    >>> TrainConfig("builtin", hidden=0)
    Traceback (most recent call last):
    ValueError: hidden must be at least 1, not 0
    """

    corpus: str
    preprocess: str = ""
    tokens: str = "characters"
    model: str = "gru"
    hidden: int = 256
    layers: int = 1
    batch: int = 32
    chunk: int = 100
    truncation: str = "chunks:35"
    mode: str = "reverse"
    steps: int = 1000
    lr: float = 2e-3
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if not (isinstance(self.corpus, str) and self.corpus):
            raise ValueError(f"corpus must be a corpus name or a path, not {self.corpus!r}")
        for name, choices in (
            ("preprocess", ("", "letters")),
            ("tokens", ("characters", "bytes")),
            ("model", CELLS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {getattr(self, name)!r}")
        for name in ("hidden", "layers", "batch", "chunk", "steps", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        if not (_is_number(self.lr) and 0 < self.lr <= MOST_LR):
            raise ValueError(f"lr must be a positive number of at most {MOST_LR:g}, not {self.lr!r}")
        if not (_is_number(self.clip) and self.clip >= 0):
            raise ValueError(f"clip must be a positive number, or 0 not to clip, not {self.clip!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number between 0 and 2**63 - 1, not {self.seed!r}")
        if self.tokens == "bytes" and self.preprocess:
            raise ValueError("preprocess needs characters: leave it out, or train on characters")
        parse_truncation(self.truncation)
        parse_mode(self.mode)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrainConfig:
        """The way back from ``to_dict``.

        Raises:
            ValueError: a name is unknown or missing, or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(plain) - known):
            raise ValueError(f"unknown setting {unknown[0]!r}")
        if "corpus" not in plain:
            raise ValueError("the setting 'corpus' is missing")
        return cls(**plain)


def to_toml(tables: Mapping[str, Mapping[str, str | int | float | bool]]) -> str:
    """Tables of plain values as TOML, which ``tomllib`` reads back to the same values.

    >>> print(to_toml({"run": {"corpus": "builtin", "lr": 0.002, "steps": 10}}), end="")
    [run]
    corpus = "builtin"
    lr = 0.002
    steps = 10
    """
    blocks = []
    for name, table in tables.items():
        lines = [f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _toml_value(value: str | int | float | bool) -> str:
    if isinstance(value, str):
        # JSON's string escapes are TOML's too, but TOML wants DEL escaped as well
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
