"""Streams: every prediction once, rows that go on, an exact position. The oracle is the raw text itself."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.data.corpora import map_corpus
from chronograd.data.streams import Chunk, ChunkStream, split_tokens


def rows_of(chunks: list[Chunk], batch: int) -> list[list[tuple[int, int]]]:
    """The (input, target) pairs that each row yields over the chunks, valid steps only."""
    rows: list[list[tuple[int, int]]] = [[] for _ in range(batch)]
    for chunk in chunks:
        for b in range(batch):
            valid = chunk.inputs.shape[0] if chunk.lengths is None else int(chunk.lengths[b])
            rows[b] += zip(chunk.inputs[:valid, b].tolist(), chunk.targets[:valid, b].tolist(), strict=True)
    return rows


def same(one: Chunk, two: Chunk) -> bool:
    def equal(a, b):
        return (a is None) == (b is None) and (a is None or torch.equal(a, b))

    return all(equal(getattr(one, n), getattr(two, n)) for n in ("inputs", "targets", "reset", "lengths")) and (
        (one.epoch, one.index) == (two.epoch, two.index)
    )


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 70)).map(lambda s: (s[0], s[1], s[0] + s[2]))


@given(SIZES, st.sampled_from(["short", "pad"]))
@settings(deadline=None)
def test_the_rows_end_to_end_are_the_text_and_nothing_is_lost(sizes, tail):
    batch, chunk, count = sizes
    tokens = torch.randperm(count)
    chunks = list(ChunkStream(tokens, batch, chunk, tail=tail))
    pairs = [pair for row in rows_of(chunks, batch) for pair in row]
    assert pairs == list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    assert sum(c.tokens for c in chunks) == count - 1
    lengths = [len(row) for row in rows_of(chunks, batch)]
    assert max(lengths) - min(lengths) <= 1
    if tail == "pad":
        assert all(c.inputs.shape == (chunk, batch) for c in chunks)
    else:
        assert all(c.inputs.shape == (chunk, batch) for c in chunks[:-1])
    for c in chunks:
        assert c.inputs.dtype == c.targets.dtype == torch.int64


@given(SIZES)
@settings(deadline=None)
def test_drop_yields_whole_chunks_of_equal_rows(sizes):
    batch, chunk, count = sizes
    tokens = torch.randperm(count)
    if (count - 1) // batch < chunk:
        with pytest.raises(ValueError, match="not one chunk"):
            ChunkStream(tokens, batch, chunk, tail="drop")
        return
    chunks = list(ChunkStream(tokens, batch, chunk, tail="drop"))
    assert all(c.lengths is None and c.inputs.shape == (chunk, batch) for c in chunks)
    assert len(chunks) == (count - 1) // batch // chunk
    following = dict(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    for row in rows_of(chunks, batch):
        assert all(following[a] == b for a, b in row)
        assert all(row[i][1] == row[i + 1][0] for i in range(len(row) - 1))


def test_row_continuity_in_the_raw_text(timemachine_path):
    text = timemachine_path.read_text()
    codes = torch.tensor([ord(c) for c in text])
    batch, chunk = 5, 1000
    read = rows_of(list(ChunkStream(codes, batch, chunk)), batch)
    whole = ""
    for row in read:
        piece = "".join(chr(a) for a, _ in row)
        assert piece in text
        whole += piece
    assert whole == text[:-1]


def test_a_memory_map_is_the_same_as_memory(tmp_path):
    content = bytes(np.random.default_rng(0).integers(0, 256, 10_001, dtype=np.uint8))
    (tmp_path / "raw").write_bytes(content)
    mapped = ChunkStream(map_corpus(tmp_path / "raw").raw, 7, 64)
    memory = ChunkStream(torch.tensor(list(content)), 7, 64)
    array = ChunkStream(np.frombuffer(content, np.uint8), 7, 64)
    count = 0
    for one, two, three in zip(mapped, memory, array, strict=True):
        assert same(one, two) and same(one, three)
        count += 1
    assert count == 23  # ceil(ceil(10000 / 7) / 64)


def test_reset_at_the_first_step_of_every_epoch_only():
    stream = ChunkStream(torch.arange(21), 2, 4, epochs=3)
    assert stream.chunks_per_epoch == 3
    seen = []
    for chunk in stream:
        expected = None
        if chunk.index == 0:
            expected = [[t == 0] * 2 for t in range(4)]
        assert (None if chunk.reset is None else chunk.reset.tolist()) == expected
        seen.append((chunk.epoch, chunk.index))
    assert seen == [(e, i) for e in range(3) for i in range(3)]


def test_without_end():
    stream = ChunkStream(torch.arange(9), 2, 2, epochs=None)
    epochs = [next(stream).epoch for _ in range(9)]
    assert epochs == [0, 0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("tail", ["short", "pad", "drop"])
def test_restoring_at_every_step_gives_the_same_continuation(tail):
    def stream():
        return ChunkStream(torch.arange(40) % 7, 3, 4, tail=tail, epochs=2)

    whole = list(stream())
    source = stream()
    for step in range(len(whole) + 1):
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        restored = stream()
        restored.load_state_dict(torch.load(buffer, weights_only=True))
        rest = list(restored)
        assert len(rest) == len(whole) - step
        assert all(map(same, rest, whole[step:]))
        next(source, None)


def test_rewind():
    stream = ChunkStream(torch.arange(20), 2, 3)
    first = list(stream)
    assert list(stream) == []
    stream.rewind()
    assert all(map(same, stream, first))


def test_readers_of_different_rows_make_up_the_batch():
    tokens = torch.randperm(97)
    whole = ChunkStream(tokens, 5, 4, epochs=2)
    parts = [ChunkStream(tokens, 5, 4, rows=rows, epochs=2) for rows in ([3, 0], [1, 2, 4])]
    for chunk, left, right in zip(whole, *parts, strict=True):
        steps = chunk.inputs.shape[0]
        for part, rows in ((left, [3, 0]), (right, [1, 2, 4])):
            assert torch.equal(part.inputs, chunk.inputs[:, rows])
            assert torch.equal(part.targets, chunk.targets[:, rows])
            full = torch.full((5,), steps)
            lengths = full if chunk.lengths is None else chunk.lengths
            mine = full[: len(rows)] if part.lengths is None else part.lengths
            assert torch.equal(mine, lengths[rows])


def test_a_position_goes_over_to_other_rows():
    tokens = torch.arange(50)
    whole = ChunkStream(tokens, 4, 3)
    next(whole)
    part = ChunkStream(tokens, 4, 3, rows=[2])
    part.load_state_dict(whole.state_dict())
    assert torch.equal(next(part).inputs, next(whole).inputs[:, [2]])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"batch": 3}, "batch=3"),
        ({"chunk": 9}, "chunk=9"),
        ({"tail": "pad"}, "tail='pad'"),
        ({"tokens": 10}, "tokens=10"),
        ({"index": 99}, "index=99"),
        ({"epoch": -1}, "epoch=-1"),
        ({"epoch": None}, "epoch=None"),
    ],
)
def test_a_position_of_another_stream_is_refused(change, match):
    stream = ChunkStream(torch.arange(40), 2, 4)
    next(stream)
    before = stream.state_dict()
    with pytest.raises(ValueError, match=match):
        stream.load_state_dict({**before, **change})
    assert stream.state_dict() == before


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"batch": 0}, "batch must"),
        ({"chunk": 0}, "chunk must"),
        ({"chunk": 2.5}, "chunk must"),
        ({"epochs": 0}, "epochs must"),
        ({"tail": "keep"}, "tail must"),
        ({"rows": [0, 0]}, "rows must"),
        ({"rows": [2]}, "rows must"),
        ({"rows": []}, "rows must"),
        ({"tokens": torch.arange(2)}, "2 tokens are too few for 2 rows"),
        ({"tokens": torch.rand(9)}, "integers"),
        ({"tokens": np.random.rand(9)}, "integers"),
        ({"tokens": torch.zeros(3, 3, dtype=torch.int64)}, r"shape \(3, 3\)"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match) as error:
        ChunkStream(**{"tokens": torch.arange(9), "batch": 2, "chunk": 3, **arguments})
    assert "\n" not in str(error.value)


def test_chunk_to_device_keeps_everything():
    chunk = next(ChunkStream(torch.arange(9), 3, 3, tail="pad"))
    moved = chunk.to("meta")
    assert moved.inputs.device.type == moved.reset.device.type == "meta"
    assert moved.inputs.shape == chunk.inputs.shape and moved.index == 0


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.none() | st.integers(2, 50))
def test_split_is_a_cut_in_one_place(count, fraction, at_most):
    tokens = torch.arange(count)
    held_out = min(round(count * fraction), count if at_most is None else at_most)
    if held_out < 2 or count - held_out < 2:
        with pytest.raises(ValueError, match="too few"):
            split_tokens(tokens, fraction, at_most=at_most)
        return
    train, validation = split_tokens(tokens, fraction, at_most=at_most)
    assert torch.equal(torch.cat([train, validation]), tokens)
    assert len(validation) == held_out


def test_split_of_a_map_is_a_map(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(100))
    train, validation = split_tokens(map_corpus(tmp_path / "raw").raw)
    assert isinstance(train, np.memmap) and isinstance(validation, np.memmap)


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_split_fraction(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_tokens(torch.arange(9), fraction)
