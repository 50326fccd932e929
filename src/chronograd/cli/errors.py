"""How a command ends: an exit code, and on failure one line on stderr that names the thing and the remedy."""

from __future__ import annotations

import difflib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import get_args

from cyclopts import App
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

__all__ = ["DONE", "FAILED", "INTERRUPTED", "TRACEBACK", "WRONG_USAGE", "UsageError", "answer", "nearest"]

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
TRACEBACK = "CHRONOGRAD_TRACEBACK"


class UsageError(Exception):
    """A command was called in a way that has no meaning; its text is the one line that says so."""


def nearest(word: str, choices: Sequence[str], ending: str = "") -> str:
    """``"; did you mean X?"`` for the choice closest to a mistyped word, or nothing.

    >>> nearest("chunk", ["chunks", "window"], ending=":35")
    "; did you mean 'chunks:35'?"
    >>> nearest("xyz", ["chunks", "window"])
    ''
    """
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0] + ending!r}?" if close else ""


def answer(app: App, argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` asks for and turn whatever happens into an exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the terminal cannot show are escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(_name(app, tokens), f"warning: {message}")
        try:
            code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
            if sys.stdout is not None:
                sys.stdout.flush()
            return code if isinstance(code, int) else DONE
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else FAILED
        except (Exception, KeyboardInterrupt) as error:
            _give_up_stdout()
            if isinstance(error, BrokenPipeError):  # the reader has seen enough
                return FAILED
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                traceback.print_exc()
            code, line = _verdict(error)
            _say(_name(app, tokens, error), line)
            return code


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the line for an exception."""
    if isinstance(error, CycloptsError):
        return WRONG_USAGE, _usage_line(error)
    if isinstance(error, UsageError):
        return WRONG_USAGE, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return FAILED, "out of memory: take a smaller model, batch or chunk"
    if isinstance(error, OSError):
        return FAILED, _system_line(error)
    if isinstance(error, (ValueError, ArithmeticError, ImportError, NotImplementedError)) and _is_ours(error):
        return FAILED, str(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return FAILED, f"unexpected {what} (a fault in chronograd; {TRACEBACK}=1 shows where, for a report)"


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it, deliberately, and not a library that we called wrongly."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("chronograd.")


def _system_line(error: OSError) -> str:
    if error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return error.strerror or str(error) or type(error).__name__


def _usage_line(error: CycloptsError) -> str:
    """A parsing error in our words."""
    names = list(chain.from_iterable(_names(error)))
    match error:
        case UnknownCommandError(unused_tokens=[word, *_]):
            if word.startswith("-"):
                return f"unknown option {word}; --help lists what there is"
            return f"there is no command {word!r}{nearest(word, names) or '; the commands are ' + ', '.join(names)}"
        case UnknownOptionError():
            word = (error.token.keyword or error.token.value).split("=", 1)[0]
            return f"unknown option {word}{nearest(word, names) or '; --help lists them'}"
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            return f"{word!r} is one argument too many; options begin with --, a text with spaces needs quotes"
        case RepeatArgumentError():
            return f"{error.token.keyword} is given more than once"
        case MissingArgumentError(argument=argument) if argument is not None:
            option = error.keyword or argument.name
            if option.startswith("--") and (error.keyword or argument.tokens):
                return f"{option} needs a value"
            return f"{option} is missing; --help tells what it is"
        case CoercionError(argument=argument) if argument is not None and (error.token or argument.tokens):
            token = error.token or argument.tokens[-1]
            option, value = token.keyword or argument.name, token.value
            if choices := argument.get_choices(force=True):
                return f"{option} must be one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}"
            kinds = {int: "must be a whole number", float: "must be a number", bool: "takes no value"}
            kind = next(
                (kinds[hint] for hint in kinds if hint in (argument.hint, *get_args(argument.hint))), "cannot be"
            )
            return f"{option} {kind}, not {value!r}"
        case ValidationError():
            return error.exception_message
    error.verbose = False
    return str(error)


def _names(error: CycloptsError) -> list[Sequence[str]]:
    if isinstance(error, UnknownOptionError):
        return [argument.names for argument in error.argument_collection if argument.parse]
    if isinstance(error, UnknownCommandError) and error.app is not None:
        return [[name for name in error.app if not name.startswith("-")]]
    return []


def _name(app: App, tokens: list[str], error: BaseException | None = None) -> str:
    """The command as it was called, such as ``chronograd train``."""
    if isinstance(error, CycloptsError):
        words = error.command_chain or ()
    else:
        words = app.parse_commands(tokens)[0]
    return " ".join([app.name[0], *(word for word in words if not word.startswith("-"))])


def _say(who: str, line: str) -> None:
    if sys.stderr is None:
        return
    text = f"{who}: {' '.join(line.split())}\n"
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # nobody is left to tell
        pass


def _give_up_stdout() -> None:
    """If stdout takes no more, point it at nothing, so that Python's own flush at the end does not fail as well."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
