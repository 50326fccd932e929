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
    import warnings

    import torch

    from chronograd.kernels.library import NOT_BUILT, find, isas, library, turned_off

    place = find()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = library() if place is not None else None
    if place is None:
        kernels = "turned off by CHRONOGRAD_NATIVE" if turned_off() else NOT_BUILT
    else:
        kernels = str(place) if native is not None else f"{place} does not load; install chronograd again"
    return {
        "chronograd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": kernels,
        "instructions": None if native is None else isas(native)[-1],
    }
