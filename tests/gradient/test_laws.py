"""The laws of the contract: streams, resets, weights, changed parameters, the carry, the detach loop, refusals."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import chronograd as cg
from chronograd.modes import parse
from chronograd.support import KINDS, MODES, ROWS, every, find, table
from oracle import Deep, Opaque, assert_close, assert_same_grads, squared

TRUNCATIONS = [
    cg.Full(),
    cg.Chunks(3),
    cg.Window(2, 5),
    cg.Window(5, 2),
    cg.RandomTruncation(2.5),
    cg.RandomTruncation(2.5, tail="polynomial"),
    cg.AdaptiveTruncation(0.3, window=6),
]
MODELS = {
    "layers": lambda: Deep(cg.LSTM(3, 3), nn.GRU(3, 3)),
    "opaque": Opaque,
    "whole": lambda: Whole(),
}


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 3, bidirectional=True)
        self.readout = nn.Linear(6, 2)

    def forward(self, x, state=None):
        h, state = self.rnn(x, state)
        return self.readout(h), state


def data(steps=13, rows=2, seed=0):
    torch.manual_seed(seed)
    return torch.randn(steps, rows, 2, dtype=torch.float64), torch.randn(steps, rows, 2, dtype=torch.float64)


def in_calls(model, x, y, bounds, truncation, **options):
    carry, total, carries = cg.Carry.start(x.shape[1], seed=5), None, []
    for begin, end in zip([0, *bounds], [*bounds, len(x)]):
        part = {name: value[begin:end] for name, value in options.items()}
        gradient, carry = cg.value_and_grad(
            model, squared, x[begin:end], y[begin:end], carry, truncation=truncation, **part
        )
        total = gradient if total is None else total + gradient
        carries.append(carry)
    return total, carries


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("name", ["layers", "opaque"])
@pytest.mark.parametrize("bounds", [[1, 2, 3], [6], [7], [5, 12]], ids=str)
def test_a_stream_of_calls_equals_one_call(name, truncation, bounds):
    x, y = data()
    model = MODELS[name]().double()
    reset = torch.zeros(13, 2, dtype=torch.bool)
    reset[4, 0] = reset[9, 1] = True
    weights = torch.rand(13, 2, dtype=torch.float64)
    whole, (last,) = in_calls(model, x, y, [], truncation, reset=reset, weights=weights)
    parts, carries = in_calls(model, x, y, bounds, truncation, reset=reset, weights=weights)
    assert_close(parts.loss, whole.loss)
    assert_same_grads(parts.grads, whole.grads)
    ours, theirs = carries[-1], last
    assert ours.stream.position == theirs.stream.position == 13
    assert torch.equal(ours.stream.since, theirs.stream.since)
    assert ours.truncation == pytest.approx(theirs.truncation)
    for a, b in zip(torch.utils._pytree.tree_leaves(ours.state), torch.utils._pytree.tree_leaves(theirs.state)):
        assert_close(a, b)


@pytest.mark.filterwarnings("ignore:value_and_grad with Full")
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_a_carry_can_be_written_and_read_back_anywhere(truncation):
    x, y = data()
    model = MODELS["layers"]().double()
    _, carries = in_calls(model, x[:8], y[:8], [3], truncation)
    file = io.BytesIO()
    torch.save(carries[-1].state_dict(), file)
    file.seek(0)
    again = cg.Carry.from_state_dict(torch.load(file, weights_only=True))
    one, _ = cg.value_and_grad(model, squared, x[8:], y[8:], carries[-1], truncation=truncation)
    two, _ = cg.value_and_grad(model, squared, x[8:], y[8:], again, truncation=truncation)
    assert torch.equal(one.loss, two.loss)
    assert all(torch.equal(one.grads[name], two.grads[name]) for name in one.grads)


@pytest.mark.parametrize("build", [lambda: nn.GRU(2, 5), lambda: cg.GRU(2, 5)], ids=["torch", "own"])
def test_chunks_with_an_optimizer_between_aligned_calls_is_the_detach_loop(build):
    torch.manual_seed(0)
    k, x, y = 4, torch.randn(24, 3, 2, dtype=torch.float64), torch.randn(24, 3, 5, dtype=torch.float64)
    ours, theirs = build().double(), nn.GRU(2, 5).double()
    theirs.load_state_dict(ours.state_dict())
    our_optimizer, their_optimizer = (torch.optim.Adam(m.parameters(), 0.05) for m in (ours, theirs))
    carry, state = None, None
    for begin in range(0, 24, k):
        chunk = slice(begin, begin + k)
        gradient, carry = cg.value_and_grad(ours, squared, x[chunk], y[chunk], carry, truncation=cg.Chunks(k))
        assert carry.open_steps == 0  # aligned calls run nothing again
        gradient.assign(ours)
        our_optimizer.step()

        their_optimizer.zero_grad()
        outputs, state = theirs(x[chunk], state)
        squared(outputs, y[chunk]).mean().backward()
        their_optimizer.step()
        state = state.detach()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert_close(a.detach(), b.detach())
    assert_close(carry.state, state)


def test_chunks_on_our_gru_gives_the_detach_loop_of_torchs_gru_in_float32():
    torch.manual_seed(0)
    ours, theirs = cg.GRU(8, 32, num_layers=2), nn.GRU(8, 32, num_layers=2)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(70, 16, 8), torch.randn(70, 16, 32)
    gradient, _ = cg.value_and_grad(ours, squared, x, y, truncation=cg.Chunks(35))
    state = None
    for chunk in (slice(0, 35), slice(35, 70)):
        outputs, state = theirs(x[chunk], state)
        (squared(outputs, y[chunk]).sum() / (70 * 16)).backward()
        state = state.detach()
    for name, parameter in theirs.named_parameters():
        assert_close(gradient.grads[name], parameter.grad, 1e-5)


@pytest.mark.parametrize("truncation", [cg.Chunks(5), cg.Window(1, 4)], ids=str)
def test_what_is_open_runs_again_under_the_parameters_as_they_are_now(truncation):
    x, y = data(10)
    model = MODELS["layers"]().double()
    _, carry = cg.value_and_grad(model, squared, x[:3], y[:3], truncation=truncation)
    assert carry.open_steps == 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    gradient, carry = cg.value_and_grad(model, squared, x[3:5], y[3:5], carry, truncation=truncation)
    weights = torch.ones(5, 2)
    weights[:3] = 0
    expected, fresh = cg.value_and_grad(model, squared, x[:5], y[:5], truncation=truncation, weights=weights)
    assert_close(gradient.loss, expected.loss)
    assert_same_grads(gradient.grads, expected.grads)
    for a, b in zip(torch.utils._pytree.tree_leaves(carry.state), torch.utils._pytree.tree_leaves(fresh.state)):
        assert_close(a, b)


def test_dropout_is_replayed_in_the_open_segment():
    torch.manual_seed(0)
    x, y = data(6)
    model = Deep(cg.GRU(3, 3, num_layers=2, dropout=0.5), nn.GRU(3, 3)).double()
    torch.manual_seed(1)
    _, carry = cg.value_and_grad(model, squared, x[:4], y[:4], truncation=cg.Chunks(10), seed=0)
    gradient, after = cg.value_and_grad(model, squared, x[4:], y[4:], carry, truncation=cg.Chunks(10))
    torch.manual_seed(1)
    outputs, state = model(x[:4], None)
    outputs, state = model(x[4:], state)
    squared(outputs, y[4:]).mean().backward()
    assert_same_grads(gradient.grads, {name: p.grad for name, p in model.named_parameters()})
    assert_close(after.state[0], state[0].detach())


def test_full_over_calls_warns_once_and_names_the_remedies():
    x, y = data(6)
    model = MODELS["layers"]().double()
    _, carry = cg.value_and_grad(model, squared, x[:2], y[:2])
    with pytest.warns(UserWarning, match=r"2 steps.*carry\.cut\(\).*cg\.Chunks"):
        _, carry = cg.value_and_grad(model, squared, x[2:4], y[2:4], carry)
    _, carry = cg.value_and_grad(model, squared, x[4:], y[4:], carry)  # warnings are errors: silence is the test
    assert carry.cut().open_steps == 0


def test_full_forgets_what_lies_before_every_rows_last_reset():
    x, y = data(10)
    reset = torch.zeros(10, 2, dtype=torch.bool)
    reset[4, 0] = reset[7, 1] = True
    _, carry = cg.value_and_grad(MODELS["layers"]().double(), squared, x, y, reset=reset)
    assert (carry.segment.start, carry.open_steps) == (4, 6)


def test_cutting_the_carry_is_the_tutorials_detach():
    x, y = data(8)
    model = MODELS["opaque"]().double()
    _, carry = cg.value_and_grad(model, squared, x[:4], y[:4])
    gradient, _ = cg.value_and_grad(model, squared, x[4:], y[4:], carry.cut())
    _, state = model(x[:4], None)
    outputs, _ = model(x[4:], torch.utils._pytree.tree_map(torch.Tensor.detach, state))
    squared(outputs, y[4:]).mean().backward()
    assert_same_grads(gradient.grads, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_padding_reaches_nothing_whatever_it_holds(truncation):
    x, y = data(9)
    lengths = torch.tensor([9, 4])
    model = MODELS["opaque"]().double()
    clean, carry = cg.value_and_grad(model, squared, x, y, truncation=truncation, lengths=lengths, seed=3)
    x, y = x.clone(), y.clone()
    x[4:, 1] = y[4:, 1] = torch.nan
    dirty, after = cg.value_and_grad(model, squared, x, y, truncation=truncation, lengths=lengths, seed=3)
    assert_close(dirty.loss, clean.loss)
    assert_same_grads(dirty.grads, clean.grads)
    assert_close(after.state["h"], carry.state["h"])
    assert dirty.weight == 13


def test_padded_tokens_out_of_range_do_no_harm():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.readout = nn.Embedding(5, 3), cg.GRU(3, 4), nn.Linear(4, 5)

        def forward(self, tokens, state=None):
            h, state = self.layer(self.embed(tokens), state)
            return self.readout(h), state

    def loss_fn(logits, targets):
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    torch.manual_seed(0)
    tokens = torch.randint(5, (6, 2))
    tokens[3:, 1] = -100
    gradient, _ = cg.value_and_grad(Tokens(), loss_fn, tokens, tokens, lengths=[6, 3], truncation=cg.Chunks(2))
    assert all(torch.isfinite(g).all() for g in gradient.grads.values())


def test_weight_zero_throughout_gives_loss_zero_and_zero_gradients():
    x, y = data(4)
    model = MODELS["layers"]().double()
    gradient, _ = cg.value_and_grad(model, squared, x, y, weights=torch.zeros(4, 2))
    assert gradient.weight == 0 and gradient.loss == 0
    assert gradient.grads.keys() == dict(model.named_parameters()).keys()
    assert not any(g.any() for g in gradient.grads.values())
    other, _ = cg.value_and_grad(model, squared, x, y)
    assert_same_grads((gradient + other).grads, other.grads)


def test_frozen_and_unreached_parameters_are_absent():
    x, y = data(4)
    model = MODELS["layers"]().double()
    model.unused = nn.Parameter(torch.ones(2))
    model.readout.bias.requires_grad_(False)
    gradient, _ = cg.value_and_grad(model, squared, x, y)
    missing = dict(model.named_parameters()).keys() - gradient.grads.keys()
    assert missing == {"unused", "readout.bias"}
    model.unused.grad = torch.ones(2)
    gradient.assign(model)
    assert model.unused.grad is None
    gradient.add_to(model)
    assert_close(model.readout.weight.grad, 2 * gradient.grads["readout.weight"])


def test_clipping_the_assigned_gradient_leaves_the_value_alone():
    x, y = data(4)
    model = MODELS["layers"]().double()
    gradient, _ = cg.value_and_grad(model, squared, x, y)
    before = float(gradient.norm())
    gradient.assign(model)
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)) == pytest.approx(before)
    assert float(gradient.norm()) == before


@pytest.mark.parametrize("truncation", [t for t in TRUNCATIONS if t.primitive == "gates"], ids=str)
@pytest.mark.filterwarnings("ignore:.*with Full")
def test_unroll_carries_the_gates_in_its_graph(truncation):
    x, y = data(12)
    for name in ("layers", "opaque"):
        model = MODELS[name]().double()
        carry = other = cg.Carry.start(2, seed=1)
        for part in (slice(0, 5), slice(5, 12)):
            outputs, carry = cg.unroll(model, x[part], carry, truncation=truncation)
            model.zero_grad()
            squared(outputs, y[part]).mean().backward()
            gradient, other = cg.value_and_grad(model, squared, x[part], y[part], other, truncation=truncation)
            assert_same_grads(gradient.grads, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
            assert carry.open_steps == other.open_steps


def test_draws_follow_global_rows_not_the_batch_they_come_in():
    x, y = data(20, 4)
    model = MODELS["layers"]().double()
    truncation = cg.RandomTruncation(3)
    whole, _ = cg.value_and_grad(model, squared, x, y, cg.Carry.start(4, seed=9), truncation=truncation)
    halves = [
        cg.value_and_grad(
            model, squared, x[:, rows], y[:, rows], cg.Carry.start(2, seed=9, rows=rows), truncation=truncation
        )[0]
        for rows in ([0, 2], [3, 1])
    ]
    assert_same_grads((halves[0] + halves[1]).grads, whole.grads)


# The support matrix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize(("door", "mode"), [*(("value_and_grad", mode) for mode in MODES), ("unroll", "reverse")])
def test_the_matrix_says_what_happens(door, mode, truncation, kind):
    from chronograd.support import row_of

    x, y = data(8)
    model = MODELS[kind]().double()
    support = find(row_of(truncation), mode, kind, door)

    def call():
        if door == "unroll":
            return cg.unroll(model, x, truncation=truncation)
        texts = {"reverse within a budget": "reverse:1MB", "forward": "rtrl", "evolution": "pes:2,0.1"}
        mode_given = parse(texts.get(mode, mode))
        return cg.value_and_grad(model, squared, x, y, truncation=truncation, mode=mode_given)

    if support:
        result, carry = call()
        assert carry.stream.position == 8
    else:
        with pytest.raises(ValueError, match="use ") as caught:
            call()
        assert "\n" not in str(caught.value) and str(truncation) in str(caught.value)


def test_the_matrix_is_whole():
    wanted = {(row, mode, kind) for row in ROWS for mode in MODES for kind in KINDS}
    for door in ("value_and_grad", "unroll"):
        assert {entry[:3] for entry in every(door)} == wanted
        for mode in MODES:
            entries = [support for _, known, _, support in every(door) if known == mode]
            assert table(door, mode).count("\n") == len(ROWS) + 1 and any(not support for support in entries)
            assert all(support.how if support else support.remedy.startswith("use ") for support in entries)


def test_a_model_that_hides_its_steps_takes_one_whole_call_only():
    x, y = data(5)
    model = Whole().double()
    gradient, carry = cg.value_and_grad(model, squared, x, y)
    squared(model(x)[0], y).mean().backward()
    assert_same_grads(gradient.grads, {n: p.grad for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match="bidirectional.*one call"):
        cg.value_and_grad(model, squared, x, y, carry)
    with pytest.raises(ValueError, match="bidirectional"):
        cg.value_and_grad(model, squared, x, y, lengths=[5, 3])


def test_running_the_open_segment_again_leaves_the_generator_where_it_was():
    x, y = data(6)
    model = Deep(cg.GRU(3, 3, num_layers=2, dropout=0.5), nn.GRU(3, 3)).double()
    _, carry = cg.value_and_grad(model, squared, x[:4], y[:4], truncation=cg.Chunks(10), seed=0)
    torch.manual_seed(7)  # what was drawn between the calls is the user's
    cg.value_and_grad(model, squared, x[4:], y[4:], carry, truncation=cg.Chunks(10))
    after = torch.rand(3)
    torch.manual_seed(7)
    model(x[4:], carry.state)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(
    ("truncation", "module", "name"),
    [(cg.Window(1, 4), "windows", "TILE_BYTES"), (cg.Chunks(2), "gated", "GROUP_BYTES")],
    ids=["windows", "chunks"],
)
def test_what_runs_side_by_side_is_bounded_by_its_cap(truncation, module, name, monkeypatch):
    from importlib import import_module

    from chronograd.measure.cost import PeakBytes

    torch.manual_seed(0)
    x, y = torch.randn(1200, 1, 2), torch.randn(1200, 1, 16)
    model, peaks, grads = cg.GRU(2, 16), [], []
    for cap in (None, 2**16):
        if cap is not None:
            monkeypatch.setattr(import_module(f"chronograd.modes.{module}"), name, cap)
        with PeakBytes() as count:
            gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=truncation)
        peaks.append(count.peak)
        grads.append(gradient.grads)
    assert_same_grads(grads[1], grads[0], 1e-4)
    assert peaks[1] < 0.75 * peaks[0]


def test_the_truncation_may_change_inside_a_stream():
    x, y = data(12)
    model = MODELS["layers"]().double()
    others = [cg.Chunks(50), cg.AdaptiveTruncation(0.1, 4), cg.Window(1, 3), cg.RandomTruncation(3), cg.Window(2, 4)]
    carry = cg.Carry.start(2, seed=0)
    for begin, truncation in enumerate([*others, *reversed(others)]):
        gradient, carry = cg.value_and_grad(
            model, squared, x[begin : begin + 1], y[begin : begin + 1], carry, truncation=truncation
        )
        assert bool(torch.isfinite(gradient.norm()))


def test_gradients_are_computed_under_no_grad_too():
    x, y = data(4)
    model = MODELS["opaque"]().double()
    expected, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Chunks(2))
    with torch.no_grad():
        gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Chunks(2))
    assert_same_grads(gradient.grads, expected.grads)


def test_a_loader_may_use_its_buffers_again():
    x, y = data(8)
    model = MODELS["layers"]().double()
    buffer = x[:4].clone()
    _, carry = cg.value_and_grad(model, squared, buffer, y[:4], truncation=cg.Chunks(8))
    expected, _ = cg.value_and_grad(model, squared, x[4:], y[4:], carry, truncation=cg.Chunks(8))
    buffer.zero_()
    gradient, _ = cg.value_and_grad(model, squared, x[4:], y[4:], carry, truncation=cg.Chunks(8))
    assert torch.equal(gradient.loss, expected.loss)


class Counting(nn.Module):
    """A cell that counts its calls, those with a graph and those without, and draws a mask where it is told to."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.cell, self.dropout = nn.GRUCell(2, 4), dropout
        self.calls = {True: 0, False: 0}
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, h):
        self.calls[torch.is_grad_enabled()] += 1
        self.seen += 1
        x = nn.functional.dropout(x, self.dropout) if self.dropout else x
        return self.cell(x, h)


@pytest.mark.parametrize("truncation", [cg.Chunks(5), cg.Window(5, 5), cg.Window(1, 5)], ids=str)
def test_where_the_step_is_known_the_graph_holds_as_many_steps_as_the_longest_stretch(truncation):
    x, y = data(40)
    cell = Counting().double()
    model = cg.Recurrent(cell)
    cg.value_and_grad(model, squared, x[:3], y[:3, :, :1])  # what the model is looked at for is not counted below
    cell.calls = {True: 0, False: 0}
    cg.value_and_grad(model, squared, x, y[..., :1], truncation=truncation)
    # One batch of 5 steps; stretches that begin with the initial state lie apart, by length: 1, 2..3, 4..5. The model
    # is looked at in 6 steps.
    assert cell.calls[True] <= 5 + 1 + 3 + 5 + 6
    assert cell.calls[False] >= 35


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_draws_runs_every_step_once_between_cuts(late):
    x, y = data(20)
    cell = Counting(dropout=0.0 if late else 0.5).double()
    if late:  # its first steps do not tell
        x[:3] = 0

        def draw(_, given):
            return (nn.functional.dropout(given[0]), *given[1:]) if bool(given[0].any()) else None

        cell.cell.register_forward_pre_hook(draw)
    model = cg.Recurrent(cell, nn.Linear(4, 2)).double()
    torch.manual_seed(3)
    gradient, _ = cg.value_and_grad(model, squared, x, y, cg.Carry.start(2, seed=0), truncation=cg.Chunks(5))
    torch.manual_seed(3)
    state, loss = None, 0
    for begin in range(0, 20, 5):
        outputs, state = model(x[begin : begin + 5], None if state is None else state.detach())
        loss = loss + squared(outputs, y[begin : begin + 5]).sum() / 40
    loss.backward()
    assert_same_grads(gradient.grads, {name: p.grad for name, p in model.named_parameters()})


def test_the_pass_that_finds_the_starts_of_stretches_leaves_buffers_alone():
    x, y = data(20)
    cell = Counting().double()
    model = cg.Recurrent(cell)
    cg.value_and_grad(model, squared, x, y[..., :1], truncation=cg.Chunks(5))
    assert float(cell.seen) <= 2 * 5


class Reader(nn.Module):
    """A loop of cells that reads h_{t-1} once more, through a weight that is zero at first."""

    def __init__(self):
        super().__init__()
        self.cell, self.gain = nn.GRUCell(2, 2), nn.Parameter(torch.zeros(()))

    def forward(self, inputs, state=None):
        state = inputs.new_zeros(inputs.shape[1], 2) if state is None else state
        outputs = []
        for x in inputs:
            state = self.cell(x + self.gain * state, state)
            outputs.append(state)
        return torch.stack(outputs), state


class Checkpointed(nn.Module):
    """A layer that is run again on the way back."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs, state=None):
        state = inputs.new_zeros(1, inputs.shape[1], 2) if state is None else state
        return torch.utils.checkpoint.checkpoint(self.layer, inputs, state, use_reentrant=False)


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(4), cg.Window(2, 3)], ids=str)
@pytest.mark.parametrize(
    "make",
    [Reader, lambda: Checkpointed(cg.GRU(2, 2)), lambda: Checkpointed(nn.GRU(2, 2))],
    ids=["zero weight", "our layer run again", "torch's layer run again"],
)
def test_a_reset_reaches_what_values_alone_do_not_show(make, truncation):
    x, y = data(8)
    torch.manual_seed(0)
    model = make().double()
    reset = torch.zeros(8, 2, dtype=torch.bool)
    reset[4] = True
    gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=truncation, reset=reset)
    parts = [
        cg.value_and_grad(model, squared, part, target, truncation=truncation)[0]
        for part, target in zip(x.split(4), y.split(4))
    ]
    assert_same_grads(gradient.grads, sum(parts).grads)


@pytest.mark.parametrize("truncation", [cg.Full(), cg.Chunks(20), cg.RandomTruncation(12)], ids=str)
def test_a_stream_of_single_steps_is_run_again_in_few_calls(truncation):
    x, y = data(30)

    class Watched(nn.GRU):
        calls = 0

        def forward(self, *given):
            type(self).calls += 1
            return super().forward(*given)

    model, carry, total = Watched(2, 2).double(), cg.Carry.start(2, seed=1), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for begin in range(30):
            before = Watched.calls
            step = slice(begin, begin + 1)
            gradient, carry = cg.value_and_grad(model, squared, x[step], y[step], carry, truncation=truncation)
            total.append(gradient)
            # Two parts of the history, the new step, and what the model is looked at for.
            assert Watched.calls - before <= 3 + 12
            assert len(carry.segment.pieces) <= 1
    whole, _ = cg.value_and_grad(model, squared, x, y, cg.Carry.start(2, seed=1), truncation=truncation)
    assert_same_grads(sum(total).grads, whole.grads)


def test_recurrent_takes_nested_inputs():
    x, y = data(8)
    cell = nn.GRUCell(2, 2).double()
    nested = cg.Recurrent(Doubled(cell))
    nested.cell.forward = lambda given, h: cell(given["a"] + given["b"][0], h)
    for truncation in (cg.Full(), cg.Chunks(3), cg.Window(1, 3), cg.RandomTruncation(3)):
        found, _ = cg.value_and_grad(nested, squared, {"a": x / 2, "b": (x / 2,)}, y, truncation=truncation, seed=2)
        plain, _ = cg.value_and_grad(cg.Recurrent(cell), squared, x, y, truncation=truncation, seed=2)
        assert_same_grads(found.grads, {f"cell.{name}": grad for name, grad in plain.grads.items()})


def test_the_warning_of_full_comes_once_a_stream_and_again_after_a_cut():
    x, y = data(8)
    model, carry, count = nn.GRU(2, 2).double(), None, []
    for begin in range(0, 8, 2):
        carry = carry.cut() if begin == 4 and carry is not None else carry
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, carry = cg.value_and_grad(model, squared, x[begin : begin + 2], y[begin : begin + 2], carry)
        count.append(len(caught))
    assert count == [0, 1, 0, 1]


class Reading(nn.Module):
    """A decoder that attends over a memory of its own at each step, or over the steps themselves."""

    def __init__(self, over_time=False):
        super().__init__()
        self.cell, self.attention = nn.GRUCell(2, 4), nn.MultiheadAttention(4, 1)
        self.memory, self.over_time = nn.Parameter(torch.randn(5, 1, 4)), over_time

    def forward(self, inputs, state):
        state = inputs.new_zeros(inputs.shape[1], 4) if state is None else state
        states = []
        for x in inputs:
            state = self.cell(x, state)
            states.append(state)
        history = torch.stack(states)
        memory = history if self.over_time else self.memory.expand(-1, inputs.shape[1], -1)
        return self.attention(history, memory, memory)[0], state


def test_attention_over_a_memory_of_its_own_hides_no_steps():
    x, y = data(8)
    y = torch.cat((y, y), -1)
    with pytest.raises(ValueError, match="attention attends over time"):
        cg.value_and_grad(Reading(over_time=True).double(), squared, x, y, truncation=cg.Chunks(4))
    model = Reading().double()
    gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Chunks(4))
    first, state = model(x[:4], None)
    second, _ = model(x[4:], state.detach())
    squared(torch.cat((first, second)), y).mean().backward()
    assert_same_grads(gradient.grads, {name: p.grad for name, p in model.named_parameters()})


def test_a_model_made_for_one_batch_size_takes_its_windows_one_by_one():
    class Fixed(nn.Module):
        state_row_dim = 0

        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(2, 2)

        def forward(self, inputs, state):
            state = inputs.new_zeros(3, 2) if state is None else state
            outputs = []
            for x in inputs:
                state = self.cell(x, state.reshape(3, 2)) * 1.0
                outputs.append(state)
            return torch.stack(outputs), state

    x, y = torch.randn(8, 3, 2).double(), torch.randn(8, 3, 2).double()
    model = Fixed().double()
    gradient, _ = cg.value_and_grad(model, squared, x, y, truncation=cg.Window(2, 4))
    expected, _ = cg.value_and_grad(cg.Recurrent(Doubled(model.cell)), squared, x, y, truncation=cg.Window(2, 4))
    assert_same_grads({f"cell.{n}": g for n, g in gradient.grads.items()}, expected.grads)


class Doubled(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, h):
        return self.cell(x, h) * 1.0


def test_nan_behind_the_last_loss_that_counts_is_named():
    x, y = data(6)
    x[4, 1] = torch.nan
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).unsqueeze(1).expand(6, 2)
    for model in (nn.GRU(2, 2).double(), MODELS["opaque"]().double()):
        with pytest.raises(ValueError, match="inputs hold NaN or infinity at step 4 of this call, row 1"):
            cg.value_and_grad(model, squared, x, y, weights=weights)
        with pytest.raises(ValueError, match="inputs hold NaN or infinity at step 4 of this call, row 1"):
            cg.unroll(model, x)
