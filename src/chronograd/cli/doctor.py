"""``chronograd doctor``: what this installation computes with, and what a long sequence would take on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from chronograd import __version__
from chronograd.cli.errors import UsageError
from chronograd.cli.output import print_json, print_table
from chronograd.cli.values import Whole, at_least, one_of
from chronograd.measure.outlook import LONGEST
from chronograd.modes import Mode, Reverse, Scan
from chronograd.training.config import CELLS

if TYPE_CHECKING:
    from chronograd.measure.outlook import Forecast

__all__ = ["doctor", "foresee", "look", "read_budgets"]

MODEL, HIDDEN, LAYERS, BATCH, FEATURES = "gru", 256, 1, 32, 32
STEPS = 512  # to calibrate on

# A size below zero is read, to be told from none.
SIZES = Parameter(negative="", metavar="SIZE", show_default=False, allow_leading_hyphen=True)
Number = Annotated[Whole | None, Parameter(show_default=False)]


def doctor(
    *,
    length: Number = None,
    model: Annotated[str | None, one_of(*CELLS), Parameter(show_default=False)] = None,
    hidden: Number = None,
    layers: Number = None,
    batch: Number = None,
    features: Number = None,
    memory: Annotated[list[str] | None, SIZES] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> None:
    """Say what this installation computes with, or with --length what a long sequence takes on it.

    It calibrates on some hundred steps and predicts for each mode what an exact gradient takes, of train's models.

    Parameters
    ----------
    length
        Steps of a sequence: predict what its gradient takes. The options below are for this.
    model
        Kind of recurrent layer: gru unless told otherwise.
    hidden
        Units in a layer: 256 unless told otherwise.
    layers
        How many layers: 1 unless told otherwise.
    batch
        Rows of the sequence, side by side: 32 unless told otherwise.
    features
        Numbers in an input, one for each kind of token: 32 unless told otherwise.
    memory
        A budget to predict for, such as 256MB; repeat it, or write commas, for more.
    as_json
        Print the result as JSON.
    """
    options = (
        ("--length", length),
        ("--hidden", hidden),
        ("--layers", layers),
        ("--batch", batch),
        ("--features", features),
    )
    for option, value in options:
        at_least(option, value)
    if length is not None and length > LONGEST:
        raise UsageError(f"--length must be at most {LONGEST:,}, not {length:,}")
    if length is None:
        given = [option for option, value in (*options, ("--model", model), ("--memory", memory)) if value is not None]
        if given:
            raise UsageError(f"{given[0]} is for a prediction; give --length, the steps of the sequence, as well")
        found = look()
        if as_json:
            print_json(found)
        else:
            print_table((name, "none" if value is None else str(value)) for name, value in found.items())
        return
    modes = [Reverse(), Reverse("auto"), *read_budgets(memory or []), Scan()]
    kind, units, deep = model or MODEL, hidden or HIDDEN, layers or LAYERS
    rows, width = batch or BATCH, features or FEATURES
    forecast = foresee(kind, units, deep, rows, width, length, modes)
    words = f"{kind}, {deep} x {units} units, one-hot inputs of {width}, a linear readout and cross-entropy"
    if as_json:
        print_json({"model": words, **forecast.to_dict()})
    else:
        free = "" if forecast.free_bytes is None else f", {forecast.free_bytes / 1e9:.1f}GB free"
        print(f"{words}\nthe exact gradient of {length:,} steps, {rows} side by side{free}\n\n{forecast.table()}")
    for row, mode in zip(forecast.modes, modes):
        if row.refusal and isinstance(mode, Reverse):
            raise ValueError(row.refusal)


def read_budgets(sizes: list[str]) -> list[Reverse]:
    """Modes with the budgets that were asked for, each once.

    Raises:
        UsageError: something is no size.

    >>> read_budgets(["256MB,16MB", "256MB"])
    [Reverse(memory='256MB'), Reverse(memory='16MB')]
    """
    words = [word.strip() for text in sizes for word in text.split(",")]
    try:
        return [Reverse(word) for word in dict.fromkeys(words) if word != "auto"]
    except ValueError as error:
        raise UsageError(f"--memory: {str(error).removeprefix('Reverse: memory ')}") from None


def foresee(
    model: str, hidden: int, layers: int, batch: int, features: int, length: int, modes: list[Mode]
) -> Forecast:
    """Calibrate on random tokens, showing progress."""
    import torch

    from chronograd.cli.progress import CompareProgress
    from chronograd.measure.forecast import forecast
    from chronograd.training.losses import cross_entropy
    from chronograd.training.model import CharModel

    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(features, (min(length, STEPS) + 1, batch), generator=random)
    fresh = CharModel(features, model, hidden, layers)
    with CompareProgress(every=1.0) as progress:
        return forecast(fresh, cross_entropy, tokens[:-1], tokens[1:], length, modes, on_progress=progress.note)


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
