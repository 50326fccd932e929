"""Streamed: steps read chunk by chunk are the steps of all chunks end to end, and what differs is refused.

The oracle is ``torch.cat`` of the chunks.
"""

import gc
import re
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import chronograd as cg
from chronograd.data.streams import ChunkStream


def chunks_of(lengths, rows=2):
    """Chunks in which every number differs from every other."""
    total = sum(lengths)
    whole = torch.arange(total * rows * 3, dtype=torch.float32).reshape(total, rows, 3)
    return list(whole.split(list(lengths)))


def pairs_of(lengths):
    return [(chunk, -chunk[..., 0]) for chunk in chunks_of(lengths)]


class Ordered:
    """Chunks in order only; writes down what is read."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.read = []

    def __iter__(self):
        for number, chunk in enumerate(self.chunks):
            self.read.append(number)
            yield chunk


class Indexed:
    """Chunks by number only."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.read = []

    def __len__(self):
        return len(self.chunks)

    def __getitem__(self, number):
        self.read.append(number)
        return self.chunks[number]


class Arrayed:
    """As h5py gives a dataset: shape, dtype, slices that are arrays of their own."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, steps):
        self.read.append((steps.start, steps.stop))
        return self.array[steps].copy()


class Changing:
    """Gives one list of chunks when it is first opened, another later."""

    def __init__(self, *openings):
        self.openings, self.opened = openings, 0

    def __iter__(self):
        self.opened += 1
        return iter(self.openings[min(self.opened, len(self.openings)) - 1])


SOURCES = {
    "list": lambda chunks: chunks,
    "tuple": tuple,
    "indexed": Indexed,
    "ordered": Ordered,
    "callable": lambda chunks: lambda: (chunk.clone() for chunk in chunks),
    "tensor": torch.cat,
    "array": lambda chunks: torch.cat(chunks).numpy(),
    "dataset": lambda chunks: Arrayed(torch.cat(chunks).numpy()),
}
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", SOURCES)
@given(LENGTHS, st.data())
@settings(deadline=None, max_examples=25)
def test_any_slices_in_any_order_are_those_of_the_chunks_end_to_end(kind, lengths, data):
    chunks = chunks_of(lengths)
    whole = torch.cat(chunks)
    stream = cg.Streamed(SOURCES[kind](chunks))
    assert (stream.steps, stream.rows) == whole.shape[:2]
    bounds = st.integers(-len(whole) - 2, len(whole) + 2) | st.none()
    for begin, end in data.draw(st.lists(st.tuples(bounds, bounds), min_size=1, max_size=5)):
        part, expected = stream[begin:end], whole[begin:end]
        assert part.steps == len(expected)
        assert torch.equal(part.load(), expected)
        inner_begin, inner_end = data.draw(st.tuples(bounds, bounds))  # a view of a view
        assert torch.equal(part[inner_begin:inner_end].load(), expected[inner_begin:inner_end])
    assert torch.equal(stream.load(), whole)
    assert stream[:].rows == stream[:0].rows == 2


@pytest.mark.parametrize("kind", SOURCES)
def test_forwards_once_then_backwards(kind):
    chunks = chunks_of([4, 1, 7, 3, 5])
    whole = torch.cat(chunks)
    stream = cg.Streamed(SOURCES[kind](chunks))
    places = [(begin, min(begin + 3, 20)) for begin in range(0, 20, 3)]
    for begin, end in [*places, *reversed(places)]:
        assert torch.equal(stream[begin:end].load(), whole[begin:end])


def test_what_is_loaded_is_the_callers_own():
    for source in (chunks_of([4]), chunks_of([4])[0], np.zeros((4, 2, 3), np.float32)):
        stream = cg.Streamed(source)
        before = stream.load().clone()
        stream.load().add_(1)
        assert torch.equal(stream.load(), before)


# --- What is read, and how often --------------------------------------------------------------------------------------


def test_nothing_is_read_before_it_is_asked_for():
    source = Ordered(chunks_of([3, 3]))
    stream = cg.Streamed(source)
    mapped = stream.map(torch.neg)
    repr(stream), repr(mapped)
    assert source.read == [] and stream.opened == 0
    assert stream.rows == 2
    assert source.read == [0]
    assert stream.steps == 6  # goes on where rows stopped
    assert source.read == [0, 1] and stream.opened == 1


def test_a_source_in_order_is_opened_to_count_to_walk_forwards_and_for_steps_that_lie_before():
    source = Ordered(chunks_of([10, 10, 10]))
    stream = cg.Streamed(source)
    parts = [stream[begin : begin + 5] for begin in range(0, 30, 5)]
    assert stream.opened == 1
    for part in parts:
        part.load()
    assert stream.opened == 2 and source.read == [0, 1, 2] * 2
    source.read.clear()
    for part in reversed(parts):
        part.load()
    assert stream.opened == 4 and source.read == [0, 1, 0]  # chunk 2 was still held


def test_random_access_reads_each_chunk_once_a_walk():
    source = Indexed(chunks_of([10, 10, 10]))
    stream = cg.Streamed(source)
    parts = [stream[begin : begin + 4] for begin in range(0, 30, 4)]
    for part in parts:
        part.load()
    assert source.read == [0, 1, 2] * 2
    source.read.clear()
    for part in reversed(parts):
        part.load()
    assert source.read == [1, 0] and stream.opened == 0


def test_an_array_is_read_where_it_is_loaded_only():
    source = Arrayed(np.arange(60, dtype=np.int16).reshape(10, 2, 3))
    stream = cg.Streamed(source)
    assert (stream.steps, stream.rows) == (10, 2) and source.read == []
    assert stream[2:5][1:].load().dtype == torch.int16
    assert source.read == [(3, 5)] and stream.nbytes == 0


@pytest.mark.parametrize("kind", [Ordered, Indexed])
def test_unzipped_streams_share_one_reader_and_what_it_holds(kind):
    source = kind(pairs_of([4, 6, 5]))
    inputs, targets = cg.Streamed(source).unzip()
    assert inputs.steps == targets.steps == 15
    source.read.clear()
    for begin in (0, 3, 6, 9, 12):
        x, y = inputs[begin : begin + 3].load(), targets[begin : begin + 3].load()
        assert torch.equal(-x[..., 0], y)
    assert source.read == [0, 1, 2]
    assert inputs.nbytes == targets.nbytes == 5 * 2 * (3 + 1) * 4


def test_the_cache_holds_the_chunks_of_the_last_load():
    stream = cg.Streamed(chunks_of([4, 6, 5]))
    step = 2 * 3 * 4
    assert stream.steps == 15 and stream.nbytes == 0
    for begin, end, held in ((0, 2, 4), (3, 5, 10), (5, 6, 6), (0, 15, 15), (14, 15, 5), (7, 7, 5)):
        stream[begin:end].load()
        assert stream.nbytes == held * step


def test_counting_holds_one_chunk_at_a_time():
    alive, most = weakref.WeakSet(), 0

    def generate():
        nonlocal most
        for _ in range(6):
            chunk = torch.zeros(3, 2)
            alive.add(chunk)
            most = max(most, len(alive))
            yield chunk
            del chunk
            gc.collect()

    stream = cg.Streamed(generate)
    assert stream.rows == 2 and stream.steps == 18 and most == 1
    stream[15:].load()  # the chunks before are skipped
    assert most == 1


# --- Trees, map, pytree -----------------------------------------------------------------------------------------------


def test_chunks_may_be_trees():
    chunks = [{"x": (chunk, [chunk.int()]), "y": chunk[..., 0] > 3} for chunk in chunks_of([2, 3])]
    stream = cg.Streamed(chunks)
    loaded = stream[1:4].load()
    for found, *parts in zip(pytree.tree_leaves(loaded), *map(pytree.tree_leaves, chunks)):
        assert torch.equal(found, torch.cat(parts)[1:4])
    assert pytree.tree_structure(loaded) == pytree.tree_structure(chunks[0])
    assert stream.rows == 2


def test_unzip_before_and_after_map_and_in_depth():
    triples = cg.Streamed([(chunk, (chunk + 1, chunk + 2)) for chunk in chunks_of([2, 3])])
    whole = torch.cat(chunks_of([2, 3]))
    first, rest = triples.unzip()
    second, third = rest.unzip()
    doubled, negated = first.map(lambda x: (x * 2, -x)).unzip()
    for stream, expected in ((second, whole + 1), (third, whole + 2), (doubled, whole * 2), (negated, -whole)):
        assert torch.equal(stream[1:4].load(), expected[1:4])
    with pytest.raises(TypeError, match="unzip needs chunks that are tuples.* type Tensor"):
        first.unzip()
    with pytest.raises(TypeError, match="unzip needs chunks"):
        cg.Streamed(whole).unzip()


@pytest.mark.parametrize("kind", SOURCES)
def test_map_is_applied_to_what_is_loaded(kind):
    chunks = chunks_of([4, 1, 6])
    stream = cg.Streamed(SOURCES[kind](chunks)).map(lambda x: x.add_(1)).map(lambda x: torch.stack([x, x.exp()], -1))
    expected = torch.cat(chunks) + 1
    expected = torch.stack([expected, expected.exp()], -1)
    for begin, end in ((0, 11), (3, 5), (10, 11), (4, 4)):
        torch.testing.assert_close(stream[begin:end].load(), expected[begin:end])
    assert stream.rows == 2 and torch.equal(torch.cat(chunks_of([4, 1, 6])), torch.cat(chunks))


def test_rows_may_change_under_map():
    stream = cg.Streamed(chunks_of([4, 1])).map(lambda x: x[:, :1])
    assert stream.rows == 1 and stream[1:].rows == 1


def test_a_stream_is_one_leaf():
    stream = cg.Streamed(pairs_of([2]))
    assert pytree.tree_leaves({"a": (stream, None)})[0] is stream


def test_it_is_no_iterable_and_sliced_by_steps_only():
    stream = cg.Streamed(chunks_of([2, 3]))
    with pytest.raises(TypeError, match="not iterable"):
        iter(stream)
    with pytest.raises(TypeError, match=r"stream\[begin:end\], not by int: load"):
        stream[1]  # type: ignore[index]
    with pytest.raises(ValueError, match="without a stride, .*, not with 2"):
        stream[::2]
    with pytest.raises(TypeError, match="map needs a function of a chunk, not int"):
        stream.map(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Streamed already"):
        cg.Streamed(stream)


def test_repr():
    stream = cg.Streamed(chunks_of([800, 400]))
    assert repr(stream) == "Streamed(from list, not counted yet)"
    assert repr(stream[3:1100]) == "Streamed(steps 3 to 1,100 of 1,200, from list)"
    assert repr(stream.map(torch.neg)) == "Streamed(1,200 steps, from list, 1 mapped)"


# --- Sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("dtype", ["float32", ">i4", "uint8", "complex64"])
def test_memory_maps(tmp_path, mode, dtype):
    values = np.arange(60).reshape(10, 2, 3).astype(dtype)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", dtype=dtype, mode=mode, shape=values.shape)
    stream = cg.Streamed(mapped)
    for begin, end in ((7, 10), (0, 4), (3, 3)):
        assert stream[begin:end].load().tolist() == values[begin:end].tolist()
    assert cg.Streamed(mapped[2:, ::-1, 1:]).load().tolist() == values[2:, ::-1, 1:].tolist()
    if mode != "r":
        mapped[0] = 7
        assert stream[:1].load().tolist() == np.full((1, 2, 3), 7, dtype).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_pages_of_a_map_are_given_back(tmp_path):
    path = tmp_path / "values"
    np.zeros((4096, 1024), np.float32).tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(4096, 1, 1024))

    def resident():
        with open("/proc/self/smaps") as smaps:
            found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps.read())
        return int(found[1]) if found else None

    float(mapped[:2048].sum())
    if not resident():
        pytest.skip("the system does not tell what is resident")
    stream = cg.Streamed(mapped)
    for begin in range(0, 4096, 32):
        stream[begin : begin + 32].load()
    assert resident() < 1024  # of 16 MB


def test_data_loaders_and_datasets():
    whole = torch.cat(chunks_of([12]))
    loader = DataLoader(TensorDataset(whole, whole[..., 0]), batch_size=5)  # its chunks are lists of two
    inputs, targets = cg.Streamed(loader).unzip()
    assert torch.equal(inputs.load(), whole) and torch.equal(targets[3:7].load(), whole[3:7, :, 0])

    class Map(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return whole[4 * number : 4 * number + 4]

    class Iter(IterableDataset):
        def __iter__(self):
            return iter(whole.split(5))

        def __len__(self):
            return 3

    for source in (Map(), Iter()):
        assert torch.equal(cg.Streamed(source)[3:11].load(), whole[3:11])


def test_a_shuffling_loader_is_refused():
    whole = torch.cat(chunks_of([64]))
    loader = DataLoader(whole, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"other numbers .* \(chunk 0 \(from step 0\)\).*do not shuffle"):
        cg.Streamed(loader).load()


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 30), st.sampled_from(["short", "pad", "drop"]))
@settings(deadline=None, max_examples=40)
def test_a_token_stream_in_one_call_is_its_chunks_end_to_end(batch, chunk, more, tail):
    tokens = torch.randperm(batch * (chunk + 1) + 1 + more)
    reader = ChunkStream(tokens, batch, chunk, tail=tail)
    chunks = list(ChunkStream(tokens, batch, chunk, tail=tail))
    inputs, targets, lengths = reader.streamed()
    assert torch.equal(inputs.load(), torch.cat([c.inputs for c in chunks]))
    assert torch.equal(targets[1:-1].load(), torch.cat([c.targets for c in chunks])[1:-1])
    expected = sum(torch.full((batch,), c.inputs.shape[0]) if c.lengths is None else c.lengths for c in chunks)
    assert torch.equal(expected, torch.full((batch,), inputs.steps) if lengths is None else lengths)
    assert lengths is None or bool((lengths < inputs.steps).any())
    assert reader.index == 0
    with pytest.raises(TypeError, match=r"a ChunkStream cannot be opened again: take its streamed\(\)"):
        cg.Streamed(reader)


@pytest.mark.parametrize("source", [(x for x in chunks_of([2])), iter(chunks_of([2])), map(abs, chunks_of([2]))])
def test_what_can_be_read_only_once_is_refused_at_once(source):
    with pytest.raises(TypeError, match="cannot be opened again: give a list, an object whose iter.. begins anew, or"):
        cg.Streamed(source)


@pytest.mark.parametrize("source", [None, 3, "text", b"bytes", {"x": torch.zeros(2, 2)}])
def test_what_is_no_source_is_refused_at_once(source):
    with pytest.raises(TypeError, match=f"Streamed reads an array .*, not a {type(source).__name__}"):
        cg.Streamed(source)


@pytest.mark.parametrize("opened, message", [(torch.zeros(4, 2), "Tensor: give that itself"), (None, "NoneType")])
def test_a_function_must_open_an_iterable(opened, message):
    with pytest.raises(TypeError, match=f"must open an iterable of chunks .* {message}"):
        _ = cg.Streamed(lambda: opened).steps


def test_a_function_that_gives_the_same_iterator_again():
    iterator = iter(chunks_of([2, 3]))
    stream = cg.Streamed(lambda: iterator)
    assert stream.steps == 5
    with pytest.raises(ValueError, match="ended after step 0 when it was opened again, but had 5 steps the first time"):
        stream.load()


@pytest.mark.parametrize("shape", [(4,), (0, 2), (3, 0), ()])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_arrays_need_steps_and_rows(make, shape):
    with pytest.raises(ValueError, match=r"expected \(T, B, ...\) with at least one step and one row"):
        cg.Streamed(make(shape))


def test_arrays_that_do_not_fit():
    with pytest.raises(TypeError, match="of <U1, which torch has no dtype for"):
        cg.Streamed(np.array([["a"]])).load()
    source = Arrayed(np.zeros((10, 2)))
    source.shape = (12, 2)
    with pytest.raises(ValueError, match=r"steps 8 to 12 of the stream have shape \(2, 2\), expected \(4, 2\)"):
        cg.Streamed(source)[8:].load()


# --- What must not differ ---------------------------------------------------------------------------------------------

GOOD = torch.zeros(100, 2, 3)


@pytest.mark.parametrize("kind", [list, Ordered, Indexed])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (
            torch.zeros(5, 4, 3),
            ValueError,
            r"has shape \(t, 4, 3\), the first one shape \(t, 2, 3\): chunks may differ",
        ),
        (torch.zeros(5, 2), ValueError, r"has shape \(t, 2\), the first one shape \(t, 2, 3\)"),
        (torch.zeros(5, 2, 3).double(), ValueError, "has torch.float64 on cpu, the first one torch.float32 on cpu"),
        ((torch.zeros(5, 2, 3),), ValueError, "is nested otherwise than the first one"),
        (torch.zeros(5), ValueError, r"has shape \(5,\), expected \(t, B, ...\)"),
        (torch.zeros(0, 2, 3), ValueError, "has no steps: leave empty chunks out"),
        (np.zeros((5, 2, 3)), TypeError, "holds a ndarray: chunks are tensors .* as torch.as_tensor makes"),
        ((torch.zeros(5, 2), None), TypeError, "holds a NoneType"),
        ((), TypeError, "holds no tensors"),
        (None, TypeError, "None"),
        ((torch.zeros(5, 2), torch.zeros(4, 2)), ValueError, r"shapes \(5, 2\) and \(4, 2\): all must have the same"),
        (torch.zeros(5, 2, 3, requires_grad=True), ValueError, r"requires a gradient, .*: detach\(\) it"),
    ],
)
def test_chunks_that_do_not_fit_are_named(kind, bad, error, message):
    with pytest.raises(error, match=rf"^chunk 2 \(from step 200\).*{message}"):
        _ = cg.Streamed(kind([GOOD, GOOD, bad])).steps


def test_the_device_must_not_differ():
    with pytest.raises(ValueError, match="has torch.float32 on meta, the first one torch.float32 on cpu"):
        cg.Streamed([GOOD, torch.zeros(5, 2, 3, device="meta")]).load()


@pytest.mark.parametrize("source", [[], (), Indexed([]), Ordered([]), list])
def test_empty_streams(source):
    with pytest.raises(ValueError, match="has no chunks: .* at least one step"):
        _ = cg.Streamed(source).steps
    with pytest.raises(ValueError, match="has no chunks: .* at least one step"):
        _ = cg.Streamed(source).rows


def test_a_stream_that_ends_early():
    chunks = chunks_of([3, 4, 5])
    stream = cg.Streamed(Changing(chunks, chunks[:2]))
    assert stream.steps == 12
    assert torch.equal(stream[:7].load(), torch.cat(chunks[:2]))
    with pytest.raises(
        ValueError, match="^the stream ended after step 7 when it was opened again, but had 12 steps the first time: it"
    ):
        stream[6:8].load()


def test_a_stream_that_goes_on():
    chunks = chunks_of([3, 4, 5])
    stream = cg.Streamed(Changing(chunks[:2], chunks))
    with pytest.raises(ValueError, match="goes on after step 7 when it is opened again"):
        stream.load()


def test_a_chunk_of_another_length():
    chunks = chunks_of([3, 4, 5])
    stream = cg.Streamed(Changing(chunks, [chunks[0], chunks[1][:3], chunks[2]]))
    with pytest.raises(ValueError, match=r"chunk 1 \(from step 3\) has 3 steps when it is read again, but had 4"):
        stream.load()


@pytest.mark.parametrize("size", [1, 50])
def test_numbers_that_change(size):
    def generate():
        for _ in range(3):
            yield torch.randn(10, 2, size)

    stream = cg.Streamed(generate)
    with pytest.raises(
        ValueError, match=r"gives other numbers .* \(chunk 0 \(from step 0\)\): make it determin.* seed"
    ):
        stream.load()
    changing = chunks_of([5, 5])
    stream = cg.Streamed(changing)
    assert stream.steps == 10
    changing[1].mul_(2)
    assert stream[:5].load().shape == (5, 2, 3)
    with pytest.raises(ValueError, match=r"chunk 1 \(from step 5\)"):
        stream[2:7].load()


def test_nan_and_strided_chunks_are_compared_like_others():
    chunk = torch.full((3, 50, 20), torch.nan).permute(1, 2, 0)
    stream = cg.Streamed(lambda: (chunk.conj(), torch.ones(50, 20, 3)))
    assert stream.load()[:50].isnan().all()


def test_one_hot_chunks_in_another_order_are_noticed():
    """Most elements are alike, and the chunks' strides are round numbers."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(32, (64, 64, 1), generator=generator)
    chunks = [torch.nn.functional.one_hot(chunk, 32) for chunk in tokens]
    noticed = 0
    for first, second in zip(chunks[::2], chunks[1::2]):
        stream = cg.Streamed(Changing([first, second], [second, first]))
        try:
            stream.load()
        except ValueError:
            noticed += 1
    assert noticed == 32


def test_a_buffer_that_is_filled_again_is_noticed():
    def generate():
        buffer = torch.empty(4, 2)
        for number in range(3):
            yield buffer.fill_(number)

    stream = cg.Streamed(generate)
    assert stream[4:8].load().eq(1).all()  # one chunk at a time is no trouble
    with pytest.raises(
        ValueError, match=r"chunk 1 \(from step 4\) was overwritten after .*: make every chunk of a new"
    ):
        stream[6:10].load()


@pytest.mark.parametrize("first", [True, False])
def test_failures_inside_the_source_are_passed_on_with_the_chunk(first):
    failing = first

    def generate():
        for number, chunk in enumerate(chunks_of([3, 4, 5])):
            if failing and number == 2:
                raise OSError("the disk is gone")
            yield chunk

    stream = cg.Streamed(generate)
    if not first:
        assert stream.steps == 12
        failing = True
    with pytest.raises(OSError, match="^the disk is gone") as caught:
        stream.load()
    assert caught.value.__notes__ == ["raised by the source of a stream while chunk 2 (from step 7) was read"]
    failing = False  # it can be read when the trouble is over
    assert torch.equal(stream.load(), torch.cat(chunks_of([3, 4, 5])))


def test_failures_of_indexed_sources_arrays_and_openers():
    class Broken(Indexed):
        def __getitem__(self, number):
            return [][number] if number == 1 else self.chunks[number]

    class BrokenArray(Arrayed):
        def __getitem__(self, steps):
            raise OSError("gone")

    def opener():
        raise OSError("no such file")

    for source, error, note in (
        (Broken(chunks_of([3, 4])), IndexError, r"chunk 1 \(from step 3\) was read"),
        (BrokenArray(np.zeros((5, 2))), OSError, "steps 0 to 5 of a stream were read from a BrokenArray"),
        (opener, OSError, "while a stream was opened, opener, for time 1"),
    ):
        with pytest.raises(error) as caught:
            cg.Streamed(source).load()
        assert re.search(note, caught.value.__notes__[0])


# --- Functions that do not treat each step alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "function, error, message",
    [
        (lambda x: x + torch.randn(()), ValueError, "other numbers for steps 1 to 9 when it is called again"),
        (lambda x: x.cumsum(0), ValueError, "other numbers for steps 1 to 9 in two pieces: it must treat each step"),
        (lambda x: x - x.mean(), ValueError, "in two pieces"),
        (lambda x: x.double().argsort(0), ValueError, "in two pieces"),
        (lambda x: x[1:], ValueError, "on steps 1 to 9, gives 7 steps for 8"),
        (lambda x: x.numpy(), TypeError, "on steps 1 to 9, holds a ndarray"),
        (lambda x: (x, x[:, :1]), ValueError, "must have the same steps and rows"),
        (lambda x: x * torch.ones(3, requires_grad=True), ValueError, "requires a gradient"),
    ],
)
def test_functions_that_are_refused(function, error, message):
    with pytest.raises(error, match=f"a function given to Streamed.map.*{message}"):
        cg.Streamed(chunks_of([4, 6])).map(function)[1:9].load()


def test_failures_of_functions_are_passed_on_with_the_steps():
    with pytest.raises(RuntimeError) as caught:
        cg.Streamed(chunks_of([4, 6])).map(lambda x: x @ torch.ones(5, 5))[3:9].load()
    assert caught.value.__notes__ == ["raised by a function given to Streamed.map, on steps 3 to 9"]


def test_functions_that_round_otherwise_in_pieces_are_fine():
    weight = torch.linspace(-1, 1, 15).reshape(3, 5)
    chunks = chunks_of([7, 9])
    stream = cg.Streamed(chunks).map(lambda x: (x @ weight).half())
    assert torch.equal(stream.load(), (torch.cat(chunks) @ weight).half())
    nan = cg.Streamed(chunks).map(lambda x: x / 0)
    assert nan.load().isnan().any()
