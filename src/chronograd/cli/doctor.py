"""``chronograd doctor``: what this installation computes with, and what would make it faster."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from chronograd import __version__
from chronograd.cli.output import print_json, print_table

__all__ = ["doctor", "look"]


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False) -> None:
    """Say what this installation computes with: versions, threads, compiled kernels.

    Parameters
    ----------
    as_json
        Print the result as JSON.
    """
    found = look()
    if as_json:
        print_json(found)
        return
    print_table((name, "none" if value is None else str(value)) for name, value in found.items())


def look() -> dict[str, Any]:
    """Name and value of what matters, in the order in which it is printed.

    >>> sorted(look())[:2]
    ['GPU', 'chronograd']
    """
    import platform

    import torch

    from chronograd.kernels.library import NOT_BUILT, find, isas, library

    place = find()
    native = library() if place is not None else None
    return {
        "chronograd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": str(place) if place is not None else NOT_BUILT,
        "instructions": None if native is None else isas(native)[-1],
    }
