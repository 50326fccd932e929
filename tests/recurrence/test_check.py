"""``check_model``: models that keep the laws, and one broken model for each law."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import chronograd as cg


class Base(nn.Module):
    """A hand-written recurrence that keeps all laws; the broken ones change one thing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.W, self.U, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def step(self, x, h):
        return torch.tanh(self.W(x) + self.U(h))

    def forward(self, x, h=None):
        h = x.new_zeros(x.shape[1], 4) if h is None else h
        path = []
        for x_t in x:
            h = self.step(x_t, h)
            path.append(h)
        return self.out(torch.stack(path)), h


class NoPair(Base):
    def forward(self, x, h=None):
        return super().forward(x, h)[0]


class Summed(Base):
    """One output for a sequence."""

    def forward(self, x, h=None):
        out, h = super().forward(x, h)
        return out[-1], h


class BatchFirst(Base):
    def forward(self, x, h=None):
        out, h = super().forward(x, h)
        return out.transpose(0, 1), h


class Centred(Base):
    """Takes the mean over all steps away, as a careless preprocessing does."""

    def forward(self, x, h=None):
        return super().forward(x - x.mean(0), h)


class Backwards(Base):
    """Outputs that look at the next step, where there is one; single steps hide that it does."""

    def forward(self, x, h=None):
        out, h = super().forward(x, h)
        return out + torch.cat([out[1:], out[-1:]]), h


class RowsMixed(Base):
    def step(self, x, h):
        h = super().step(x, h)
        return h - h.mean(0)


class Normed(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def step(self, x, h):
        return super().step(self.norm(x) if len(x) > 1 else x, h)


class Forgets(Base):
    """Starts every call anew."""

    def forward(self, x, h=None):
        return super().forward(x, None)


class DetachesIn(Base):
    def forward(self, x, h=None):
        return super().forward(x, None if h is None else h.detach())


class DetachesOut(Base):
    def forward(self, x, h=None):
        out, h = super().forward(x, h)
        return out, h.detach()


class FirstState(Base):
    """Returns the state of its first step; only long pieces tell."""

    def forward(self, x, h=None):
        out, final = super().forward(x, h)
        return out, final if len(x) < 3 else self.step(x[0], x.new_zeros(x.shape[1], 4) if h is None else h)


class Inside(Base):
    """Keeps its state in the module."""

    kept = None

    def forward(self, x, h=None):
        out, self.kept = super().forward(x, self.kept)
        return out, self.kept


class OneMask(Base):
    """One dropout mask for all steps of a call."""

    def forward(self, x, h=None):
        return super().forward(x * nn.functional.dropout(torch.ones_like(x[0]), 0.5, self.training), h)


class MaskForEachStep(Base):
    def step(self, x, h):
        return super().step(nn.functional.dropout(x, 0.5, self.training), h)


class AlwaysRandom(Base):
    def step(self, x, h):
        return super().step(x + torch.randn_like(x), h)


class Square(Base):
    """A state of B x B: where are its rows?"""

    def forward(self, x, state=None):
        h, square = (None, x.new_zeros(x.shape[1], x.shape[1])) if state is None else state
        out, h = super().forward(x, h)
        return out, (h, square)


class Boxed(Base):
    def forward(self, x, h=None):
        out, h = super().forward(x, None if h is None else h["h"])
        return out, {"h": h, "what": object()}


class NoSingleSteps(Base):
    def forward(self, x, h=None):
        if len(x) == 1:
            raise RuntimeError("kernel larger\nthan input")
        return super().forward(x, h)


BROKEN = {
    NoPair: ["pair"],
    Summed: ["shape"],
    BatchFirst: ["shape"],
    Centred: ["causal", "pieces"],
    Backwards: ["causal", "pieces"],
    RowsMixed: ["rows"],
    Normed: ["rows"],
    Forgets: ["pieces", "carried"],
    DetachesIn: ["carried"],
    DetachesOut: ["carried"],
    FirstState: ["pieces"],
    Inside: ["repeats"],
    OneMask: ["one mask"],
    AlwaysRandom: ["repeats"],
    Square: ["state rows"],
    Boxed: ["state rows"],
    NoSingleSteps: ["causal", "pieces", "carried", "state rows"],
}


def check(model, steps=6, rows=3, **options):
    return cg.check_model(model, torch.randn(steps, rows, 3, generator=torch.Generator().manual_seed(0)), **options)


def laws(report):
    return [problem.law for problem in report.problems]


def the(report, law):
    (problem,) = [problem for problem in report.problems if problem.law == law]
    return problem


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_model_for_each_law(broken):
    expected = BROKEN[broken]
    if broken is NoSingleSteps:
        expected = expected[1:]
    report = check(broken())
    assert laws(report) == expected and not report.ok
    assert all(p.what and p.remedy and "\n" not in p.what + p.remedy for p in report.problems)


@pytest.mark.parametrize(
    "model",
    [
        Base(),
        Base().double(),
        nn.RNN(3, 4),
        nn.GRU(3, 4, 2),
        nn.LSTM(3, 4, batch_first=True),
        cg.LSTM(3, 4, 2),
        nn.LSTMCell(3, 4),
        cg.Recurrent(nn.GRUCell(3, 4), nn.Linear(4, 2)),
        cg.DiagonalRNN(3, 4, complex=True),
        cg.ELSTM(3, 4),
        nn.GRU(3, 4, 2, dropout=0.5),
        MaskForEachStep(),
        Normed().eval(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_that_keep_the_laws(model):
    dtype = next(model.parameters()).real.dtype
    report = cg.check_model(model, torch.randn(5, 3, 3).to(dtype))
    assert report.ok, report.table()
    assert "all laws hold" in str(report)
    assert {"causal", "pieces", "rows", "carried", "state rows"} <= set(report.checked)


def test_kinds():
    assert check(Base()).kind == "opaque" and check(nn.GRU(3, 4)).kind == "layers"
    report = check(nn.GRU(3, 4, bidirectional=True))
    assert report.kind == "whole" and laws(report) == ["causal", "pieces"]
    assert any("only Full() within one call" in note for note in report.notes)
    assert check(NoPair()).kind == "unknown"


def test_where_and_how_much():
    problem = the(check(Backwards()), "causal")
    assert (problem.step, problem.row) == (0, 0) and problem.size is not None and problem.size > 1e-3
    assert problem.where.startswith("step 0, row 0, off by")
    # Halves differ first at the last step of the first half.
    assert the(check(Backwards()), "pieces").step == 2
    assert the(check(Forgets()), "pieces").step == 3
    assert the(check(RowsMixed()), "rows").row == 0
    assert "batch first: transpose" in the(check(BatchFirst()), "shape").remedy
    assert the(check(NoSingleSteps()), "pieces").what == "the model raised RuntimeError: kernel larger than input"
    assert "comes in" in the(check(DetachesIn()), "carried").what
    assert "returned" in the(check(DetachesOut()), "carried").what
    assert "not used" in the(check(Forgets()), "carried").what


def test_batch_normalization_is_named():
    report = check(Normed())
    assert "norm takes statistics over the batch" in the(report, "rows").remedy

    class Both(Normed):
        def step(self, x, h):
            return nn.functional.dropout(super().step(x, h), 0.5, self.training)

    report = check(Both())
    assert report.random and laws(report) == ["rows"]


def test_random_models_are_tested_in_evaluation_mode_and_it_says_so():
    report = check(MaskForEachStep())
    assert report.ok and report.random and "evaluation mode" in report.notes[0]
    assert not check(MaskForEachStep().eval()).random
    problem = the(check(OneMask()), "one mask")
    assert "of shape (3, 3) once for a whole call" in problem.what
    assert check(OneMask().eval()).ok


def test_one_row_and_one_step():
    assert check(Base(), rows=1).ok
    assert "rows" in laws(check(RowsMixed(), rows=1))
    report = check(Base(), steps=1)
    assert report.ok and "causal" not in report.checked and "one step" in report.notes[0]
    report = check(Base(), rows=1, state=torch.zeros(1, 4))
    assert report.ok and "rows" not in report.checked and "one row" in report.notes[0]


def test_from_a_given_state_with_tokens():
    class Tokens(Base):
        def forward(self, x, h=None):
            return super().forward(nn.functional.one_hot(x, 3).float(), h)

    class Peeks(Tokens):
        def forward(self, x, h=None):
            return super().forward(x.flip(0), h)

    tokens = torch.randint(3, (7, 4), generator=torch.Generator().manual_seed(0))
    assert cg.check_model(Tokens(), tokens, torch.randn(4, 4)).ok
    assert "causal" in laws(cg.check_model(Peeks(), tokens))


def test_declared_rows():
    model = Square()
    model.state_row_dim = [0, 0]
    assert check(model).ok


@pytest.mark.parametrize(
    "made", [Normed, OneMask, MaskForEachStep, Forgets, NoPair, lambda: nn.GRU(3, 4, 2, dropout=0.5)]
)
def test_everything_is_left_as_it_was(made):
    model = made()
    if isinstance(model, Normed):
        model.U.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    check(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_a_report_is_plain_data():
    report = check(Forgets())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["model"] == "Forgets" and data["ok"] is False and data["kind"] == "opaque"
    assert [p["law"] for p in data["problems"]] == ["pieces", "carried"]
    assert data["problems"][0]["where"].startswith("step 3")
    table = report.table()
    assert "Forgets (opaque): 2 broken" in table and "causal      holds" in table and "pieces      BROKEN" in table
    assert report.problems[0].remedy in table


@pytest.mark.parametrize(
    "inputs", [None, torch.zeros(3), torch.zeros(0, 2, 3), (torch.zeros(3, 2, 1), torch.zeros(4, 2, 1))]
)
def test_inputs_must_be_time_first(inputs):
    with pytest.raises(ValueError, match=r"check_model: inputs must be tensors \(T, B, ...\)"):
        cg.check_model(Base(), inputs)


def test_a_model_must_be_a_module():
    for model in (3, None, Base, lambda x, h: (x, h)):
        with pytest.raises(TypeError, match=r"check_model: model must be a Module such as torch.nn.GRU\(8, 16\), not"):
            cg.check_model(model, torch.zeros(3, 2, 3))
    with pytest.raises(ValueError, match="of at least one step and row, not NoneType"):
        cg.check_model(Base(), None)


def test_a_model_that_takes_or_gives_something_else_is_told_so():
    class Three(Base):
        def forward(self, x, h=None):
            return (*super().forward(x, h), 0)

    for model, what in (
        (Three(), "the model returned 3 values"),
        (nn.Linear(3, 4), "the model raised TypeError"),
        (nn.Sequential(nn.GRU(3, 4)), "the model raised TypeError"),
    ):
        (problem,) = check(model).problems
        assert problem.law == "pair" and what in problem.what
    assert check(Three()).problems[0].remedy == "return a pair (outputs, state)"
