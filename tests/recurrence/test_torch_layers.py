"""What the compiled kernels do not serve: torch's own functions without gates, the plain-torch loop under them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chronograd as cg
from chronograd.kernels.layer import serves
from chronograd.recurrence.torch_layers import torch_serves
from pairs import PAIRS, as_hx, assert_same, pair, state_of, tensors

HALVES = [torch.bfloat16, torch.float16]
FUNCTIONS = {"aten::rnn_tanh": "tanh", "aten::rnn_relu": "relu", "aten::gru": "gru", "aten::lstm": "lstm"}


def calls(layer, x):
    """Which of torch's functions for whole layers ran, and over how many steps, by torch's own profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        layer(x)
    return [(FUNCTIONS[event.name], event.input_shapes[0][0]) for event in profile.events() if event.name in FUNCTIONS]


@pytest.mark.parametrize("kind", PAIRS)
def test_one_call_of_torch_for_all_layers_and_none_where_the_kernels_serve(kind):
    ours, _ = pair(kind, 3, 4, num_layers=3, dtype=torch.bfloat16)
    assert calls(ours, torch.zeros(5, 2, 3, dtype=torch.bfloat16)) == [(kind, 5)]
    for dtype in (torch.float32, torch.float64):
        assert calls(ours.to(dtype), torch.zeros(5, 2, 3, dtype=dtype)) == []


def test_who_serves_what():
    for kind in (*PAIRS, "linear", "diagonal", "elstm"):
        for dtype in (torch.float32, torch.float64, *HALVES, torch.complex64):
            weight = torch.zeros(4, 4, dtype=dtype)
            assert not (serves(kind, weight) and torch_serves(kind, weight))
            if kind not in PAIRS or dtype in (torch.float32, torch.float64):
                assert not torch_serves(kind, weight)
            else:
                assert torch_serves(kind, weight)
    assert torch_serves("gru", torch.zeros(4, 4, device="meta")) and not torch_serves("linear", torch.zeros(4, 4))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_numbers_and_gradients_are_torch_s_bit_by_bit(kind, dtype):
    """Dropout between layers, its random numbers and the initial state included."""
    torch.manual_seed(0)
    for options in ({"num_layers": 2, "dropout": 0.4}, {"bias": False, "batch_first": True}):
        ours, theirs = pair(kind, 3, 4, dtype=dtype, **options)
        layers = options.get("num_layers", 1)
        x, rows = torch.randn(5, 2, 3).to(dtype), 5 if ours.batch_first else 2
        hx = tuple(part.to(dtype) for part in state_of(kind, layers, rows, 4))
        for given in (None, hx):
            assert_same(ours, theirs, x, given, rtol=0, atol=0)


@pytest.mark.parametrize("kind", PAIRS)
def test_gradients_flow_in_evaluation_too(kind):
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4, num_layers=2, dropout=0.5, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
    assert_same(ours.eval(), theirs.eval(), x, rtol=0.02, atol=0.02)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", PAIRS)
def test_bfloat16_lies_near_float64(kind):
    torch.manual_seed(0)
    ours, exact = pair(kind, 3, 8, num_layers=2)
    x = torch.randn(12, 4, 3, dtype=torch.float64)
    assert_same_to_eight_bits(ours.bfloat16(), exact, lambda layer, x: layer(x)[0], x)


def assert_same_to_eight_bits(half, exact, run, x):
    """Outputs and every gradient within a few units of bfloat16's last place, measured by the norm."""
    with torch.no_grad():  # the same weights, rounded
        for p, q in zip(half.parameters(), exact.parameters(), strict=True):
            q.copy_(p)
    x = x.bfloat16().double()
    results = []
    for layer, dtype in ((half, torch.bfloat16), (exact, torch.float64)):
        outputs = run(layer, x.to(dtype))
        assert outputs.dtype == dtype
        results.append([outputs, *torch.autograd.grad(outputs.double().square().mean(), list(layer.parameters()))])
    for a, b in zip(*results, strict=True):
        assert (a.double() - b).norm() < 0.05 * b.norm()


EDGES = {
    "chunks": {"truncation": cg.Chunks(4)},
    "random": {"truncation": cg.RandomTruncation(4), "seed": 3},
    "reset": {"reset": (torch.arange(12)[:, None] + torch.arange(4)) % 5 == 4},
}


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("kind", PAIRS)
def test_the_same_gates_in_bfloat16(kind, edges):
    """The same cuts, draws and resets as in float64, where torch has no function that knows them."""
    torch.manual_seed(0)
    ours, exact = pair(kind, 3, 8, num_layers=2)

    def run(layer, x):
        return cg.unroll(layer, x, **EDGES[edges])[0]

    x = torch.randn(12, 4, 3, dtype=torch.float64)
    assert_same_to_eight_bits(ours.bfloat16(), exact, run, x)
    # Single steps at most, in which the layers are recognised.
    assert all(steps == 1 for _, steps in calls(lambda x: run(ours, x), x.bfloat16()))


@pytest.mark.parametrize("kind", PAIRS)
def test_autocast_keeps_the_precision_of_the_weights(kind):
    """With gates and without, so that a carry's state has one dtype."""
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 4, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.float16):
        outputs, state = ours(x, as_hx(kind, state_of(kind, 1, 2, 4, dtype=torch.float32)))
        plain = ours(x)[0]
    assert outputs.dtype == tensors(state)[0].dtype == torch.bfloat16
    assert torch.equal(plain, theirs(x.bfloat16())[0])


@pytest.mark.parametrize("kind", PAIRS)
def test_the_whole_contract_of_a_call_on_another_device(kind):
    """The meta device: shapes, dtypes and devices of every form of input, nothing computed."""
    ours, _, more = PAIRS[kind]
    layer = ours(3, 4, 2, batch_first=True, device="meta", **more)
    for shape in ((2, 5, 3), (5, 3)):
        outputs, state = layer(torch.zeros(shape, device="meta"))
        assert outputs.shape == (*shape[:-1], 4) and outputs.device.type == "meta"
        again, _ = layer(torch.zeros(shape, device="meta"), state)
        assert again.shape == outputs.shape and tensors(state)[0].shape == ((2, 4) if len(shape) == 2 else (2, 2, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", PAIRS)
def test_on_cuda_as_in_torch_and_with_gates_as_on_the_cpu(kind, training):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    ours, theirs = pair(kind, 3, 8, num_layers=2, dtype=torch.float32)
    ours.cuda().train(training)
    x, hx = torch.randn(12, 4, 3).cuda(), tuple(part.cuda() for part in state_of(kind, 2, 4, 8, dtype=torch.float32))
    assert calls(ours, x) == [(kind, 12)]
    # cuDNN itself walks back in training mode only; ours does in both.
    assert_same(ours, theirs.cuda(), x, hx, rtol=1e-4, atol=1e-5)
    turned = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in hx)
    torch.testing.assert_close(ours(x, as_hx(kind, turned))[0], ours(x, as_hx(kind, hx))[0])
    grads = {}
    for device in ("cpu", "cuda"):
        on = x.to(device)
        reset = EDGES["reset"]["reset"].to(device)
        gradient, _ = cg.value_and_grad(
            ours.to(device), lambda y, _: y.square().mean(-1), on, on, truncation=cg.Chunks(5), reset=reset
        )
        grads[device] = {name: grad.cpu() for name, grad in gradient.grads.items()}
    torch.testing.assert_close(grads["cuda"], grads["cpu"], rtol=1e-3, atol=1e-5)


def test_linear_and_element_wise_recurrences_have_no_function_of_torch():
    for layer in (cg.LinearRNN(3, 4), cg.DiagonalRNN(3, 4), cg.ELSTM(3, 4)):
        assert calls(layer.bfloat16(), torch.zeros(5, 2, 3, dtype=torch.bfloat16)) == []


def test_torch_s_layers_in_a_user_s_model_stay_torch_s():
    layer = nn.GRU(3, 4, 2)
    assert calls(layer, torch.zeros(5, 2, 3)) == [("gru", 5)]
