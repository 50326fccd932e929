"""compare against closed forms and hand-made gradients; the recommendation against its own rule."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.measure.compare import usual_candidates
from chronograd.measure.comparison import Candidate, Comparison
from chronograd.measure.cost import PeakBytes
from chronograd.style import save
from oracle import Bias, squared


def itself(outputs, targets):
    return outputs


def last_step(steps, rows):
    weights = torch.zeros(steps, rows)
    weights[-1] = 1
    return weights


def test_bias_and_cosine_of_a_cut_are_those_of_the_hand_written_loop():
    torch.manual_seed(0)
    model = nn.GRU(2, 4).double()
    x, y = torch.randn(12, 3, 2, dtype=torch.float64), torch.randn(12, 3, 4, dtype=torch.float64)

    def gradient(k):
        model.zero_grad()
        state = None
        for begin in range(0, 12, k):
            outputs, state = model(x[begin : begin + k], state)
            (squared(outputs, y[begin : begin + k]).sum() / 36).backward()
            state = state.detach()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    g, cut = gradient(12), gradient(3)
    result = cg.compare(model, squared, x, y, [cg.Chunks(3)])
    full, row = result.candidates
    assert result.gradient_norm == pytest.approx(float(g.norm()))
    assert full.bias < 1e-12 and full.cosine == pytest.approx(1) and full.variance == 0
    assert row.bias == pytest.approx(float((cut - g).norm() / g.norm()))
    assert row.cosine == pytest.approx(float(cut @ g / cut.norm() / g.norm()))
    assert (row.variance, row.bias_noise, row.cosine_error, row.draws) == (0, 0, 0, 1)


def test_variance_of_random_truncation_is_the_closed_form():
    w, mean, steps, rows = 0.7, 5, 15, 4
    x = torch.zeros(steps, rows, 1, dtype=torch.float64)
    result = cg.compare(
        Bias(w), itself, x, x, [cg.RandomTruncation(mean)], draws=400, weights=last_step(steps, rows), seed=3
    )
    row, p = result.candidates[1], 1 - 1 / mean
    a = [w**k for k in range(steps)]
    one = sum(a[i] * a[j] * (p ** -min(i, j) - 1) for i in range(steps) for j in range(steps)) / sum(a) ** 2
    expected = one / rows  # the mean of the rows' independent draws
    assert abs(row.variance - expected) < 4 * row.variance_error
    assert 0.5 * expected < row.variance < 2 * expected
    assert row.bias < 4 * row.bias_noise and row.bias_noise == pytest.approx(math.sqrt(row.variance / 400))
    assert row.unbiased and row.sure_bias == 0


def test_the_minibatchs_noise_is_the_standard_error_over_its_rows():
    torch.manual_seed(0)
    model = cg.Recurrent(nn.RNNCell(2, 3), nn.Linear(3, 2)).double()
    x, y = torch.randn(6, 5, 2, dtype=torch.float64), torch.randn(6, 5, 2, dtype=torch.float64)
    each = []
    for b in range(5):
        model.zero_grad()
        squared(model(x[:, b : b + 1])[0], y[:, b : b + 1]).mean().backward()
        each.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    g = torch.stack(each).mean(0)
    variance = sum(float((e - g).square().sum()) for e in each) / (5 * 4)
    assert cg.compare(model, squared, x, y, ["chunks:2"]).noise == pytest.approx(variance / float(g.square().sum()))
    assert cg.compare(model, squared, x[:, :1], y[:, :1], ["chunks:2"]).noise is None


def test_look_back_is_the_mean_over_losses_that_count():
    model, x = Bias(0.5), torch.zeros(12, 2, 1, dtype=torch.float64)
    reset = torch.zeros(12, 2, dtype=torch.bool)
    reset[6, 0] = True
    expected = {
        "full": 6.5,
        "chunks:4": 2.5,
        "window:1,3": (1 + 2 + 10 * 3) / 12,
        "window:4,8": (1 + 2 + 3 + 4 + 2 * 26) / 12,
    }
    result = cg.compare(model, itself, x, x, list(expected))
    assert {row.truncation: row.look_back for row in result.candidates} == pytest.approx(expected)
    with_reset = cg.compare(model, itself, x, x, ["chunks:4"], reset=reset)
    assert with_reset.candidates[0].look_back == pytest.approx((6.5 + 3.5) / 2)
    assert with_reset.candidates[1].look_back == pytest.approx((2.5 + (10 + 3 + 3 + 10) / 12) / 2)
    only_last = cg.compare(model, itself, x, x, ["chunks:5"], weights=last_step(12, 2))
    assert [row.look_back for row in only_last.candidates] == [12, 2]
    short = cg.compare(model, itself, x, x, ["chunks:4"], lengths=torch.tensor([12, 2]))
    assert short.candidates[0].look_back == pytest.approx((78 + 3) / 14)


def test_look_back_of_an_adaptive_truncation_follows_its_decisions():
    # dL_s/dh_{s-k} = 0.5^k, so E(K) = 2 0.5^K, against a gradient of at least 2 - 4 0.5^10.
    x = torch.zeros(40, 1, 1, dtype=torch.float64)
    truncation = cg.AdaptiveTruncation(0.1, window=20)
    _, carry = cg.value_and_grad(Bias(0.5), itself, x, x, truncation=truncation)
    k = carry.truncation["look_back"]
    assert k == next(k for k in range(1, 11) if 2 * 0.5**k / (2 - 4 * 0.5**10) <= 0.1)
    row = cg.compare(Bias(0.5), itself, x, x, [truncation]).candidates[1]
    # Twenty steps in blocks of 10 that reach 9 steps beyond, then twenty in blocks of k that reach k - 1 beyond.
    first = [min(t % 10 + 1 + (9 if t >= 10 else 0), t + 1) for t in range(20)]
    second = [(t - 20) % k + 1 + k - 1 for t in range(20, 40)]
    assert row.look_back == pytest.approx(sum(first + second) / 40)


def test_peak_bytes_counts_what_is_alive_at_once():
    with PeakBytes() as count:
        a = torch.ones(1000, dtype=torch.float64)
        b = a.view(10, 100)[2:]  # a view holds nothing of its own
        c = torch.ones(500)
        del a
        assert count.now == 8000 + 2000  # b keeps all of a
        del b
        d = torch.ones(100)
    assert (count.peak, count.now) == (10_000, 2400)
    del c, d
    outside = torch.ones(10)
    with PeakBytes() as count:
        outside.add_(1)
        outside.view(2, 5)
    assert count.peak == 0


def test_a_cut_between_calls_of_torchs_layer_holds_less_at_once():
    torch.manual_seed(0)
    x, y = torch.randn(120, 16, 8), torch.randn(120, 16, 32)  # with few rows, stretches are laid side by side
    full, cut = cg.compare(nn.LSTM(8, 32), squared, x, y, ["chunks:10"]).candidates
    states = 120 * 16 * 32 * 4
    assert full.peak_bytes > 6 * states and cut.peak_bytes < full.peak_bytes / 3


def row(name, seconds, peak, bias=0.0, variance=0.0, unbiased=False, look_back=1.0, draws=1, mode="reverse", **more):
    measured = (look_back, seconds, peak, draws, bias, 0.0, variance, 0.0, 1.0, 0.0)
    return Candidate(name, mode, unbiased, *measured, **more)


def comparison(*rows, noise=0.04):
    return Comparison((row("full", 1.0, 100, look_back=5.5), *rows), 1.0, 1.0, noise, 10, 2, 32, 0.1)


def test_the_recommendation_is_the_cheapest_within_the_limits():
    cheap, biased = row("chunks:9", 0.9, 50, bias=0.09), row("chunks:2", 0.5, 10, bias=0.11)
    noisy, quiet = (
        row("random:3", 0.5, 10, variance=0.05, unbiased=True),
        row("random:9", 0.9, 90, variance=0.03, unbiased=True),
    )
    assert comparison(cheap, biased, noisy, quiet).recommended is cheap
    assert comparison(biased, noisy, quiet).recommended is quiet
    assert comparison(biased, noisy).recommended.label == "full"
    assert comparison(noisy, noise=None).recommended.label == "full"  # one row: a variance of 0.1^2 at most
    better = row("chunks:12", 0.95, 52, bias=0.05)  # 6% dearer than chunks:9 and nearer to the exact gradient
    assert comparison(cheap, better).recommended is better
    dearer = row("chunks:20", 1.0, 70, bias=0.01)
    assert comparison(cheap, dearer).recommended is cheap
    assert "bias 0.09 of the gradient" in comparison(cheap).recommendation
    assert "0.90x the time and 0.50x the memory" in comparison(cheap).recommendation
    assert "nothing else was measured" in comparison().recommendation
    for result in (comparison(cheap), comparison(quiet), comparison(biased), comparison()):
        assert "\n" not in result.recommendation and result.recommendation.startswith("use ")


def test_results_are_plain_data_that_draw_themselves(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, 2, 2)
    result = cg.compare(cg.GRU(2, 3), squared, x, torch.randn(40, 2, 3), draws=3)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [entry["truncation"] for entry in plain["candidates"]] == [r.truncation for r in result.candidates]
    assert plain["recommended"] in [r.label for r in result.candidates]
    lines = result.table().splitlines()
    assert len(lines) == len(result.candidates) + 1 and "±" in lines[5]
    assert save(result.plot(), tmp_path / "compare.svg").stat().st_size > 5000


def test_comparing_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model = nn.LSTM(2, 3, num_layers=2, dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    seen = []
    result = cg.compare(
        model,
        squared,
        torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(1)),
        torch.zeros(8, 2, 3),
        ["chunks:8", "chunks:2"],
        on_progress=lambda done, total, what: seen.append((done, total)),
    )
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert result.candidates[1].bias < 1e-6  # the same dropout in every run
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_full_computation_by_another_name_is_not_recommended_for_what_a_clock_says():
    same = row("chunks:10", 0.9, 90, look_back=5.5)
    assert comparison(same).recommended.label == "full"
    less = row("chunks:9", 0.9, 90, bias=0.05, look_back=5.4)
    assert comparison(same, less).recommended is less
    forward = row("full", 0.9, 90, bias=0.05, look_back=5.5, mode="snap:1")  # looks back as far, and is something else
    assert comparison(same, forward).recommended is forward
    assert (
        comparison(same, row("full", 0.9, 90, look_back=5.5, mode="reverse:auto", exact=True)).recommended.label
        == "full"
    )
    lucky = row(
        "random:9", 0.9, 90, variance=0.01, unbiased=True, look_back=5.5, draws=32
    )  # its first draw cut nothing
    assert comparison(same, lucky).recommended is lucky
    x, y = torch.randn(12, 2, 2), torch.randn(12, 2, 3)
    names = ["chunks:12", "chunks:50", "window:12,12", "window:1,12", "window:6,24", "adaptive:0.1,30"]
    for _ in range(3):
        assert cg.compare(cg.GRU(2, 3), squared, x, y, names).recommended.label == "full"


@pytest.mark.parametrize("steps", [*range(1, 13), 39, 40, 41, 200])
def test_the_usual_candidates_all_cut_something(steps):
    found = usual_candidates(steps)
    assert len({str(truncation) for truncation in found}) == len(found) and bool(found) == (steps > 1)
    w, x = 0.99, torch.zeros(steps, 1, 1, dtype=torch.float64)  # slow decay, so that the adaptive one keeps its longest
    result = cg.compare(Bias(w), itself, x, x, draws=2)
    assert [row.truncation for row in result.candidates] == ["full", *map(str, found)]
    full, *others = result.candidates
    for other in others:
        assert other.draws > 1 or other.look_back < full.look_back
        assert other.draws > 1 or other.bias > 0


def test_one_candidate_may_stand_alone():
    x, y = torch.randn(6, 2, 2), torch.randn(6, 2, 3)
    for one in ("chunks:3", cg.Chunks(3), (cg.Chunks(3), cg.Reverse())):
        assert [r.truncation for r in cg.compare(cg.GRU(2, 3), squared, x, y, one).candidates] == ["full", "chunks:3"]
    two = (cg.Chunks(3), cg.Chunks(2))
    assert len(cg.compare(cg.GRU(2, 3), squared, x, y, two).candidates) == 3


class Dropping(nn.Module):
    """Drops out inputs and states step by step."""

    def __init__(self):
        super().__init__()
        self.cell, self.drop = nn.RNNCell(2, 3), nn.Dropout(0.5)

    def forward(self, x, h=None):
        path = []
        for x_t in x:
            h = self.cell(self.drop(x_t), None if h is None else self.drop(h))
            path.append(h)
        return torch.stack(path), h


@pytest.mark.parametrize(
    "make", [Dropping, lambda: nn.LSTM(2, 3, num_layers=2, dropout=0.5), lambda: cg.GRU(2, 3, 2, dropout=0.5)]
)
@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_no_bias(make, mode):
    torch.manual_seed(0)
    model, x, y = make().double(), torch.randn(12, 3, 2).double(), torch.randn(12, 3, 3).double()
    model.train(mode)
    next(iter(model.children()), model).eval()  # a part in another mode than the rest
    modes = [module.training for module in model.modules()]
    names = ["window:12,24", "window:3,15", "adaptive:0.1,24", "window:1,4"]
    result = cg.compare(model, squared, x, y, names)
    full, *others, short = result.candidates
    assert all(other.bias < 1e-10 for other in others) and short.bias > 1e-3
    assert [module.training for module in model.modules()] == modes
    # Against the gradient without dropout, by hand.
    model.eval()
    model.zero_grad()
    squared(model(x)[0], y).mean().backward()
    expected = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    assert result.gradient_norm == pytest.approx(expected)
    assert getattr(model, "dropout", 0.5) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": "a"}, "tolerance must be a number, not 'a'"),
        ({"tolerance": True}, "tolerance must be a number, not True"),
        ({"seed": "a"}, "seed must be a whole number or None, not 'a'"),
        ({"seed": None}, "compare: seed must be a whole number"),
        ({"targets": [1.0]}, "targets must be tensors"),
        ({"model": squared}, "compare: model must be a Module such as"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_in_one_line(options, message):
    given = {"model": nn.GRU(2, 3), "targets": torch.randn(6, 2, 3), "inputs": torch.randn(6, 2, 2), **options}
    with pytest.raises(TypeError, match=message) as caught:
        cg.compare(loss_fn=squared, **given)
    assert "\n" not in str(caught.value)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="compare: the model has no trainable parameter"):
        cg.compare(nn.GRU(2, 3).requires_grad_(False), squared, torch.randn(6, 2, 2), torch.randn(6, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, "draws must be a whole number of at least 2, not 1"),
        ({"tolerance": 0}, "tolerance must be above 0 and finite, not 0"),
        ({"tolerance": math.nan}, "tolerance must be above 0 and finite, not nan"),
        ({"tolerance": math.inf}, "tolerance must be above 0 and finite, not inf"),
        ({"candidates": 35}, "35 is no truncation"),
        ({"candidates": "chunk:3"}, "truncation 'chunk:3' is not understood"),
        ({"candidates": []}, "no candidates"),
        ({"candidates": ["chunk:3"]}, "truncation 'chunk:3' is not understood"),
        ({"candidates": [35]}, "35 is no truncation"),
        ({"weights": torch.zeros(6, 2)}, "norm 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        cg.compare(nn.GRU(2, 3), squared, torch.randn(6, 2, 2), torch.randn(6, 2, 3), **options)
    assert "\n" not in str(caught.value)


def test_modes_stand_beside_each_other():
    """Exact modes give what full computation gives, each at its own price."""
    torch.manual_seed(0)
    model, x, y = cg.GRU(2, 3).double(), torch.randn(400, 2, 2).double(), torch.randn(400, 2, 3).double()
    found = cg.compare(
        model,
        lambda outputs, targets: (outputs - targets).square().mean(-1),
        x,
        y,
        ["full reverse:100KB", (cg.Full(), cg.Scan()), "chunks:50 reverse:100KB", "chunks:50"],
    )
    rows = {(row.truncation, row.mode): row for row in found.candidates}
    assert rows["full", "reverse:100KB"].bias < 1e-10 and rows["full", "scan"].bias < 1e-8
    assert rows["full", "reverse:100KB"].peak_bytes <= 100_000 + 16 * 800 < rows["full", "reverse"].peak_bytes
    assert rows["chunks:50", "reverse:100KB"].bias == pytest.approx(rows["chunks:50", "reverse"].bias)
    assert "reverse:100KB" in found.table()


def test_rows_say_what_holds_by_construction():
    torch.manual_seed(0)
    model, x = cg.RNN(2, 3).double(), torch.randn(12, 2, 2, dtype=torch.float64)
    candidates = [
        "full rtrl",
        "full snap:1",
        "random:4 uoro",
        "chunks:3",
        "full eprop:total",
        "full pes:2,0.1,2,analytic",
    ]
    result = cg.compare(model, lambda outputs, targets: outputs.square().sum(-1), x, None, candidates, draws=2)
    assert {row.label: (row.exact, row.unbiased, row.online) for row in result.candidates} == {
        "full": (True, True, False),
        "full rtrl": (True, True, True),
        "full snap:1": (False, False, True),
        "random:4 uoro": (False, True, True),
        "chunks:3": (False, False, False),
        "full eprop:total": (True, True, False),
        "full pes:2,0.1,2,analytic": (False, False, False),
    }
