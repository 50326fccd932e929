"""X1 and X2 on matrices whose eigenvalues were chosen, not computed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronograd.measure.powers import power_alignment, power_eigenvalues
from chronograd.recurrence.closed_form import power_terms


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_spectrum(blocks, seed, spread=0.4):
    """S D S^-1 with a moderate S: eigenvalues chosen; a block is a real number or a complex pair."""
    parts = [
        torch.tensor([[b.real, -b.imag], [b.imag, b.real]], dtype=torch.float64)
        if isinstance(b, complex)
        else torch.tensor([[b]], dtype=torch.float64)
        for b in blocks
    ]
    D = torch.block_diag(*parts)
    S = torch.eye(len(D), dtype=torch.float64) + spread * normal(seed, *D.shape) / len(D) ** 0.5
    return S @ D @ torch.linalg.inv(S), S


def same_multiset(found, expected, tolerance):
    """Some pairing brings every value within the tolerance (chosen values are further apart)."""
    left = list(expected)
    for value in found:
        nearest = min(left, key=lambda other: abs(other - value))
        assert abs(nearest - value) <= tolerance, f"{value} has no partner in {left}"
        left.remove(nearest)


@given(
    st.lists(st.integers(-30, 30), min_size=1, max_size=5, unique=True),
    st.booleans(),
    st.integers(0, 8),
    st.integers(0, 20),
)
@settings(max_examples=50, deadline=None)
def test_eigenvalues_of_a_power_are_powers_of_the_eigenvalues(tenths, pair, k, seed):
    blocks = [value / 20 for value in tenths] + ([complex(0.4, 1.1)] if pair else [])
    M, _ = with_spectrum(blocks, seed)
    chosen = [b**k for b in blocks if not isinstance(b, complex)] + [
        v**k for b in blocks if isinstance(b, complex) for v in (b, b.conjugate())
    ]
    result = power_eigenvalues(M, k)
    largest = max(map(abs, chosen))
    same_multiset(result.of_power.tolist(), chosen, 1e-9 * max(largest, 1e-12) + 1e-11)
    same_multiset(result.powers.tolist(), chosen, 1e-9 * max(largest, 1e-12) + 1e-11)
    assert (result.of_power - result.powers).abs().max() <= 1e-9 * largest + 1e-11
    assert result.difference == pytest.approx(
        float((result.of_power - result.powers).abs().max() / result.powers.abs().max())
        if result.powers.abs().max()
        else 0
    )


def test_matching_does_not_depend_on_order():
    """Conjugate pairs and an eigenvalue whose power changes sign, side by side."""
    M, _ = with_spectrum([-0.9, 0.3, complex(0.1, 0.7), complex(-0.5, 0.2)], seed=3)
    result = power_eigenvalues(M, 3)
    torch.testing.assert_close(result.of_power, result.powers, rtol=1e-10, atol=1e-12)
    moduli = result.powers.abs().tolist()
    assert moduli == sorted(moduli, reverse=True)
    assert result.powers[0].real.item() == pytest.approx(-(0.9**3))


def test_matching_uses_every_eigenvalue_once():
    """1/2 and -1/2 have one square: each of its two copies is matched once."""
    M, _ = with_spectrum([0.5, -0.5, 0.3], seed=2)
    raw = torch.linalg.eigvals(torch.linalg.matrix_power(M, 2)).tolist()
    assert len(set(raw)) == 3  # the copies differ in their last digits
    assert set(power_eigenvalues(M, 2).of_power.tolist()) == set(raw)


def test_defective_and_complex_matrices():
    jordan = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    assert power_eigenvalues(jordan, 6).difference < 1e-6
    rotation = torch.tensor([[1j, 0], [1, 2]], dtype=torch.complex128)
    same_multiset(power_eigenvalues(rotation, 5).of_power.tolist(), [1j, 32], 1e-12)
    assert power_eigenvalues(torch.zeros(3, 3), 2).difference == 0.0


@given(st.integers(0, 30), st.sampled_from([0.3, 0.8, 0.95, -0.9]), st.booleans(), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_alignment_is_predicted_by_the_formula(k, second, negative, seed):
    first = -1.3 if negative else 1.3
    M, S = with_spectrum([first, 1.3 * second, 0.2, complex(0.1, 0.15)], seed)
    x = S @ torch.tensor([1.0, -0.7, 0.4, 0.3, 2.0], dtype=torch.float64)
    result = power_alignment(M, x, k)

    v = S[:, 0] / S[:, 0].norm()
    torch.testing.assert_close(result.eigenvector, v, rtol=1e-9, atol=1e-11)  # x has +1 along the first column
    y = torch.linalg.matrix_power(M, k) @ x
    across = (y - (v @ y) * v).norm() / y.norm()
    assert result.misalignment == pytest.approx(across.item(), rel=1e-7, abs=1e-13)
    assert result.predicted == pytest.approx(across.item(), rel=1e-7, abs=1e-13)
    assert result.alignment == pytest.approx((v @ y).abs().item() / y.norm().item(), rel=1e-12)
    assert result.ratio == pytest.approx(abs(second), rel=1e-9)
    assert result.rate == pytest.approx(abs(second) ** k, rel=1e-7)
    c_r = result.constant * result.rate
    if c_r < 1:
        assert result.misalignment <= c_r / (1 - c_r) * (1 + 1e-9)


def test_the_rate_is_the_rate():
    """For large k, one more power multiplies the misalignment by |lambda_2 / lambda_1| = 0.8."""
    M, S = with_spectrum([2.0, -1.6, 0.5], seed=7)
    x = S.sum(1)
    sines = [power_alignment(M, x, k).misalignment for k in (80, 81, 82)]
    assert sines[1] / sines[0] == pytest.approx(0.8, rel=1e-6)
    assert sines[2] / sines[1] == pytest.approx(0.8, rel=1e-6)


def test_no_overflow_where_the_power_itself_would():
    M, S = with_spectrum([30.0, 29.0], seed=9)
    result = power_alignment(M, S.sum(1), 400)  # 30^400 is beyond float64
    assert 0 < result.misalignment < 1e-4
    assert result.misalignment == pytest.approx(result.predicted, rel=1e-6)
    with pytest.raises(ValueError, match=r"M\^400 is too large for float64"):
        power_eigenvalues(M, 400)


def test_complex_matrix_and_single_number():
    M = torch.diag(torch.tensor([2j, 1.0 + 0j], dtype=torch.complex128))
    result = power_alignment(M, torch.tensor([1.0 + 0j, 1.0], dtype=torch.complex128), 5)
    assert result.misalignment == pytest.approx(1 / math.sqrt(1 + 2**10))
    alone = power_alignment(torch.tensor([[-3.0]]), torch.tensor([-2.0]), 3)
    assert (alone.alignment, alone.ratio, alone.rate, alone.eigenvector.tolist()) == (1.0, 0.0, 0.0, [-1.0])


def test_what_it_means_for_gradients():
    """X3: errors of distant steps arrive as multiples of v_1 of W_hh^T, shrinking by |lambda_1| per step."""
    W_hh, _ = with_spectrum([0.9, 0.5, -0.4], seed=11)
    W_qh, d_o = normal(12, 2, 3), normal(13, 60, 1, 2)
    terms = power_terms(W_hh, W_qh, d_o, t=1)[:, 0]
    last = terms[-1]
    aligned = power_alignment(W_hh.T, W_qh.T @ d_o[-1, 0], 59)
    assert aligned.rate == pytest.approx((5 / 9) ** 59)
    assert abs(torch.dot(last, aligned.eigenvector).item()) / last.norm().item() == pytest.approx(1, abs=1e-12)
    same_error = power_terms(W_hh, W_qh, d_o[-1:].expand(60, 1, 2), t=1)[:, 0].norm(dim=-1)
    assert (same_error[-1] / same_error[-2]).item() == pytest.approx(0.9, rel=1e-9)


@pytest.mark.parametrize(
    ("M", "x", "words"),
    [
        ([[0.0, -1.0], [1.0, 0.0]], [1.0, 1.0], "complex pair"),
        ([[1.0, 0.0], [0.0, -1.0]], [1.0, 1.0], "same modulus"),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0], "equal, so there is no single v_1"),
        ([[1.0, 1.0], [0.0, 1.0]], [1.0, 1.0], "not diagonalizable"),
        ([[0.0, 1.0], [0.0, 0.0]], [1.0, 1.0], "not diagonalizable"),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], "M is zero"),
        ([[2.0, 0.0], [0.0, 1.0]], [0.0, 1.0], "no component along the dominant eigenvector"),
        ([[2.0, 0.0], [0.0, 1.0]], [0.0, 0.0], "no component along the dominant eigenvector"),
        ([[2.0, 0.0], [0.0, 1.0]], [1.0, math.nan], "x holds NaN"),
        ([[2.0, math.inf], [0.0, 1.0]], [1.0, 1.0], "M holds NaN or infinity"),
        ([[2.0, 0.0]], [1.0, 1.0], "M must be a square matrix"),
        ([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0, 1.0], r"x must be a vector \(2,\)"),
    ],
)
def test_nothing_to_align_with_is_said(M, x, words):
    with pytest.raises(ValueError, match=words) as caught:
        power_alignment(torch.tensor(M), torch.tensor(x), 3)
    assert "\n" not in str(caught.value)


def test_a_component_hidden_by_a_slanted_basis():
    """x is orthogonal to nothing, yet lies in the span of the other eigenvectors: v_1's component is zero."""
    M, S = with_spectrum([2.0, 1.0, 0.5], seed=15)
    x = S @ torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert abs(torch.dot(x, S[:, 0]).item()) > 1e-2
    with pytest.raises(ValueError, match="no component"):
        power_alignment(M, x, 3)


def test_wrong_kinds_are_named():
    M, x = torch.eye(2), torch.ones(2)
    for call, words in [
        (
            lambda: power_eigenvalues(torch.ones(2, 2, dtype=torch.int64), 2),
            "M must be a floating-point .* torch.int64",
        ),
        (lambda: power_eigenvalues([[1.0]], 2), "M must be a floating-point .* list"),
        (lambda: power_eigenvalues(M, 2.0), "k must be an integer, got float"),
        (lambda: power_alignment(M, [1.0, 1.0], 2), "x must be .* list"),
        (lambda: power_alignment(M, x, True), "k must be an integer, got bool"),
    ]:
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(ValueError, match="k must be at least 0, got -1"):
        power_alignment(M, x, -1)


def test_results_are_plain_data():
    M = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    eigen = power_eigenvalues(M, 3)
    assert json.loads(json.dumps(eigen.to_dict()))["k"] == 3
    assert len(eigen.table().splitlines()) == 3
    aligned = power_alignment(torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2), 4)
    assert json.loads(json.dumps(aligned.to_dict()))["rate"] == 2**-4
    assert "0.0625" in aligned.table()
