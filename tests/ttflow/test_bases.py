"""Bases of functional tensor trains: sums, derivatives, orthonormality, and what they do outside their box."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from ttflow import bases

OPTIONS = {"bsplines": {}, "rbf": {}, "legendre": {}, "fourier": {}}
every = pytest.mark.parametrize("kind", list(OPTIONS))


def points(n=301, low=-2.0, high=3.0):
    return torch.linspace(low, high, n, dtype=torch.float64)


def uneven(n, low=-2.0, high=3.0, degree=3):
    u = torch.linspace(0, 1, n - degree + 1, dtype=torch.float64) ** 1.5
    breaks = (low + (high - low) * u).tolist()
    breaks[-1] = high
    return bases.BSplines(n, low, high, degree, breaks)


def test_bases_together_are_each_by_itself():
    several = [
        *(bases.BSplines(9, low, high) for low, high in ((-2.0, 3.0), (0.0, 0.5), (-7.0, -6.0))),
        *(bases.BSplines(9, -1.0, 1.0, 2), bases.BSplines(9, -1.0, 1.0, outside="clamp"), uneven(9)),
        *(bases.Legendre(5, 0.0, 1.0, outside="clamp"), bases.Gaussians(4, -1.0, 1.0)),
    ]
    columns = [points(40 if k != 4 else 1, b.low - 1, b.high + 1) for k, b in enumerate(several)]
    for basis, x, values in zip(several, columns, bases.evaluate(several, columns), strict=True):
        torch.testing.assert_close(values, basis(x), rtol=1e-12, atol=1e-12)
    one, at = several[6], torch.tensor([0.3], dtype=torch.float64)  # a single number goes another way
    torch.testing.assert_close(one(at), one(at.expand(2))[:1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(one.derivative(at), one.derivative(at.expand(2))[:1], rtol=1e-13, atol=1e-13)


# ---- values


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_b_splines_are_a_partition_of_unity_with_local_support(degree):
    for basis in (bases.BSplines(11, -2, 3, degree), uneven(11, degree=degree)):
        x = points()
        values = basis(x)
        assert values.shape == (301, 11) and values.min() >= -1e-15
        torch.testing.assert_close(values.sum(1), torch.ones_like(x), rtol=0, atol=1e-14)
        assert (values != 0).sum(1).max() <= degree + 1 == basis.width
        assert torch.equal(values[0], torch.eye(11, dtype=torch.float64)[0])
        torch.testing.assert_close(values[-1], torch.eye(11, dtype=torch.float64)[-1], rtol=0, atol=1e-14)
        assert basis.derivative(x).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_b_splines_are_those_of_scipy(degree):
    from scipy.interpolate import BSpline

    basis = uneven(9, degree=degree)
    assert basis.breaks is not None
    knots = [-2.0] * degree + basis.breaks + [3.0] * degree
    x = points()[:-1]
    want = torch.from_numpy(BSpline.design_matrix(x.numpy(), knots, degree).toarray())
    torch.testing.assert_close(basis(x), want, rtol=0, atol=1e-13)


def test_polynomials_and_waves_are_orthonormal_for_the_uniform_measure():
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(64))
    for basis in (bases.Legendre(9, -2, 3), bases.Fourier(9, -2, 3, period=1.0)):
        values = basis(0.5 + 2.5 * nodes)
        inner = values.T @ (values * weights[:, None] / 2)
        torch.testing.assert_close(inner, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(bases.Legendre(1, -2, 3)(points(5)), torch.ones(5, 1, dtype=torch.float64))


def test_gaussians_have_their_centres_and_length():
    basis = bases.Gaussians(6, -2, 3, length=0.7)
    want = torch.exp(-((points()[:, None] - torch.arange(-2.0, 4.0, dtype=torch.float64)) ** 2) / (2 * 0.7**2))
    torch.testing.assert_close(basis(points()), want)
    assert bases.Gaussians(6, -2, 3).length == 1.0


@every
def test_derivatives_are_those_of_finite_differences(kind):
    basis, h = bases.make(kind, 8, -2, 3), 1e-5
    x = points(97, -2.9, 3.9)
    x = x[((x + 2).abs() > 2 * h) & ((x - 3).abs() > 2 * h)]
    difference = (basis(x + h) - basis(x - h)) / (2 * h)
    torch.testing.assert_close(basis.derivative(x), difference, rtol=0, atol=2e-7)
    x = x.float().requires_grad_()
    given = torch.autograd.grad(basis(x)[:, 3].sum(), x)[0]
    torch.testing.assert_close(given, basis.derivative(x.detach())[:, 3], rtol=0, atol=2e-4)


# ---- outside the box


@every
def test_outside_the_box_a_basis_is_constant_or_straight_and_bounded(kind):
    end = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    beyond = torch.tensor([-2.5, 3.5], dtype=torch.float64)
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    clamped = bases.make(kind, 8, -2, 3, outside="clamp")
    straight = bases.make(kind, 8, -2, 3, margin=0.2)
    assert torch.equal(clamped(beyond), clamped(end)) and torch.equal(clamped(far), clamped(end))
    assert clamped.derivative(beyond).abs().max() == 0
    slopes = straight.derivative(end)
    shift = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(straight(beyond), straight(end) + shift * slopes, rtol=0, atol=1e-12)
    assert torch.equal(straight.derivative(beyond), slopes) and straight.derivative(far).abs().max() == 0
    torch.testing.assert_close(straight(far), straight(end) + 2 * shift * slopes, rtol=0, atol=1e-12)


@every
def test_nan_is_passed_on(kind):
    x = torch.tensor([0.0, math.nan])
    values = bases.make(kind, 8, -2, 3)(x)
    assert torch.isfinite(values[0]).all() and torch.isnan(values[1]).any()


# ---- change of basis


@every
def test_the_changed_basis_is_orthonormal_in_the_empirical_measure(kind):
    basis = bases.make(kind, 8, -2, 3)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8 + 0.4
    matrix = bases.gram(basis, x, block=700)
    torch.testing.assert_close(matrix, basis(x).T @ basis(x) / 5000, rtol=1e-12, atol=1e-14)
    change, back = bases.orthonormal(matrix)
    assert change.shape == (8, 8)
    eye = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(bases.gram(basis, x), matrix)
    torch.testing.assert_close((basis(x) @ change).T @ (basis(x) @ change) / 5000, eye, rtol=0, atol=1e-7)
    torch.testing.assert_close(back @ change, eye, rtol=0, atol=1e-7)
    c = torch.arange(1.0, 9.0, dtype=torch.float64)
    torch.testing.assert_close(basis(x) @ change @ (back @ c), basis(x) @ c, rtol=0, atol=1e-6)


def test_what_the_data_do_not_determine_is_left_out():
    wide = bases.Gaussians(30, -2, 3, length=3.0)  # as good as a polynomial of low degree
    change, back = bases.orthonormal(bases.gram(wide, points()))
    k = change.shape[1]
    assert 4 < k < 12 and change.shape == (30, k) and back.shape == (k, 30)
    values = wide(points()) @ change
    torch.testing.assert_close(values.T @ values / 301, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-4)
    unseen = bases.BSplines(10, -2, 3)  # no point lies in the supports of the last splines
    change, _ = bases.orthonormal(bases.gram(unseen, points(high=0.5)))
    assert change.shape[1] == 7 and change[7:].abs().max() == 0


# ---- description, bad input


@pytest.mark.parametrize(
    "basis",
    [
        bases.BSplines(7, 0, 1, 2, outside="clamp"),
        uneven(9),
        bases.Gaussians(5, 0, 1, 0.3),
        bases.Legendre(4, 0, 1, margin=1.0),
        bases.Fourier(5, 0, 1, period=3),
    ],
)
def test_a_description_makes_the_basis_again(basis):
    again = bases.build(json.loads(json.dumps(basis.describe())))
    x = points(50, -0.5, 1.5)
    assert type(again) is type(basis) and torch.equal(again(x), basis(x)) and again.describe() == basis.describe()
    single = again.float()(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), basis(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: bases.make("wavelets", 5, 0, 1),
            "unknown basis 'wavelets': use one of bsplines, rbf, legendre, fourier",
        ),
        (lambda: bases.make("rbf", 1, 0, 1), "1 functions: a basis of rbf needs at least 2"),
        (lambda: bases.make("legendre", 0, 0, 1), "0 functions"),
        (lambda: bases.make("legendre", 3, 1, 1), "a constant column"),
        (lambda: bases.make("legendre", 3, math.nan, 1), "a constant column, or NaN"),
        (
            lambda: bases.make("legendre", 3, 0, 1, outside="wrap"),
            "unknown continuation 'wrap': use one of linear, clamp",
        ),
        (lambda: bases.make("legendre", 3, 0, 1, margin=-1.0), "margin is -1"),
        (lambda: bases.make("bsplines", 3, 0, 1), "degree 3 with 3 B-splines: the degree must be in 1 to 2"),
        (lambda: bases.BSplines(5, 0, 1, 3, [0, 0.5, 0.4, 1]), "need 3 ascending breaks"),
        (lambda: bases.make("rbf", 3, 0, 1, length=0.0), "the length scale is 0"),
        (lambda: bases.make("fourier", 3, 0, 1, period=0.5), "give at least 1; try 2"),
    ],
)
def test_mistakes_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
