"""The compiled kernels where care is easily lost: long passes, views, gradients one by one, infinities, bad calls."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from chronograd.kernels import CELLS, Edges, reference, run_projected
from chronograd.kernels.compiled import Choice
from layer_case import KINDS, Case, can, isas


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("tanh", (2, 3, 20, 1500)),
        ("lstm", (3, 2, 300, 6)),
        ("gru", (2, 2, 400, 5)),
        ("lstm", (30, 20, 300, 600)),
        ("diagonal", (700, 2, 33, 1)),
        ("diagonal", (700, 2, 9, 7)),
    ],
)
def test_products_of_great_depth_and_long_blocks(native, kind, shape):
    """More than a pass of any loop: features and blocks of units beyond 1024, a diagonal block beyond 256 steps, a
    result of a million numbers.
    """
    Case(kind, shape).check(Choice(native=native))
    if kind == "diagonal":
        Case(kind, shape, True).check(Choice(native=native))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("inputs", [1, 5])
def test_complex_numbers_of_single_precision(native, isa, inputs):
    can(native, isa)
    case = Case("diagonal", (40, 3, 37, inputs), True)
    expected = case.twin()

    def single(part):
        return part.detach().to(torch.complex64).requires_grad_()

    case.x, case.weight_ih, case.bias_ih, case.weight, case.bias = map(
        single, (case.x, case.weight_ih, case.bias_ih, case.weight, case.bias)
    )
    case.initial = tuple(map(single, case.initial))
    case.leaves = [case.x, case.weight_ih, case.bias_ih, case.weight, case.bias, *case.initial]
    case.cotangents = [part.to(torch.complex64) for part in case.cotangents]
    for ours, theirs in zip(case.projected(Choice(isa, native=native)), expected, strict=True):
        torch.testing.assert_close(ours.to(torch.complex128), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_of_the_gradients_alone(native, kind):
    case = Case(kind, (5, 3, 7, 2))
    expected = case.projected(Choice(native=native))[CELLS[kind].parts :]
    for wanted, gradient in enumerate(expected):
        parts = [part.detach().requires_grad_(number == wanted) for number, part in enumerate(case.leaves)]
        x, weight_ih, bias_ih, weight, bias, *initial = parts
        path = run_projected(
            kind, x, weight_ih, bias_ih, tuple(initial), weight, bias, case.edges, None, Choice(native=native)
        )
        found = torch.autograd.grad(path, parts[wanted], case.cotangents)[0]
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_bias_alone(native, kind):
    case = Case(kind, (5, 3, 7, 2))
    zero = torch.zeros_like(case.bias_ih)
    choice = Choice(native=native)
    arguments = (case.initial, case.weight, case.bias, case.edges, None, choice)
    without = run_projected(kind, case.x, case.weight_ih, None, *arguments)
    for ours, theirs in zip(without, run_projected(kind, case.x, case.weight_ih, zero, *arguments)):
        torch.testing.assert_close(ours, theirs)


def test_conjugate_and_negative_views(native):
    case = Case("diagonal", (5, 3, 7, 2), True)
    choice = Choice(native=native)
    with torch.no_grad():
        views = (case.x.conj(), case.weight_ih.conj(), case.weight.conj())
        paths = [
            run_projected("diagonal", x, weight_ih, None, case.initial, weight, None, Edges(), None, choice)[0]
            for x, weight_ih, weight in (views, [part.resolve_conj() for part in views])
        ]
        torch.testing.assert_close(*paths)
        negative = case.x.conj().imag
        assert negative.is_neg()
        tanh = Case("tanh", (5, 3, 7, 2))
        arguments = (tanh.weight_ih, None, tanh.initial, tanh.weight, None, Edges(), None, choice)
        torch.testing.assert_close(
            run_projected("tanh", negative, *arguments), run_projected("tanh", negative.clone(), *arguments)
        )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["inputs", "cotangent"])
def test_gradients_of_relu_take_what_is_not_finite_as_torch_does(native, bad, where):
    """torch masks where the output is not positive: a product with 0 would not."""
    torch.manual_seed(0)
    layer = torch.nn.RNN(3, 6, nonlinearity="relu", dtype=torch.float64)
    x, cotangent = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 6, dtype=torch.float64)
    (x if where == "inputs" else cotangent)[2, 1, 1] = bad
    weights = [getattr(layer, f"{name}_l0") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    zeros = (torch.zeros(2, 6, dtype=torch.float64),)
    expected = torch.autograd.grad(layer(x)[0], weights, cotangent)
    ours = run_projected("relu", x, *weights[:2], zeros, *weights[2:], Edges(), None, Choice(native=native))[0]
    drive = torch.nn.functional.linear(x, weights[0], weights[1])
    twin = reference.run_layer("relu", drive, zeros, weights[2], weights[3], Edges())[0]
    for path in (ours, twin):
        for found, theirs in zip(torch.autograd.grad(path, weights, cotangent), expected):
            torch.testing.assert_close(found.isfinite(), theirs.isfinite())
            torch.testing.assert_close(found, theirs, equal_nan=True)


def test_more_threads_than_a_split_can_use(native):
    """In a process of its own: threads that wait for each other would wait for ever. 17 units are at most 5 vectors."""
    program = (
        "import torch\n"
        "from chronograd.kernels import Edges, run_projected\n"
        "from chronograd.kernels.compiled import Choice\n"
        "torch.set_num_threads(6)\n"
        "x, w, z = torch.randn(400, 1, 64, requires_grad=True), torch.randn(17, 17) / 6, torch.zeros(1, 17)\n"
        "rest = (x, torch.ones(17, 64), None, (z,), w, None, Edges(), None)\n"
        "out = [run_projected('tanh', *rest, Choice(None, split))[0] for split in ('units', 'rows')]\n"
        "grads = [torch.autograd.grad(part.sum(), x)[0] for part in out]\n"
        "torch.testing.assert_close(*out); torch.testing.assert_close(*grads)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_gates_changed_before_the_way_back_are_noticed(native):
    case = Case("gru", (5, 3, 7, 2))
    gates = torch.full((5, 3), 0.5, dtype=torch.float64)
    case.edges = Edges(gates)
    path = case.path(Choice(native=native))
    gates.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        path[0].sum().backward()


def test_shapes_and_dtypes_that_the_kernels_would_misread_are_refused(native):
    x, good, z = torch.randn(4, 2, 3), torch.randn(18, 3), torch.zeros(2, 6)
    weight = torch.randn(18, 6)
    for bad in (
        {"weight_ih": torch.randn(2, 3)},
        {"weight": torch.randn(6, 6)},
        {"bias": torch.randn(1)},
        {"initial": (torch.zeros(3, 6),)},
    ):
        given = {"weight_ih": good, "weight": weight, "bias": None, "initial": (z,)} | bad
        with pytest.raises(RuntimeError, match="must be"):
            run_projected(
                "gru",
                x,
                given["weight_ih"],
                None,
                given["initial"],
                given["weight"],
                given["bias"],
                Edges(),
                None,
                Choice(native=native),
            )
    with pytest.raises(RuntimeError, match="must be"):
        torch.ops.chronograd.layer("gru", x.double(), good, None, weight, None, [z], None, None, None, True)


def test_autocast_casts_every_weight_to_the_recurrent_one(native):
    case = Case("gru", (5, 3, 7, 2))
    low = case.weight_ih.detach().to(torch.bfloat16)
    arguments = (case.bias_ih, case.initial, case.weight, case.bias, Edges(), None, Choice(native=native))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run_projected("gru", case.x, low, *arguments)
    torch.testing.assert_close(mixed, run_projected("gru", case.x, low.double(), *arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_at_all(native, kind):
    case = Case(kind, (3, 0, 5, 2))
    for ours, theirs in zip(case.projected(Choice(native=native)), case.twin(), strict=True):
        torch.testing.assert_close(ours, theirs)
