"""Univariate bases of functional tensor trains: B-splines, Gaussians, Legendre polynomials, Fourier series.

A basis has ``n`` functions on a box [low, high]. ``basis(x)`` and ``basis.derivative(x)`` are (N, n). ``local`` gives
the same without the zeros: every point has at most ``width`` functions that are not 0, with successive numbers. For
B-splines that is degree + 1, for the others all n; the fit of a train costs as much as width^2, so this is what makes
B-splines fast.

Outside the box a basis goes on with the value at the edge ("clamp"), or as a straight line for a part of the box's
length and with a constant value after that ("linear"). So a train is bounded everywhere, and a sampler cannot explode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

OUTSIDE = ("linear", "clamp")


class Basis(nn.Module):
    """n functions on [low, high]; subclasses give them inside the box.

    Args:
        n: Number of functions.
        low, high: The box.
        outside: One of OUTSIDE; see the module.
        margin: Length of the straight continuation, in lengths of the box.

    Raises:
        ValueError: an empty box, n too small, or an unknown continuation.
    """

    kind = ""
    least = 1

    def __init__(self, n: int, low: float, high: float, outside: str = "linear", margin: float = 0.25) -> None:
        super().__init__()
        if n < self.least:
            raise ValueError(f"{n} functions: a basis of {self.kind} needs at least {self.least}; try 20")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"the box of a basis is [{low:g}, {high:g}]: a constant column, or NaN, cannot be fitted")
        if outside not in OUTSIDE:
            raise ValueError(f"unknown continuation {outside!r}: use one of {', '.join(OUTSIDE)}")
        if not margin >= 0:
            raise ValueError(f"margin is {margin:g}: give 0 or more; try 0.25")
        self.n, self.low, self.high, self.outside, self.margin = n, float(low), float(high), outside, float(margin)
        self._tables: dict[str, Tensor] = {}  # in float64, whatever the dtype of the module is
        self._casts: dict[tuple, Tensor] = {}

    @property
    def width(self) -> int:
        """How many functions may differ from 0 at a point."""
        return self.n

    def describe(self) -> dict[str, Any]:
        """Primitives from which :func:`build` makes the basis again."""
        own = {"kind": self.kind, "n": self.n, "low": self.low, "high": self.high}
        return own | {"outside": self.outside, "margin": self.margin}

    def inside(self, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """First number (N,) and values (N, width) of the functions (order 0) or their derivatives (1) in the box."""
        raise NotImplementedError

    def local(self, x: Tensor, order: int = 0) -> tuple[Tensor, Tensor]:
        """The functions start, ..., start + width - 1 at each x, the only ones that may differ from 0.

        Args:
            x: Points, shape (N,); NaN gives NaN.
            order: 0: values; 1: derivatives.

        Returns:
            start (N,) int64, and values (N, width) in the dtype of x.
        """
        at = x.clamp(self.low, self.high)
        start, values = self.inside(at, order)
        reach = self.margin * (self.high - self.low) if self.outside == "linear" else 0.0
        if order == 1:
            return start, values * ((x - at).abs() <= reach)[:, None]
        if reach:
            values = torch.addcmul(values, (x - at).clamp(-reach, reach)[:, None], self.inside(at, 1)[1])
        return start, values

    def table(self, name: str, x: Tensor) -> Tensor:
        """A table of numbers in the dtype and on the device of x."""
        key = name, x.dtype, x.device
        if key not in self._casts:
            self._casts[key] = self._tables[name].to(x)
        return self._casts[key]

    def spread(self, start: Tensor, values: Tensor) -> Tensor:
        """(N, n) with zeros from the output of :meth:`local`, its values turned: (width, N)."""
        if self.width == self.n:
            return values.T
        rows = start + torch.arange(self.width, device=start.device)[:, None]
        return values.new_zeros(self.n, len(start)).scatter_(0, rows, values).T  # the points are the fast index

    def forward(self, x: Tensor) -> Tensor:
        """All functions at x (N,): shape (N, n)."""
        start, values = self.local(x)
        return self.spread(start, values.T)

    def derivative(self, x: Tensor) -> Tensor:
        """Derivatives of all functions at x (N,): shape (N, n)."""
        start, values = self.local(x, 1)
        return self.spread(start, values.T)

    def _all(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.new_zeros(len(values), dtype=torch.int64), values


class BSplines(Basis):
    """B-splines of a degree on n - degree intervals; at the ends all knots coincide, so their sum is 1 everywhere.

    Each interval has the polynomials of its degree + 1 splines in a table, so a value is a look-up and Horner's rule.

    Args:
        degree: 3: twice continuously differentiable.
        breaks: Ends of the intervals, ascending from low to high; None: equal lengths.
    """

    kind = "bsplines"

    def __init__(
        self, n: int, low: float, high: float, degree: int = 3, breaks: Sequence[float] | None = None, **outside: Any
    ) -> None:
        super().__init__(n, low, high, **outside)
        if not 1 <= degree < n:
            raise ValueError(f"degree {degree} with {n} B-splines: the degree must be in 1 to {n - 1}; try 3")
        self.degree, self.breaks = degree, None if breaks is None else [float(b) for b in breaks]
        nodes = self.breaks or [*(low + (high - low) * i / (n - degree) for i in range(n - degree)), high]
        ascending = all(a < b for a, b in pairwise(nodes))
        if not (ascending and len(nodes) == n - degree + 1 and nodes[0] == low and nodes[-1] == high):
            raise ValueError(
                f"{n} B-splines of degree {degree} need {n - degree + 1} ascending breaks from low to high"
            )
        nodes = torch.tensor(nodes, dtype=torch.float64)
        table = _pieces(nodes, degree)
        powers = torch.arange(1, degree + 1, dtype=torch.float64)[None, :, None]
        table = _with_ends(table, self.outside == "linear")
        table1 = table[:, 1:] * powers
        table1[1:-1] /= nodes.diff()[:, None, None]
        table1[0] /= nodes[1] - nodes[0]
        table1[-1] /= nodes[-1] - nodes[-2]
        ends = torch.stack([nodes[:-1], 1 / nodes.diff()], dim=1)
        self._tables = {"nodes": nodes, "ends": ends} | {
            str(order): pieces.flatten(1).T.contiguous() for order, pieces in enumerate((table, table1))
        }

    @property
    def width(self) -> int:
        """degree + 1."""
        return self.degree + 1

    def describe(self) -> dict[str, Any]:
        """Primitives from which :func:`build` makes the basis again."""
        return super().describe() | {"degree": self.degree, "breaks": self.breaks}

    def local(self, x: Tensor, order: int = 0) -> tuple[Tensor, Tensor]:
        """The degree + 1 splines of each point's interval; the straight continuations are pieces of the table too."""
        if self.breaks is None:
            start, values = self.at_places((x - self.low) * self.rate, order)
            return start, values.T
        reach, last = self._reach / self.rate, self.n - self.degree - 1
        at = x.clamp(self.low - reach, self.high + reach)
        piece = torch.bucketize(at, self.table("nodes", x), right=True) - 1
        ends = self.table("ends", x)[piece.clamp(0, last)]
        start, values = self._of_pieces(piece, (at - ends[:, 0]) * ends[:, 1], order)
        return start, (values * (x == at) if order else values).T

    def at_places(self, places: Tensor, order: int = 0) -> tuple[Tensor, Tensor]:
        """First number (N,) and values (width, N) of the splines at (x - low) rate, for intervals of equal lengths."""
        at = places.clamp(-self._reach, self.n - self.degree + self._reach)
        piece = at.floor().to(torch.int64)
        start, values = self._of_pieces(piece, at - piece.clamp(0, self.n - self.degree - 1), order)
        return start, values * (places == at) if order else values

    @property
    def rate(self) -> float:
        """Intervals per unit of x."""
        return (self.n - self.degree) / (self.high - self.low)

    @property
    def alike(self) -> tuple[Any, ...] | None:
        """Equal for bases that :meth:`at_places` makes equal, whatever their boxes; None: unequal intervals."""
        return None if self.breaks is not None else (self.n, self.degree, self.outside, self.margin)

    @property
    def _reach(self) -> float:
        """Length of the straight continuation, in mean intervals."""
        return self.margin * (self.n - self.degree) if self.outside == "linear" else 0.0

    def _of_pieces(self, piece: Tensor, u: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """First number and values (width, N) of the splines, u from the beginning of an interval."""
        last = self.n - self.degree - 1
        pieces = piece.clamp(-1, last + 1) + 1  # NaN becomes some number
        coefficients = self.table(str(order), u).index_select(1, pieces)
        values, *lower = reversed(coefficients.split(self.width))  # by power, (width, N)
        for more in lower:
            values = torch.addcmul(more, values, u)
        return piece.clamp_(0, last), values


def _with_ends(table: Tensor, linear: bool) -> Tensor:
    """The pieces with one more on either side: the tangent at the end, or the value there, in the same u."""
    more = torch.zeros_like(table[:2])
    at, powers = torch.tensor([0.0, 1.0], dtype=table.dtype)[:, None], torch.arange(table.shape[1], dtype=table.dtype)
    ends = table[[0, -1]]
    slopes = ((powers * at ** (powers - 1).clamp(min=0))[:, :, None] * ends).sum(1) * linear
    more[:, 0] = (at[:, :, None] ** powers[:, None] * ends).sum(1) - slopes * at
    more[:, 1] = slopes
    return torch.cat([more[:1], table, more[1:]])


def _pieces(nodes: Tensor, degree: int) -> Tensor:
    """Coefficients (interval, power, spline) of the splines in u = (x - left end) / length, by de Boor's recursion."""
    first, last = nodes[:1].expand(degree), nodes[-1:].expand(degree)
    knots = torch.cat([first, nodes, last]).tolist()
    table = torch.zeros(len(nodes) - 1, degree + 1, degree + 1, dtype=torch.float64)
    for i, (a, b) in enumerate(pairwise(nodes.tolist())):
        splines = [[1.0]]  # of degree 0 on this interval, then of degree p: those that begin at knots k - p, ..., k
        k = i + degree
        for p in range(1, degree + 1):
            up = [[0.0] * (p + 1) for _ in range(p + 1)]
            for j, lower in enumerate(splines):
                left, right = knots[k - p + 1 + j], knots[k + 1 + j]
                rise = [(a - left) / (right - left), (b - a) / (right - left)]  # (x - left) / (right - left) in u
                for power, c in enumerate(lower):
                    up[j + 1][power] += c * rise[0]
                    up[j + 1][power + 1] += c * rise[1]
                    up[j][power] += c * (1 - rise[0])
                    up[j][power + 1] -= c * rise[1]
            splines = up
        table[i] = torch.tensor(splines, dtype=torch.float64).T
    return table


class Gaussians(Basis):
    """exp(-(x - c)^2 / (2 length^2)) with equidistant centres c from low to high: radial basis functions.

    Args:
        length: In units of x; None: the distance of two centres.
    """

    kind = "rbf"
    least = 2

    def __init__(self, n: int, low: float, high: float, length: float | None = None, **outside: Any) -> None:
        super().__init__(n, low, high, **outside)
        self.length = (high - low) / (n - 1) if length is None else float(length)
        if not self.length > 0:
            raise ValueError(f"the length scale is {self.length:g}: it must be positive; leave it out for the default")
        self._tables = {"centres": torch.linspace(low, high, n, dtype=torch.float64)}

    def describe(self) -> dict[str, Any]:
        """Primitives from which :func:`build` makes the basis again."""
        return super().describe() | {"length": self.length}

    def inside(self, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """All n."""
        z = (x[:, None] - self.table("centres", x)) / self.length
        values = torch.exp(z.square() / -2)
        return self._all(-z / self.length * values if order else values)


class Legendre(Basis):
    """Legendre polynomials of degree 0 to n - 1, orthonormal for the uniform measure on the box."""

    kind = "legendre"

    def __init__(self, n: int, low: float, high: float, **outside: Any) -> None:
        super().__init__(n, low, high, **outside)
        self._tables = {"norm": (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()}

    def inside(self, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """All n, by the three-term recursions of P_k and of its derivative."""
        slope = 2 / (self.high - self.low)
        if one := x.numel() == 1 and x.device.type == "cpu" and not x.requires_grad:  # a time that all rows share
            u: Any = (x.item() - self.low) * slope - 1
            values, slopes = [1.0, u], [0.0, 1.0]
        else:
            u = (x - self.low) * slope - 1
            values, slopes = [torch.ones_like(u), u], [torch.zeros_like(u), torch.ones_like(u)]
        for k in range(1, self.n - 1):
            values.append(((2 * k + 1) * u * values[k] - k * values[k - 1]) / (k + 1))
            if order:
                slopes.append(slopes[k - 1] + (2 * k + 1) * values[k])
        functions = (slopes if order else values)[: self.n]
        columns = x.new_tensor([functions]) if one else torch.stack(functions, dim=1)
        return self._all(columns * (self.table("norm", x) * slope if order else self.table("norm", x)))


class Fourier(Basis):
    """1, sqrt(2) cos, sqrt(2) sin, ... of the frequencies 1, 2, ..., (n - 1) / 2 per period.

    Args:
        period: In lengths of the box. 1: periodic functions; 2: also others, without a jump where the box ends.
    """

    kind = "fourier"

    def __init__(self, n: int, low: float, high: float, period: float = 2.0, **outside: Any) -> None:
        super().__init__(n, low, high, **outside)
        if not period >= 1:
            raise ValueError(f"the period is {period:g} lengths of the box: give at least 1; try 2")
        self.period = float(period)

    def describe(self) -> dict[str, Any]:
        """Primitives from which :func:`build` makes the basis again."""
        return super().describe() | {"period": self.period}

    def inside(self, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """All n."""
        k = torch.arange(self.n, dtype=x.dtype, device=x.device)
        frequency = torch.ceil(k / 2) * (2 * math.pi / (self.period * (self.high - self.low)))
        shift = (1 - k % 2).mul_(-math.pi / 2).where(k > 0, torch.zeros_like(k))  # odd numbers are cosines
        angle = (x[:, None] - self.low) * frequency + shift
        size = torch.where(k > 0, k.new_tensor(2.0).sqrt(), k.new_ones(()))
        return self._all(-size * frequency * torch.sin(angle) if order else size * torch.cos(angle))


def evaluate(bases: Sequence[Basis], columns: Sequence[Tensor]) -> list[Tensor]:
    """The functions of each basis at its points (N,): (N, n) each. Splines that are alike are looked up together."""
    values: list[Any] = [None] * len(bases)
    groups: dict[Any, list[int]] = {}
    for k, (basis, x) in enumerate(zip(bases, columns)):
        if isinstance(basis, BSplines) and basis.alike:
            groups.setdefault((basis.alike, x.shape), []).append(k)
        else:
            values[k] = basis(x)
    for members in groups.values():
        splines: list[Any] = [bases[k] for k in members]
        places = torch.cat([(columns[k] - b.low) * b.rate for k, b in zip(members, splines)])
        together = splines[0].spread(*splines[0].at_places(places))
        for k, part in zip(members, together.split(len(columns[members[0]]))):
            values[k] = part
    return values


KINDS: dict[str, type[Basis]] = {basis.kind: basis for basis in (BSplines, Gaussians, Legendre, Fourier)}


def make(kind: str, n: int, low: float, high: float, **options: Any) -> Basis:
    """A basis by its name: ``make("bsplines", 20, -3, 3)``.

    Raises:
        ValueError: unknown kind, or what the basis itself refuses.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown basis {kind!r}: use one of {', '.join(KINDS)}")
    return KINDS[kind](n, low, high, **options)


def build(description: dict[str, Any]) -> Basis:
    """The basis of a description; see :meth:`Basis.describe`."""
    return make(**description)


def gram(basis: Basis, x: Tensor, uniform: float = 0.0, smooth: float = 0.0, block: int = 65536) -> Tensor:
    """Gram matrix (n, n), float64, of a measure that mixes the points with the uniform measure on the box.

    Functions that are normalised for the points alone may be huge where there are hardly any.

    Args:
        basis: n functions.
        x: Points, shape (N,).
        uniform: Part of the uniform measure, in [0, 1].
        smooth: Factor of the products of the derivatives, in lengths of the box, for the uniform measure (the inner
            product of a Sobolev space): it makes rough functions large, so that a ridge damps them.
        block: Points evaluated at a time.
    """
    total = torch.zeros(basis.n, basis.n, dtype=torch.float64, device=x.device)
    for part in x.split(block):
        values = basis(part.to(torch.float64))
        total.addmm_(values.T, values)
    places = (torch.arange(40 * basis.n, dtype=torch.float64, device=x.device) + 0.5) / (40 * basis.n)
    places = basis.low + (basis.high - basis.low) * places
    values, slopes = basis(places), basis.derivative(places) * (basis.high - basis.low)
    even = (uniform * values.T @ values + smooth * slopes.T @ slopes) / len(places)
    return (1 - uniform) * total / len(x) + even


def orthonormal(gram: Tensor, tol: float = 1e-10) -> tuple[Tensor, Tensor]:
    """The change to functions that are orthonormal in the measure of a Gram matrix.

    Of the functions scaled to norm 1, combinations whose squared norm is below tol times the largest are left out: the
    data do not determine them. So the new basis may be smaller, and the change is never larger than tol^(-1/2).

    Args:
        gram: (n, n); see :func:`gram`.
        tol: See above.

    Returns:
        change (n, k): basis(x) @ change is orthonormal; back (k, n): coefficients of the given basis to those of the
        new one. back @ change is the identity.
    """
    scale = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    values, vectors = torch.linalg.eigh(scale[:, None] * gram * scale)
    large = values > tol * values[-1]
    change = scale[:, None] * vectors[:, large] / values[large].sqrt()
    return change, change.T @ gram
