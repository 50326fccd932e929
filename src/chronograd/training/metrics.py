"""The log of a run: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chronograd.files import write_atomically

__all__ = ["append_metrics", "cut_metrics", "read_metrics"]


def append_metrics(path: Path, values: dict[str, Any]) -> None:
    """Add one line.

    Raises:
        ValueError: a value is not finite; JSON has no name for it.
    """
    line = json.dumps(values, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the last one is left out if a crash cut it short."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def cut_metrics(path: Path, step: int) -> None:
    """Forget what was logged after ``step``: a resumed run makes those steps again."""
    kept = [entry for entry in read_metrics(path) if entry.get("step", 0) <= step]
    if path.exists():
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
