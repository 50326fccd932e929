"""The loop against the tutorials' loop, written by hand over torch.nn in float64; and what it says of NaN."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from chronograd import Chunks, RandomTruncation
from chronograd.data.streams import ChunkStream
from chronograd.training.loop import training_steps
from chronograd.training.losses import cross_entropy, squared_error
from chronograd.training.model import CharModel


def detached(state):
    return state if state is None else tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def tutorial_losses(twin, chunks, k, optimizer, clip, nats):
    """Detach every k steps, one update a chunk, a fresh state where the text starts again."""
    state, losses = None, []
    for chunk in chunks:
        state = None if chunk.reset is not None else state
        steps = torch.arange(chunk.inputs.shape[0]).unsqueeze(1)
        counts = steps < (
            torch.tensor([len(steps)] * chunk.inputs.shape[1]) if chunk.lengths is None else chunk.lengths
        )
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(steps), k):
            piece = slice(start, start + k)
            logits, state = twin(chunk.inputs[piece], detached(state))
            total = total + nats(logits, chunk.targets[piece])[counts[piece]].sum()
        optimizer.zero_grad()
        (total / counts.sum()).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.step()
        losses.append(float(total.detach() / counts.sum()))
    return losses


@pytest.mark.parametrize(
    ("cell", "layers", "chunk", "k", "clip"),
    [("gru", 1, 10, 10, None), ("gru", 2, 10, 5, 0.3), ("lstm", 1, 10, 10, 0.3), ("rnn", 1, 6, 2, None)],
)
def test_aligned_chunks_are_the_detach_loop(cell, layers, chunk, k, clip, make_twin, nats):
    torch.manual_seed(1)
    model = CharModel(6, cell, hidden=7, layers=layers).double()
    twin = make_twin(model)
    tokens = torch.randint(0, 6, (4 * 23 + 3,))  # rows of 24, 24, 23, 23: three chunks of ten an epoch, the last padded
    stream = ChunkStream(tokens, 4, chunk, tail="pad", epochs=None)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    steps = training_steps(model, stream, optimizer=optimizer, truncation=Chunks(k), clip=clip)
    ours = [done.loss for done in islice(steps, 9)]
    stream.rewind()
    adam = torch.optim.Adam(twin.parameters(), 0.02)
    theirs = tutorial_losses(twin, islice(stream, 9), k, adam, clip, nats)
    assert ours == pytest.approx(theirs, rel=1e-10)
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10, msg=name)


def test_forgetting_the_carry_is_another_loop():
    def losses(keep):
        torch.manual_seed(1)
        model = CharModel(6, "gru", hidden=7).double()
        stream = ChunkStream(torch.arange(200) % 6, 4, 5)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        found, carry = [], None
        for chunk in stream:
            one = training_steps(model, [chunk], optimizer=optimizer, truncation=Chunks(5), carry=carry, seed=0)
            done = next(one)
            found.append(done.loss)
            carry = done.carry if keep else None
        return found

    assert losses(True)[0] == losses(False)[0]
    assert losses(True)[1] != losses(False)[1]


def test_clipping_keeps_the_direction_and_gives_the_length():
    tokens = torch.randint(0, 5, (201,))

    def change(clip):
        torch.manual_seed(2)
        model = CharModel(5, "gru", hidden=6).double()
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        done = next(training_steps(model, ChunkStream(tokens, 4, 20), optimizer=optimizer, clip=clip))
        return before - nn.utils.parameters_to_vector(model.parameters()).detach(), done.norm

    whole, norm = change(None)
    assert float(whole.norm()) == pytest.approx(norm)
    short, same_norm = change(norm / 10)
    assert same_norm == norm
    torch.testing.assert_close(short, whole / 10, rtol=1e-4, atol=0)  # torch's clip adds 1e-6 to the norm
    untouched, _ = change(norm * 10)
    torch.testing.assert_close(untouched, whole, rtol=0, atol=0)


def test_parameters_no_loss_reaches_stay_where_they_are():
    class Spare(CharModel):
        def __init__(self):
            super().__init__(5, "rnn", hidden=4)
            self.spare = nn.Linear(2, 2)

    model = Spare()
    model.spare.weight.grad = torch.full((2, 2), 1e9)  # left behind by something else
    before = model.spare.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    stream = ChunkStream(torch.arange(50) % 5, 2, 8)
    done = next(training_steps(model, stream, optimizer=optimizer, clip=1.0))
    assert model.spare.weight.grad is None and torch.equal(model.spare.weight, before)
    assert done.norm < 1e3


def test_draws_follow_the_row_numbers_of_the_stream():
    model = CharModel(5, "rnn", hidden=4)
    stream = ChunkStream(torch.arange(100) % 5, 4, 6, rows=[3, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    done = next(training_steps(model, stream, optimizer=optimizer, truncation=RandomTruncation(4), seed=9))
    assert done.carry.stream.rows.tolist() == [3, 1] and done.carry.stream.seed == 9


def test_steps_go_on_counting_and_end_with_the_stream():
    model = CharModel(5, "rnn", hidden=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stream = ChunkStream(torch.arange(41) % 5, 4, 4)
    done = list(training_steps(model, stream, optimizer=optimizer, truncation=Chunks(4), first_step=7))
    assert [step.step for step in done] == [8, 9, 10]
    assert [step.tokens for step in done] == [16, 16, 8]
    assert done[0].bits == pytest.approx(done[0].loss / 0.6931471805599453)


class Poisoned(CharModel):
    """NaN wherever the input is token 2."""

    def forward(self, inputs, state=None):
        logits, state = super().forward(inputs, state)
        return torch.where((inputs == 2).unsqueeze(-1), torch.nan, logits), state


def test_nan_is_reported_with_its_step_and_time_step_before_any_update():
    tokens = torch.zeros(2 * 20 + 1, dtype=torch.int64)
    tokens[20 + 13] = 2  # row 1, step 13 of the stream: step 3 of the second chunk of ten
    model = Poisoned(3, "gru", hidden=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = training_steps(model, ChunkStream(tokens, 2, 10), optimizer=optimizer, truncation=Chunks(10))
    next(steps)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"^step 2: the loss is nan \(first at time step 3 of the chunk, "
    ) as no:
        next(steps)
    assert "stream position 13, row 1)" in str(no.value) and "\n" not in str(no.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Tiring(nn.Module):
    """Counts its steps in the state, and gives NaN from the eighth on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, state=None):
        count = inputs.new_zeros(inputs.shape[1]) if state is None else state
        counts = count + torch.arange(1, len(inputs) + 1).unsqueeze(1)
        return self.weight * torch.where(counts > 7, torch.nan, counts), counts[-1]


def test_the_place_of_nan_takes_rows_that_start_anew_into_account():
    chunk = next(ChunkStream(torch.zeros(21, dtype=torch.int64), 2, 10))
    inputs, reset = torch.zeros(10, 2), torch.zeros(10, 2, dtype=torch.bool)
    reset[5, 0] = True  # row 0 counts to 5 twice, row 1 to 10
    chunk = replace(chunk, inputs=inputs, targets=inputs, reset=reset)
    model = Tiring()
    steps = training_steps(model, [chunk], optimizer=torch.optim.SGD(model.parameters(), 0.1), loss_fn=squared_error)
    with pytest.raises(FloatingPointError, match="first at time step 7 of the chunk, stream position 7, row 1"):
        next(steps)


def test_nan_beyond_a_rows_length_is_no_nan():
    tokens = torch.zeros(2 * 5 + 2, dtype=torch.int64)  # rows of 6 and 5 steps
    stream = ChunkStream(tokens, 2, 6, tail="pad")
    chunk = next(stream)
    assert chunk.lengths is not None
    chunk.inputs[5, 1] = 2
    model = Poisoned(3, "gru", hidden=4)
    done = next(training_steps(model, [chunk], optimizer=torch.optim.SGD(model.parameters(), 0.1)))
    assert done.loss == done.loss and done.tokens == 11


class BadGradient(CharModel):
    """A finite loss whose gradient is 0 / 0."""

    def forward(self, inputs, state=None):
        logits, state = super().forward(inputs, state)
        return logits + torch.sqrt(self.readout.bias[0] * 0), state


@pytest.mark.parametrize(
    ("make", "loss_fn", "says"),
    [
        (
            lambda: BadGradient(3, "rnn", hidden=4),
            cross_entropy,
            "step 1: the gradient of 'readout.bias' is not finite",
        ),
        (
            lambda: CharModel(3, "rnn", hidden=4),
            lambda logits, targets: cross_entropy(logits, targets) * 1e25,
            "step 1: the norm of the gradient is not finite: its square overflows",
        ),
    ],
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_are_not_finite_are_named(make, loss_fn, says, clip):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stream = ChunkStream(torch.arange(50) % 3, 2, 8)
    with pytest.raises(FloatingPointError, match=says):
        next(training_steps(model, stream, optimizer=optimizer, loss_fn=loss_fn, clip=clip))


def test_parameters_that_are_not_finite_are_named():
    model = CharModel(3, "rnn", hidden=4)
    with torch.no_grad():
        model.layer.weight_hh_l0[0, 0] = torch.inf
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stream = ChunkStream(torch.arange(50) % 3, 2, 8)
    with pytest.raises(FloatingPointError, match=r"step 1: parameter 'layer\.weight_hh_l0' is not finite"):
        next(training_steps(model, stream, optimizer=optimizer))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_is_no_length_is_refused(clip):
    model = CharModel(3, "rnn", hidden=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="clip must be a positive number or None"):
        next(training_steps(model, ChunkStream(torch.arange(50) % 3, 2, 8), optimizer=optimizer, clip=clip))
