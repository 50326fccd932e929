"""The figures show the cuts of the truncations themselves."""

from __future__ import annotations

import pytest
import torch

import chronograd as cg
from chronograd import show
from chronograd.cli import figure
from chronograd.truncation import Place


@pytest.fixture
def drawn(monkeypatch):
    """What ``draw_strategies`` was asked to draw."""
    asked = {}
    draw = show.draw_strategies

    def note(text, segments, *, width):
        asked.update(text=text, segments=segments, width=width)
        return draw(text, segments, width=width)

    monkeypatch.setattr(show, "draw_strategies", note)
    return asked


def starts(truncation, steps, seed):
    row = torch.zeros(1, dtype=torch.int64)
    gates = truncation.plan(Place(0, steps, row, seed, row)).gates[:, 0]
    return (0, *(t for t in range(1, steps) if gates[t] == 0))


def test_by_default_the_textbook_figure(cli, tmp_path, drawn):
    code, out, err = cli("figure", "strategies")
    assert (code, err) == (0, "")
    assert (tmp_path / "strategies.svg").read_bytes().startswith(b"<?xml")
    assert drawn["text"].startswith("The Time Traveller")
    assert list(drawn["segments"]) == ["random", "regular", "full"]
    assert drawn["segments"]["regular"] == tuple(range(0, 65, 8))
    assert drawn["segments"]["full"] == (0,)
    lengths = [b - a for a, b in zip(drawn["segments"]["random"], [*drawn["segments"]["random"][1:], 65])]
    assert len(lengths) > 4 and len(set(lengths)) > 3
    assert out == "strategies.svg: 65 characters; random 8 cuts, regular 8 cuts, full 0 cuts\n"


def test_cuts_are_those_of_the_truncations(cli, drawn):
    text = "another text of some length, to be cut at random"
    cli("figure", "strategies", text, "--seed", "11", "--mean-length", "4.5", "--chunks", "7", "--width", "20")
    assert drawn["text"] == text and drawn["width"] == 20
    assert drawn["segments"] == {
        "random": starts(cg.RandomTruncation(4.5), len(text), 11),
        "regular": starts(cg.Chunks(7), len(text), 11),
        "full": (0,),
    }


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--corpus", "text.txt"], "The quick brown fox jumps over the lazy dog. The quick brown fox jumps o"),
        (["--corpus", "text.txt", "--width", "9"], "The quick"),
        (["--corpus", "text.txt", "--steps", "13"], "The quick bro"),
        (["zeit", "--steps", "2"], "ze"),
        (["g\u00fcn \U0001f570"], "g\u00fcn \U0001f570"),
    ],
)
def test_which_text_is_shown(cli, drawn, argv, shown):
    assert cli("figure", "strategies", *argv, "--out", "x.png").code == 0
    assert drawn["text"] == shown


def test_the_default_seed_is_what_its_comment_says():
    random = starts(cg.RandomTruncation(8), len(figure.TEXT), figure.SEED)
    assert len(random) == len(starts(cg.Chunks(8), len(figure.TEXT), 0))


def test_graph(cli, tmp_path, monkeypatch):
    asked = []
    draw = show.draw_graph
    monkeypatch.setattr(
        show, "draw_graph", lambda steps, *, cuts: asked.append((steps, cuts)) or draw(steps, cuts=cuts)
    )
    assert cli("figure", "graph") == (0, "graph.svg: 3 steps, 0 cuts\n", "")
    assert cli("figure", "graph", "--steps", "4", "--cuts", "2, 4", "--out", "g.png").out == "g.png: 4 steps, 2 cuts\n"
    assert asked == [(3, []), (4, [2, 4])]
    assert (tmp_path / "graph.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.png", "graph.svg", "text.txt"]


def test_without_matplotlib_it_says_what_to_install(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = cli("figure", "graph")
    assert (code, out) == (1, "")
    assert err == "chronograd figure graph: figures need matplotlib: pip install 'chronograd[figures]'\n"
    assert not (tmp_path / "graph.svg").exists()
