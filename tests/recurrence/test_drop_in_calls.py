"""What RNN, GRU and LSTM are called with: torch's documentation and torch.nn say what must come out."""

from __future__ import annotations

import doctest
import inspect
import math
import re
import textwrap
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence

import chronograd as cg
from pairs import PAIRS, as_hx, assert_same, pair, state_of, tensors

F64 = torch.float64


def run(source, **names):
    """Execute lines of torch's documentation; returns what they named."""
    torch.manual_seed(0)
    names = {"torch": torch, "cg": cg, "nn": nn, **names}
    exec(compile(source, "torch's documentation", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_torch_s_own_examples_run_with_cg_in_front(name):
    """The lines after >>> in the docstring of the torch that is installed, as they stand."""
    examples = doctest.DocTestParser().get_examples(getattr(nn, name).__doc__)
    source = "".join(example.source for example in examples)
    assert f"nn.{name}(10, 20, 2)" in source and len(examples) >= 4
    theirs, ours = run(source), run(source.replace("nn.", "cg."))
    assert type(theirs["rnn"]) is getattr(nn, name) and type(ours["rnn"]) is getattr(cg, name)
    for each in ("output", "hn", "cn") if name == "LSTM" else ("output", "hn"):
        torch.testing.assert_close(ours[each], theirs[each], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_loop_that_torch_documents_for_rnn(batch_first):
    """The code block of nn.RNN's docstring, its own loop over steps and layers, on the weights of our layer."""
    text = inspect.cleandoc(nn.RNN.__doc__ or "").replace("\r", "")
    block = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    source = textwrap.dedent(block[1]).replace("nn.RNN", "cg.RNN")
    found = run(source, input_size=3, hidden_size=4, num_layers=2)
    x = torch.randn(5, 2, 3)
    hx = torch.randn(2, 5 if batch_first else 2, 4)
    rnn = cg.RNN(3, 4, 2, batch_first=batch_first)
    rnn.load_state_dict(found["rnn"].state_dict())
    for given in (None, hx):
        if given is None and batch_first:
            continue  # its zeros are those of either order
        expected = found["forward"](x, given, batch_first)
        for a, b in zip(rnn(x, given), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


OPTIONS = [
    {"num_layers": 3},
    {"bias": False, "num_layers": 2},
    {"bidirectional": True, "num_layers": 2},
    {"bidirectional": True, "bias": False},
    {"proj_size": 2, "num_layers": 2},
    {"proj_size": 3, "bidirectional": True, "bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_every_option_with_every_form_of_input(kind, options):
    if "proj_size" in options and kind != "lstm":
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            PAIRS[kind][0](3, 4, **options)
        return
    torch.manual_seed(0)
    for first, batched, given in product([False, True], repeat=3):
        ours, theirs = pair(kind, 3, 4, batch_first=first, **options)
        shape = ((2, 5, 3) if first else (5, 2, 3)) if batched else (5, 3)
        hx = None
        if given:
            across = options.get("num_layers", 1) * (2 if ours.bidirectional else 1)
            rows = (2,) if batched else ()
            hx = state_of(kind, across, *rows, 4)
            if ours.proj_size:
                hx = (hx[0][..., : ours.proj_size], hx[1])
        assert_same(ours, theirs, torch.randn(shape, dtype=F64), hx)


def test_dropout_lies_between_layers_and_keeps_the_mean():
    """With h_t = relu(x_t) in both layers and x = 1 the outputs are the mask itself: 0 or 1 / (1 - p)."""
    p, x = 0.3, torch.ones(60, 20, 5)
    layer = cg.RNN(5, 5, 2, nonlinearity="relu", bias=False, dropout=p)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.eye(5) if "_ih_" in name else torch.zeros(5, 5))
    torch.manual_seed(0)
    outputs = layer(x)[0]
    dropped = outputs == 0
    torch.testing.assert_close(outputs, torch.where(dropped, 0.0, 1 / (1 - p)))
    assert abs(dropped.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / dropped.numel())
    # One number for each step, row and unit: a mask is not held over time, rows or units.
    assert all(dropped.any(dim).all() and not dropped.all(dim).any() for dim in (0, 1))
    torch.testing.assert_close(layer.eval()(x)[0], x)


@pytest.mark.parametrize("kind", PAIRS)
def test_dropout_of_one_silences_the_first_layer(kind):
    torch.manual_seed(0)
    assert_same(*pair(kind, 3, 4, num_layers=2, dropout=1.0), torch.randn(4, 2, 3, dtype=F64))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", PAIRS)
def test_packed_sequences(kind, in_order, options):
    """Each sequence comes out as if it had run alone, and the state in the order of the caller."""
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4, **options)
    lengths = [5, 3, 2] if in_order else [2, 5, 3]
    sequences = [torch.randn(n, 3, dtype=F64) for n in lengths]
    packed = pack_sequence(sequences, enforce_sorted=in_order)
    across = ours.num_layers * (2 if ours.bidirectional else 1)
    for state in (None, state_of(kind, across, 3, 4)):
        results = [layer(packed, as_hx(kind, state)) for layer in (ours, theirs)]
        (found, final), (expected, expected_final) = results
        assert isinstance(found, PackedSequence)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        for a, b in zip(tensors(final), tensors(expected_final), strict=True):
            assert torch.equal(a, b)
        for row, alone in enumerate(unpack_sequence(found)):
            own = None if state is None else tuple(part[:, row] for part in state)
            outputs, last = ours(sequences[row], as_hx(kind, own))
            torch.testing.assert_close(alone, outputs)
            for part, row_of in zip(tensors(last), tensors(final)):
                torch.testing.assert_close(row_of[:, row], part)


@pytest.mark.parametrize("kind", PAIRS)
def test_gradients_through_padding_that_was_packed(kind):
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, dtype=F64)
    grads = []
    for layer in pair(kind, 3, 4, batch_first=True):
        leaf = x.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, torch.tensor([1, 5, 2, 4]), batch_first=True, enforce_sorted=False)
        outputs, lengths = pad_packed_sequence(layer(packed)[0], batch_first=True)
        assert lengths.tolist() == [1, 5, 2, 4]
        grads.append(torch.autograd.grad(outputs.square().sum(), [leaf, *layer.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def outcome(call):
    """The shapes that came out, or the type of the error."""
    try:
        outputs, state = call()
    except Exception as error:
        return type(error)
    return outputs.shape, [part.shape for part in tensors(state)], outputs.dtype


def zeros(kind, *shape):
    return as_hx(kind, (torch.zeros(shape),) * 2)


SHAPES = {
    "no steps": ((0, 2, 3), None),
    "no steps, a state": ((0, 2, 3), (2, 2, 4)),
    "no rows": ((5, 0, 3), None),
    "no rows, a state": ((5, 0, 3), (2, 0, 4)),
    "neither": ((0, 0, 3), None),
    "no steps without a batch": ((0, 3), None),
    "no steps and wrong features": ((0, 2, 7), None),
    "no rows and a wrong state": ((5, 0, 3), (2, 1, 4)),
    "one step": ((1, 2, 3), None),
    "wrong features": ((5, 2, 7), None),
    "no features": ((5, 2, 0), None),
    "wrong features without a batch": ((5, 7), None),
    "a number": ((), None),
    "one dimension": ((5,), None),
    "four dimensions": ((1, 5, 2, 3), None),
    "state: rows": ((5, 2, 3), (2, 3, 4)),
    "state: one row for all": ((5, 2, 3), (2, 1, 4)),
    "state: layers": ((5, 2, 3), (1, 2, 4)),
    "state: units": ((5, 2, 3), (2, 2, 5)),
    "state: no batch": ((5, 2, 3), (2, 4)),
    "state: a batch": ((5, 3), (2, 1, 4)),
    "state: units without a batch": ((5, 3), (2, 5)),
    "state: one dimension": ((5, 2, 3), (4,)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("kind", PAIRS)
def test_empty_and_wrong_shapes_end_as_in_torch(kind, case):
    shape, state = SHAPES[case]
    ours, theirs = pair(kind, 3, 4, num_layers=2, dtype=torch.float32)
    given = None if state is None else zeros(kind, *state)
    found, expected = (outcome(lambda layer=layer: layer(torch.zeros(shape), given)) for layer in (ours, theirs))
    assert found == expected


@pytest.mark.parametrize("kind", PAIRS)
def test_wrong_dtypes_end_as_in_torch(kind):
    ours, theirs = pair(kind, 3, 4, dtype=torch.float32)
    x, h = torch.zeros(5, 2, 3), torch.zeros(1, 2, 4)
    for inputs, state in [(x.double(), h), (x.long(), h), (x.bfloat16(), h), (x, h.double()), (x, h.bfloat16())]:
        given = as_hx(kind, (state, state))
        found, expected = (outcome(lambda layer=layer: layer(inputs, given)) for layer in (ours, theirs))  # noqa: B023
        assert found == expected and issubclass(found, Exception)


@pytest.mark.parametrize("kind", PAIRS)
def test_no_rows_give_no_gradient(kind):
    for layer in pair(kind, 3, 4):
        outputs, _ = layer(torch.zeros(5, 0, 3, dtype=F64))
        for grad in torch.autograd.grad(outputs.sum(), list(layer.parameters()), allow_unused=True):
            assert grad is None or not grad.any()


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_not_contiguous(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    state = state_of(kind, 2, 4, 2)
    turned = tuple(part.transpose(1, 2) for part in state)
    wide = torch.randn(10, 4, 6, dtype=F64)
    forms = [
        wide[::2, ::2, ::2],
        wide.transpose(0, 1)[:, :2, :3],
        wide[..., :3].flip(0)[:, :2],
        wide[0, 0, :3].expand(5, 2, 3),
        wide.permute(2, 0, 1)[..., :3][:, :2],
    ]
    for x in forms:
        results = []
        for layer in (ours, theirs):
            outputs, final = layer(x, as_hx(kind, turned))
            weighted = sum((part * part.detach().cos()).sum() for part in (outputs, *tensors(final)))
            results.append([outputs, *tensors(final), *torch.autograd.grad(weighted, list(layer.parameters()))])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_list_serves_as_the_pair_of_states_where_it_does_in_torch(kind):
    ours, theirs = pair(kind, 3, 4, dtype=torch.float32)
    x, h = torch.zeros(5, 2, 3), torch.ones(1, 2, 4)
    if kind == "lstm":
        torch.testing.assert_close(ours(x, [h, h])[0], theirs(x, [h, h])[0])
    else:
        # torch ends in an AttributeError, which names nothing of what was given.
        with pytest.raises(TypeError, match="hx must be a tensor or None, not list"):
            ours(x, [h])


@pytest.mark.parametrize("kind", PAIRS)
def test_arguments_by_name(kind):
    ours, theirs = pair(kind, input_size=3, hidden_size=4)
    x, state = torch.randn(5, 2, 3, dtype=F64), as_hx(kind, state_of(kind, 1, 2, 4))
    torch.testing.assert_close(ours(input=x, hx=state), theirs(input=x, hx=state))
    assert list(inspect.signature(ours.forward).parameters) == list(inspect.signature(theirs.forward).parameters)
