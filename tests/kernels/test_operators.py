"""The compiled kernels under torch.compile, fake tensors and torch.func, against the same calls made eagerly."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import chronograd as cg
from chronograd.kernels import library
from chronograd.kernels.native.build import compiler
from chronograd.measure.cost import PeakBytes

pytestmark = pytest.mark.skipif(library.library() is None, reason="the kernels are not built")

LAYERS = {
    "RNN": cg.RNN,
    "GRU": cg.GRU,
    "LSTM": cg.LSTM,
    "LinearRNN": cg.LinearRNN,
    "DiagonalRNN": cg.DiagonalRNN,
    "ELSTM": cg.ELSTM,
}
BLOCKS = {"tanh": 1, "gru": 3, "lstm": 4, "diagonal": 1, "elstm": 2}


@pytest.fixture(params=LAYERS)
def model(request):
    torch.manual_seed(0)
    return LAYERS[request.param](3, 6).double()


def sequence(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def arguments(kind, keep=True):
    """Arguments of chronograd::layer, every tensor a leaf."""
    random = torch.Generator().manual_seed(2)

    def new(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=random).requires_grad_()

    steps, rows, inputs, size = 4, 3, 2, 5
    across = BLOCKS[kind] * size
    weight = new(across) if kind in ("diagonal", "elstm") else new(across, size)
    states = [new(rows, size) for _ in range(2 if kind == "lstm" else 1)]
    gates = torch.rand(steps, rows, dtype=torch.float64, generator=random)
    return kind, new(steps, rows, inputs), new(across, inputs), new(across), weight, new(across), states, gates, keep


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.filterwarnings("ignore")
def test_opcheck(kind):
    kind, x, weight_ih, bias_ih, weight, bias, states, gates, keep = arguments(kind)
    valid = torch.ones(x.shape[:2], dtype=torch.uint8)
    reset = torch.full(x.shape[:2], -1, dtype=torch.int32)
    for crossings in ((None, None, None), (gates, reset, valid)):
        call = (kind, x, weight_ih, bias_ih, weight, bias, states, *crossings, keep)
        torch.library.opcheck(torch.ops.chronograd.layer.default, call)


def test_an_operator_that_kept_nothing_says_so():
    kind, x, weight_ih, bias_ih, weight, bias, states, _, _ = arguments("gru")
    out = torch.ops.chronograd.layer(kind, x, weight_ih, bias_ih, weight, bias, states, None, None, None, False)
    with pytest.raises(RuntimeError, match="keep=False"):
        out[0].sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_compiled_whole(model):
    """fullgraph: one graph with the layer as one operator in it; torch asks for allow_rnn where it knows the class."""
    x = sequence(7, 4, 3).requires_grad_()
    leaves = [x, *model.parameters()]
    with torch._dynamo.config.patch(allow_rnn=True):
        run = torch.compile(model, fullgraph=True, backend="aot_eager")
        out, state = run(x)
        found = torch.autograd.grad(out.sum() + sum(part.sum() for part in state), leaves)
        with torch.no_grad():
            plain, _ = run(x)
    torch._dynamo.reset()
    expected, state = model(x)
    close([out, plain], [expected, expected])
    close(found, torch.autograd.grad(expected.sum() + sum(part.sum() for part in state), leaves))


@pytest.mark.filterwarnings("ignore")
def test_compiled_to_machine_code():
    """The default backend, which plans memory and writes code around the operator."""
    if compiler() is None:
        pytest.skip("no compiler, which torch's own code generator needs too")
    torch.manual_seed(0)
    model = cg.GRU(3, 8).double()
    x = sequence(7, 4, 3).requires_grad_()

    def loss(x):
        return (2 * model(x.sin())[0]).tanh().square().mean()

    with torch._dynamo.config.patch(allow_rnn=True):
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), [x, *model.parameters()])
    torch._dynamo.reset()
    close(found, torch.autograd.grad(loss(x), [x, *model.parameters()]))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracers_see_the_operator(model):
    x = sequence(5, 2, 3)
    traced = make_fx(lambda x: model(x)[0])(x)
    assert "chronograd.layer" in traced.code
    close([traced(2 * x)], [model(2 * x)[0]])
    if isinstance(model, cg.LinearRNN | cg.DiagonalRNN | cg.ELSTM):
        close([torch.jit.trace(model, (x,))(2 * x)[0]], [model(2 * x)[0]])


def test_fake_tensors_give_shapes():
    with FakeTensorMode():
        model = cg.LSTM(3, 6, 2)
        out, (h, c) = model(torch.randn(7, 4, 3))
        out.sum().backward()
        assert (out.shape, h.shape, c.shape) == ((7, 4, 6), (2, 4, 6), (2, 4, 6))
        assert all(part.grad.shape == part.shape for part in model.parameters())


def test_gradients_by_torch_func(model):
    parameters, x = dict(model.named_parameters()), sequence(7, 4, 3)

    def loss(parameters, x):
        return functional_call(model, parameters, (x,))[0].pow(2).sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    close(grad(loss)(parameters, x).values(), expected)
    _, back = vjp(lambda x: loss(parameters, x), x)
    leaf = x.clone().requires_grad_()
    close(back(torch.ones((), dtype=torch.float64)), torch.autograd.grad(loss(parameters, leaf), leaf))


def test_a_gradient_for_each_example(model):
    parameters, x = dict(model.named_parameters()), sequence(7, 4, 3)

    def loss(parameters, row):
        return functional_call(model, parameters, (row.unsqueeze(1),))[0].pow(2).sum()

    found = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for name, each in found.items():
        close(each, [grad(loss)(parameters, x[:, row])[name] for row in range(4)])


def test_mapped_weights_run_one_after_the_other():
    models = [cg.GRU(3, 6, dtype=torch.float64) for _ in range(3)]
    x = sequence(7, 4, 3)
    parameters, _ = torch.func.stack_module_state(models)  # pyright: ignore[reportArgumentType]
    found = vmap(lambda weights: functional_call(models[0], weights, (x,))[0])(parameters)
    close(found, [model(x)[0] for model in models])


def test_a_mapped_state_beside_inputs_that_are_not():
    model, x = cg.LSTM(3, 6, dtype=torch.float64), sequence(7, 4, 3)
    h, c = sequence(5, 1, 4, 6), sequence(1, 4, 6)
    found = vmap(lambda h: model(x, (h, c))[0])(h)
    close(found, [model(x, (part, c))[0] for part in h])


def test_jacobian():
    model, x = cg.GRU(2, 3, dtype=torch.float64), sequence(4, 2, 2)
    expected = torch.autograd.functional.jacobian(lambda x: model(x)[0], x)
    close([jacrev(lambda x: model(x)[0])(x)], [expected])


def test_the_operator_refuses_second_derivatives_however_they_are_asked_for():
    x = torch.randn(4, 2, 3, requires_grad=True)
    call = ("tanh", x, torch.randn(5, 3), None, torch.randn(5, 5), None, [torch.zeros(2, 5)], None, None, None, True)
    first = torch.autograd.grad(torch.ops.chronograd.layer(*call)[0].sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiated twice"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_second_derivatives_and_forward_mode_are_refused():
    model, x = cg.GRU(2, 3), torch.randn(4, 2, 2)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad(lambda x: grad(lambda x: model(x)[0].sum())(x).sum())(x)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: model(x)[0], (x,), (x,))


def test_the_way_back_of_the_operator_makes_no_zeros_for_what_is_kept():
    """Alive at once: the states (1) and what is kept (4), beside small weights."""
    steps, rows, size = 100, 8, 16
    model, x, cotangent = cg.GRU(2, size), torch.randn(steps, rows, 2), torch.randn(steps, rows, size)
    with PeakBytes() as count:
        torch.autograd.grad(model(x)[0], list(model.parameters()), cotangent)
    assert count.peak < 6 * 4 * steps * rows * size
