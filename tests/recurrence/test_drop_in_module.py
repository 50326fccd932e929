"""RNN, GRU and LSTM as modules: state dicts, copies, files, hooks, parametrizations, training; all against torch.nn."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import chronograd as cg
from pairs import PAIRS, as_hx, assert_same, pair, state_of, tensors

F64 = torch.float64
X = torch.randn(5, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
OPTIONS = [
    {},
    {"num_layers": 2, "bias": False},
    {"bidirectional": True, "num_layers": 2, "dropout": 0.5, "batch_first": True},
]


def both(kind, run, **options):
    """``run`` on our layer and on torch's, with the same weights, gives tensors; they must be the same."""
    torch.manual_seed(0)
    results = []
    for layer in pair(kind, 3, 4, **options):
        torch.manual_seed(1)
        results.append(run(layer))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    return results[0]


def grads(layer):
    return [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_the_same_module(kind, options):
    """Kind, names, text, initial weights and state dicts, both ways and strictly."""
    ours, theirs, more = PAIRS[kind]
    torch.manual_seed(3)
    a = ours(3, 4, **options, **more)
    torch.manual_seed(3)
    b = theirs(3, 4, **options, **more)
    assert isinstance(a, theirs) and repr(a) == repr(b)
    assert [len(group) for group in a.all_weights] == [len(group) for group in b.all_weights]
    for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)
    for giver, taker in ((ours, theirs), (theirs, ours)):
        one, two = giver(3, 4, **options, **more), taker(3, 4, **options, **more)
        assert two.load_state_dict(one.state_dict(), strict=True) == ([], [])
        assert_same(*((one, two) if giver is ours else (two, one)), X.float(), rtol=1e-4, atol=1e-5)
        wrong = one.state_dict()
        wrong["surplus"] = wrong.pop("weight_hh_l0")
        with pytest.raises(RuntimeError, match=r"Missing key\(s\).*weight_hh_l0.*\n.*Unexpected key\(s\).*surplus"):
            two.load_state_dict(wrong)


def test_constructors_refuse_what_torch_refuses():
    wrong = [
        {"hidden_size": 0},
        {"input_size": 0},
        {"num_layers": 0},
        {"hidden_size": 4.0},
        {"bias": 1},
        {"batch_first": 0},
        {"dropout": 2},
        {"proj_size": 2},
        {"proj_size": 4},
        {"proj_size": -1},
        {"nonlinearity": "relu"},
        {"surplus": 1},
    ]
    for name in ("RNN", "GRU", "LSTM"):
        for change in wrong:
            found = []
            for module in (cg, nn):
                try:
                    getattr(module, name)(**({"input_size": 3, "hidden_size": 4} | change))
                    found.append(None)
                except Exception as error:
                    found.append((type(error), str(error)))
            assert found[0] == found[1], (name, change)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        cg.RNN(3, 4, nonlinearity="sin")
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        cg.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("kind", PAIRS)
def test_dtype_and_device(kind):
    ours, _, more = PAIRS[kind]
    assert {p.dtype for p in ours(3, 4, dtype=F64, **more).parameters()} == {F64}
    meta = ours(3, 4, device="meta", **more)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    outputs, state = meta(torch.zeros(5, 2, 3, device="meta"))
    assert outputs.shape == (5, 2, 4) and outputs.device.type == "meta" and tensors(state)[0].shape == (1, 2, 4)
    with torch.device("meta"):
        assert ours(3, 4, **more).weight_ih_l0.is_meta
    filled = meta.to_empty(device="cpu").double()
    filled.reset_parameters()
    theirs = PAIRS[kind][1](3, 4, **more).double()
    filled.load_state_dict(theirs.state_dict())
    assert_same(filled, theirs, X)


@pytest.mark.parametrize("kind", PAIRS)
def test_conversion_there_and_back(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2, dtype=torch.float32)
    for layer in (ours, theirs):
        layer(X.float())
        layer.to(F64)
    assert_same(ours, theirs, X)
    for layer in (ours, theirs):
        layer.float().bfloat16().double()
    assert_same(ours, theirs, X)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_copies_and_files(kind, options):
    ours, theirs = pair(kind, 3, 4, **options)

    def saved(layer):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    def state_saved(layer):
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        new = type(layer)(3, 4, **options, **PAIRS[kind][2]).double()
        new.load_state_dict(torch.load(file, weights_only=True))
        return new

    ways = [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved, state_saved]
    for way in ways:
        twin = way(ours)
        assert type(twin) is type(ours) and repr(twin) == repr(ours)
        assert_same(twin, theirs, X)
        if way is not copy.copy:
            with torch.no_grad():
                twin.weight_hh_l0.zero_()
            assert ours.weight_hh_l0.any()
            assert not torch.equal(twin(X)[0], ours(X)[0])
    assert_same(ours, theirs, X)


@pytest.mark.parametrize("kind", PAIRS)
def test_flatten_parameters_changes_nothing_here(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    before = [p.data_ptr() for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert before == [p.data_ptr() for p in ours.parameters()]
    assert_same(ours, theirs, X)


@pytest.mark.parametrize("kind", PAIRS)
def test_any_one_parameter_frozen_or_alone_to_learn(kind):
    names = [name for name, _ in pair(kind, 3, 4, num_layers=2)[0].named_parameters()]
    for name in names:
        for frozen in ({name}, set(names) - {name}):
            results = []
            torch.manual_seed(0)
            for layer in pair(kind, 3, 4, num_layers=2):
                torch.manual_seed(1)
                for each, p in layer.named_parameters():
                    torch.nn.init.normal_(p)
                    p.requires_grad_(each not in frozen)
                layer(X)[0].square().sum().backward()
                results.append(grads(layer))
            for each, a, b in zip(names, *results, strict=True):
                assert (a is None) == (b is None) == (each in frozen)
                if a is not None:
                    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", PAIRS)
def test_all_frozen_there_is_no_graph(kind):
    ours, _ = pair(kind, 3, 4)
    ours.requires_grad_(False)
    outputs, state = ours(X)
    assert not outputs.requires_grad and not tensors(state)[0].requires_grad
    leaf = X.clone().requires_grad_()
    assert ours(leaf)[0].requires_grad


@pytest.mark.parametrize("kind", PAIRS)
def test_weights_changed_in_place_or_replaced_between_calls(kind):
    def run(layer):
        made = [layer(X)[0]]
        with torch.no_grad():
            layer.weight_hh_l0.mul_(-0.5)
            layer.bias_ih_l0.add_(1)
        made.append(layer(X)[0])
        layer.weight_ih_l0.data = layer.weight_ih_l0.data * 2
        made.append(layer(X)[0])
        layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach().flip(0))
        made.append(layer(X)[0])
        made[-1].sum().backward()
        return [*made, *grads(layer)]

    found = both(kind, run)
    assert all(not torch.equal(a, b) for a, b in zip(found[:4], found[1:4]))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_weight_changed_before_the_way_back_is_noticed(kind):
    for layer in pair(kind, 3, 4):
        outputs, _ = layer(X)
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outputs.sum().backward()


@pytest.mark.parametrize("kind", PAIRS)
def test_one_layer_many_times_in_one_graph(kind):
    def run(layer):
        first, state = layer(X)
        second, state = layer(X.flip(0), state)
        third, _ = layer(first[..., :3] + second[..., :3], state)
        third.square().sum().backward()
        return [first, second, third, *grads(layer)]

    both(kind, run, num_layers=2)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_way_back_is_walked_twice_only_where_it_is_kept(kind):
    for layer in pair(kind, 3, 4):
        total = layer(X)[0].sum()
        first = torch.autograd.grad(total, layer.weight_hh_l0, retain_graph=True)
        assert torch.equal(first[0], torch.autograd.grad(total, layer.weight_hh_l0)[0])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(total, layer.weight_hh_l0)


@pytest.mark.parametrize("kind", PAIRS)
def test_without_gradients(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    expected = theirs(X)[0]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            outputs, state = ours(X)
        torch.testing.assert_close(outputs, expected)
        assert not outputs.requires_grad and outputs.is_inference() == (context is torch.inference_mode)
        # The state of a run without gradients starts one with them; so do inference inputs that torch lets in.
        results = []
        for layer in (ours, theirs):
            if context is torch.no_grad:
                layer.zero_grad()
                layer(X, state)[0].sum().backward()
                results.append(grads(layer))
            else:
                with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
                    layer(X, state)
        for a, b in zip(*results) if results else ():
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", PAIRS)
def test_hooks_see_what_torch_shows_them(kind):
    def run(layer):
        seen = []

        def keep(*given):
            for part in given:
                if isinstance(part, tuple):
                    keep(*part)
                elif isinstance(part, torch.Tensor):
                    seen.append(part.detach().clone())

        layer.register_forward_pre_hook(lambda module, args: keep(args))
        layer.register_forward_hook(lambda module, args, made: keep(args, made))
        layer.register_full_backward_pre_hook(lambda module, arriving: keep(arriving))
        layer.register_full_backward_hook(lambda module, leaving, arriving: keep(leaving, arriving))
        for p in layer.parameters():
            p.register_hook(lambda grad: grad * 2)
            p.register_post_accumulate_grad_hook(lambda p: keep(p.grad))
        outputs, final = layer(X.clone().requires_grad_(), as_hx(kind, (torch.ones(1, 2, 4, dtype=F64),) * 2))
        outputs.register_hook(lambda grad: grad.clamp(max=1))
        (outputs.square().sum() + sum(part.sum() for part in tensors(final))).backward()
        return [*sorted(seen, key=lambda part: (part.shape, part.sum().item())), *grads(layer)]

    assert len(both(kind, run)) > 15


@pytest.mark.parametrize("kind", PAIRS)
def test_a_forward_hook_may_change_what_comes_out(kind):
    def run(layer):
        layer.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
        layer.register_forward_hook(lambda module, args, made: made[0].exp())
        outputs = layer(X)
        outputs.sum().backward()
        return [outputs, *grads(layer)]

    both(kind, run)


class Skew(nn.Module):
    """A square weight made antisymmetric in its first rows."""

    def forward(self, w):
        n = w.shape[1]
        return torch.cat((w[:n] - w[:n].mT, w[n:]))


@pytest.mark.parametrize("kind", PAIRS)
def test_parametrizations(kind):
    def run(layer):
        parametrize.register_parametrization(layer, "weight_hh_l0", Skew())
        nn.utils.parametrizations.weight_norm(layer, "weight_ih_l0")
        outputs, _ = layer(X)
        outputs.square().sum().backward()
        found = [outputs, *grads(layer)]
        with parametrize.cached():
            found.append(layer(X)[0])
        parametrize.remove_parametrizations(layer, "weight_hh_l0")
        return [*found, layer(X)[0], layer.weight_hh_l0]

    found = both(kind, run)
    w = found[-1][:4]
    torch.testing.assert_close(w, -w.mT)


@pytest.mark.parametrize("kind", PAIRS)
def test_training_with_clipped_gradients(kind):
    """Ten steps of Adam with the norm clipped: the same weights at the end, and the same norms on the way."""

    def run(layer):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        norms, state = [], None
        for step in range(10):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            outputs, state = layer(X + step, state)
            outputs.square().sum().backward()
            state = tuple(part.detach() for part in state) if kind == "lstm" else state.detach()
            norms.append(nn.utils.clip_grad_norm_(layer.parameters(), 0.5))
            assert nn.utils.get_total_norm(grads(layer)) <= 0.5 + 1e-6
            optimizer.step()
        return [*norms, *layer.parameters()]

    both(kind, run, num_layers=2)


@pytest.mark.parametrize("kind", PAIRS)
def test_inside_other_modules(kind):
    """A subclass that keeps its own forward, in a container that is copied, converted and frozen as one."""

    class Last(PAIRS[kind][0]):
        def forward(self, x):
            return super().forward(x)[0][-1]

    class TheirLast(PAIRS[kind][1]):
        def forward(self, x):
            return super().forward(x)[0][-1]

    results = []
    for make in (Last, TheirLast):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), make(3, 4, 2, **PAIRS[kind][2]), nn.Linear(4, 1)).double()
        copied = copy.deepcopy(model)
        copied(X).sum().backward()
        results.append([copied(X), *grads(copied)])
        assert not any(p.grad is not None for p in model.parameters())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore")  # tracing warns of itself, and of torch's own code
@pytest.mark.parametrize("kind", PAIRS)
def test_a_trace_is_torch_s_and_runs_without_us(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    traced = torch.jit.trace(ours, (X,))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    other = torch.randn(5, 2, 3, dtype=F64)
    torch.testing.assert_close(torch.jit.load(file)(other)[0], theirs(other)[0])


def test_no_warning_is_given_where_torch_gives_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in PAIRS:
            ours, _ = pair(kind, 3, 4, num_layers=2)
            ours(X, as_hx(kind, state_of(kind, 2, 2, 4)))[0].sum().backward()
