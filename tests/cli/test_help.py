"""Help and wrong usage answer at once, before torch; the options are frozen; colour is for terminals."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from chronograd import __version__
from chronograd.cli.app import app

# An option more is a decision: whoever adds one adds it here, and says why in the commit.
OPTIONS = {
    "compare": "RUN|CORPUS --truncation --steps --batch --draws --tolerance --seed --model --hidden --figure --json",
    "demo": "--run --steps --hidden --draws",
    "doctor": "--length --model --hidden --layers --batch --features --memory --json",
    "figure strategies": "TEXT --corpus --steps --chunks --mean-length --seed --width --out",
    "figure graph": "--steps --cuts --out",
    "sample": "DIR --prefix --length --temperature --seed",
    "train": "CORPUS --run --model --hidden --layers --batch --chunk --truncation --mode --steps --lr --clip --seed "
    "--preprocess --tokens --resume --checkpoint-every --json",
}
WRONG = [
    "train",
    "train x --run r --hiden 3",
    "train x --run r --truncation chunk:3",
    "figure graph --cuts 9",
    "doctor --hidden 3",
    "doctor --length 9 --memory much",
    "trian",
]


def commands(under=app, path=()):
    for name in under:
        if not name.startswith("-"):
            inner = under[name]
            yield from (
                commands(inner, (*path, name)) if inner.default_command is None else [(" ".join((*path, name)), inner)]
            )


def test_the_options_are_frozen():
    found = {}
    for name, command in commands():
        arguments = command.assemble_argument_collection()
        found[name] = " ".join(spelling for argument in arguments for spelling in argument.names)
    assert found == OPTIONS


@pytest.mark.parametrize("command", ["", "figure", *OPTIONS])
def test_help_is_tidy_in_80_columns(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = cli(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: chronograd {command}".rstrip() in out
    assert max(map(len, out.splitlines())) <= 80
    assert "``" not in out and "None" not in out and "\x1b" not in out
    for option in OPTIONS.get(command, "").split():
        assert re.search(rf"{option}\b", out), option


def test_every_option_has_a_help_text():
    for _, command in commands():
        for argument in command.assemble_argument_collection(parse_docstring=True):
            assert argument.parameter.help, argument.name


def test_the_overview_names_every_command_with_its_purpose(cli):
    out = cli().out
    assert out == cli("--help").out
    for name in ("figure", "sample", "train"):
        assert re.search(rf"{name} +[A-Z][a-z]+ ", out)


def test_version(cli):
    assert cli("--version") == (0, f"{__version__}\n", "")


def test_neither_help_nor_wrong_usage_imports_torch():
    calls = [[], *([*name.split(), "--help"] for name in ["", "figure", *OPTIONS]), *(line.split() for line in WRONG)]
    code = (
        "import sys; from chronograd.cli.app import main\n"
        f"codes = [main(argv) for argv in {calls!r}]\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
        f"assert codes == [0] * {len(calls) - len(WRONG)} + [2] * {len(WRONG)}, codes"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(WRONG)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_unless_declined(shell, environment, coloured):
    import pty

    ours, theirs = pty.openpty()
    process = shell("--help", environment={"TERM": "xterm", **environment}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux ends a pseudo-terminal so
        pass
    os.close(ours)
    process.communicate()
    assert bool(re.search(rb"\x1b\[(\d;)?3\dm", shown)) is coloured


@pytest.mark.parametrize("argv", [["--help"], ["figure", "graph"]])
def test_a_closed_pipe_is_quiet(shell, argv):
    reading, writing = os.pipe()
    os.close(reading)
    process = shell(*argv, stdout=writing)
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")
