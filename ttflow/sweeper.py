"""The steps of alternating least squares: solve a core, pass its weight on, let the rank between two cores adapt.

All cores but the one being solved are orthonormal in the empirical measure of the inputs: the bases by a change of
basis, the cores by a singular value decomposition as the solved core moves on. So the matrix of a local problem is
near the identity, a ridge is a ridge on the norm of the function, and the singular values at a bond are the sizes of
the parts of the function that this bond carries.

Source: Holtz, Rohwedder and Schneider 2012 (SIAM J. Sci. Comput. 34) for ALS; Dolgov and Savostyanov 1301.6068 for the
enrichment by the residual; Bai and Yin 1988 for the singular values of noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttflow.bases import gram, orthonormal
from ttflow.normal import CACHE, ROWS, Blocks, normal_equations, solve
from ttflow.tt import FunctionalTT, contract, feasible_ranks, step

if TYPE_CHECKING:
    from torch import Tensor

    from ttflow.normal import Block

SINGLE = 1e-5  # the least ridge beside which errors of 1e-7 in the normal equations do not count
DISCARD = 1e-14  # of the squared norm at a bond: what ranks that adapt do without


@dataclass(frozen=True)
class Adapt:
    """Ranks that adapt: they grow along the residual's gradient and shrink by the singular values, both by the noise.

    Attributes:
        max_rank: Largest rank of all bonds, or of each; the least is 1.
        budget: Largest number of parameters.
        growth: Ranks that a step adds at a bond, at most.
    """

    max_rank: int | Sequence[int] = 20
    budget: float = math.inf
    growth: int = 2


@dataclass(frozen=True)
class Sweeps:
    """How a train is fitted.

    Attributes:
        n_sweeps: Sweeps at most; one way each.
        ridge: Added to the matrix of the normalised local problem, whose diagonal is about 1.
        moves: The outputs move along with the solved core; False: they stay at their position.
        adapt: How ranks adapt; None: those of the train stay.
        uniform, smooth: The measure in which functions are normalised for the ridge; see ``bases.gram``.
        tolerance: A relative improvement of the error that counts.
        patience: Sweeps without such an improvement before it stops.
        cache: Bytes of interfaces that are kept from core to core; see :func:`fit`.

    Raises:
        ValueError: no sweep, or a ridge below 0.
    """

    n_sweeps: int = 12
    ridge: float = 1e-6
    moves: bool = True
    adapt: Adapt | None = None
    uniform: float = 0.1
    smooth: float = 0.0
    tolerance: float = 1e-3
    patience: int = 3
    cache: int = CACHE

    def __post_init__(self) -> None:
        if self.n_sweeps < 1:
            raise ValueError(f"{self.n_sweeps} sweeps: give at least 1; try 12")
        if not self.ridge >= 0:
            raise ValueError(f"the ridge is {self.ridge:g}: give 0 or more; try 1e-6")


class Sweeper:
    """The cores in orthonormal bases and the steps of a sweep. At the start position 0 is the one to solve.

    Args:
        train: The start; it is not changed.
        inputs: (N, D): their measure makes the bases orthonormal.
        sweeps: How the cores are solved and the ranks chosen.
    """

    def __init__(self, train: FunctionalTT, inputs: Tensor, sweeps: Sweeps) -> None:
        self.train, self.ridge, self.moves, self.adapt = train, sweeps.ridge, sweeps.moves, sweeps.adapt
        sizes = [basis.n * train.outputs for basis in train.bases]
        self.max_ranks = feasible_ranks(sizes, self.adapt.max_rank if self.adapt else train.ranks)
        self.bases = list(train.bases)
        grams = [gram(self.bases[p], inputs[:, k], sweeps.uniform, sweeps.smooth) for p, k in enumerate(train.order)]
        self.change, back = zip(*(orthonormal(g) for g in grams))
        self.cores = [_along(core.to(change), change) for core, change in zip(train.cores, back)]
        self.output, self.variance, self.n_rows = train.output, 0.0, 1
        for p in range(len(self.cores) - 1, 0, -1):
            self.move(p, p - 1, None)

    def raw(self) -> list[Tensor]:
        """The cores in the given bases."""
        return [_along(core, change) for core, change in zip(self.cores, self.change)]

    def result(self) -> FunctionalTT:
        """The train as it is now, float64."""
        return FunctionalTT(self.bases, self.raw(), self.train.order, self.output)

    # ---- steps

    def solve(self, p: int, blocks: Blocks) -> float:
        """Put the best core at p for the others as they are; returns the mean squared error, summed over outputs."""
        a, k, o, b = self.cores[p].shape
        # f = phi core with phi = left (x) basis (x) right, which the other cores fix: E[phi phi^T] core = E[phi y]
        matrix, rhs, square, n = normal_equations(blocks, self.raw(), p, self.ridge >= SINGLE)
        matrix, rhs = _in_new_basis(matrix / n, rhs / n, self.change[p], (a, b))  # (a k b, a k b), (a k b, o)
        core = solve(matrix, rhs, self.ridge)
        error = max(square / n - (core * (2 * rhs - matrix @ core)).sum().item(), 0.0)  # E |y - phi core|^2
        self.cores[p] = core.view(a, k, b, o).permute(0, 1, 3, 2).contiguous()
        self.variance, self.n_rows = error / self.train.outputs, n
        blocks.forget(p)
        return error

    def error(self, p: int, blocks: Blocks) -> float:
        """Mean squared error, summed over outputs, from the residuals: where that of :meth:`solve` would round to 0."""
        values = ((block.y - self._value(p, block, self.raw())).square().sum().item() for block in blocks)
        return sum(values) / self.n_rows

    def _value(self, p: int, block: Block, cores: Sequence[Tensor]) -> Tensor:
        """The outputs at the rows of a block, by the interfaces at p."""
        left, right = (block.interface(p, cores, side) for side in (False, True))
        return (step(left, contract(block.basis(p), cores[p])) * right).sum(2)

    def move(self, p: int, q: int, blocks: Blocks | None, grow: bool = False) -> None:
        """Pass the weight from position p on to its neighbour q, and leave an orthonormal core at p.

        The core as a matrix is u s v: u stays, s v is multiplied into the neighbour. The singular values say what the
        bond carries, since all other cores are orthonormal.
        """
        core, following = _turned(self.cores[p], q < p), _turned(self.cores[q], q < p)  # as if q were to the right
        a, k, o, b = core.shape
        moving = o if self.moves else 1  # outputs that go along with the weight, the others stay
        staying = o // moving
        u, s, v = _svd(core.reshape(a * k * staying, moving * b))
        most = self._limit(p, q)
        rank = self._keep(s, (len(u), v.shape[1]), most)
        u, v = u[:, :rank], s[:rank, None] * v[:rank]
        if grow and blocks is not None and rank < min(most, len(u)):
            u, v = self._grown(p, q, blocks, u, v, most - rank)
        self.cores[p] = _turned(u.reshape(a, k, staying, len(v)), q < p).contiguous()
        weight = v.reshape(len(v) * moving, b) @ following.flatten(1)  # (r o, b) (b, k' o' b')
        weight = weight.view(len(v), moving, *following.shape[1:]).transpose(1, 2)  # (r, k', o, o', b')
        self.cores[q] = _turned(weight.flatten(2, 3), q < p).contiguous()
        self.output = q if moving > 1 else self.output
        if blocks is not None:
            blocks.forget(p, q)

    # ---- ranks

    def noise(self, shape: tuple[int, int]) -> float:
        """The largest singular value that noise alone gives to coefficients in a matrix n x m: s (n^.5 + m^.5) / N^.5.

        The coefficient of a normalised function has the variance s^2 / N, where s^2 is that of the residual.
        """
        return math.sqrt(self.variance / self.n_rows) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))

    def _keep(self, s: Tensor, shape: tuple[int, int], most: int) -> int:
        """How many singular values stay: at most ``most``; if ranks adapt those above the noise and DISCARD."""
        if self.adapt:
            left = s.square().flip(0).cumsum(0).flip(0)  # of the squared norm, if cut here
            most = min(most, int(((left > DISCARD * left[0]) & (s > self.noise(shape))).sum()))
        return max(1, min(most, len(s)))

    def _limit(self, p: int, q: int) -> int:
        """The largest rank between p and q: if ranks adapt ``growth`` more than now, and as the budget allows."""
        most = self.max_ranks[min(p, q)]
        if not self.adapt:
            return most
        side = 3 if q > p else 0
        now, more = self.cores[p].shape[side], self.adapt.growth
        if self.adapt.budget < math.inf:
            output = q if self.moves else self.output
            sizes = [basis.n * (self.train.outputs if i == output else 1) for i, basis in enumerate(self.bases)]
            total = sum(core.shape[0] * n * core.shape[3] for core, n in zip(self.cores, sizes))
            each = sizes[p] * self.cores[p].shape[3 - side] + sizes[q] * self.cores[q].shape[side]  # cost of a rank
            more = min(more, math.floor((self.adapt.budget - total) / each))
        return max(1, min(most, now + more))

    def _grown(self, p: int, q: int, blocks: Blocks, u: Tensor, v: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Adds to the orthonormal core u the directions along which the residual falls fastest, with the weight 0.

        They are left singular vectors of the gradient with respect to both cores at once; those in the noise do not
        count. The function stays as it is until the core at q is solved.
        """
        import torch

        slope, noise = self._gradient(p, q, blocks)
        slope = slope - u @ (u.T @ slope)  # what the core has already is fitted at q without growth
        directions, sizes, _ = _svd(slope)
        least = max(noise, 1e-13 * v.norm().item())
        more = directions[:, : min(room, int((sizes > least).sum()))]
        return torch.cat([u, more], dim=1), torch.cat([v, v.new_zeros(more.shape[1], v.shape[1])])

    def _gradient(self, p: int, q: int, blocks: Blocks) -> tuple[Tensor, float]:
        """The gradient (r k, r' k'), and the largest singular value that a residual of noise alone would give it.

        It is the mean of (interface (x) basis at p) (x) (interface (x) basis at q) (x) residual. The outputs are summed
        where an interface has them, else they belong to the rows if the core at p keeps them, or to the columns. The
        variance of an entry is that of the residual times the mean squares of its row and column functions, which are
        below 1 for functions that are normalised with their slopes.
        """
        cores, right = self.raw(), q > p
        total: Any = 0.0
        row_squares: Any = 0.0
        column_squares: Any = 0.0
        stay = not self.moves and self.output == p
        for block in blocks:
            residual = block.y - self._value(p, block, cores)
            sides = [
                block.interface(*at).expand(len(residual), -1, -1) for at in ((p, cores, not right), (q, cores, right))
            ]
            parts = [sides[0], block.basis(p) @ self.change[p], sides[1], block.basis(q) @ self.change[q], residual]
            for near, basis, far, far_basis, residual in zip(*(part.split(ROWS) for part in parts)):
                weights = [residual[:, None], None] if stay else [None, residual[:, None]]
                if max(near.shape[1], far.shape[1]) > 1:
                    weights = [None, None]
                    near, far = (_summed(side, residual) for side in (near, far))
                rows, columns = _outer(near[:, 0], basis, weights[0]), _outer(far[:, 0], far_basis, weights[1])
                total = total + rows.T @ columns
                row_squares = row_squares + rows.square().sum(0)
                column_squares = column_squares + columns.square().sum(0)
        a, b = row_squares / self.n_rows, column_squares / self.n_rows  # the residual is in one of them, squared
        edge = ((a.amax() * b.sum()).sqrt() + (b.amax() * a.sum()).sqrt()).item()
        return total / self.n_rows, edge / math.sqrt(self.n_rows)


def _summed(side: Tensor, residual: Tensor) -> Tensor:
    """An interface with outputs, summed over them with the residual as weight: (N, 1, r). One without stays."""
    return side if side.shape[1] == 1 else (side * residual[..., None]).sum(1, keepdim=True)


def _outer(x: Tensor, y: Tensor, z: Tensor | None) -> Tensor:
    """Row-wise products of all entries of x and y, and of z (N, 1, o) if there is one: (N, ...)."""
    both = (x[:, :, None] * y[:, None]).flatten(1)
    return both if z is None else (both[:, :, None] * z).flatten(1)


def _along(core: Tensor, matrix: Tensor) -> Tensor:
    """A core (a, m, o, b) with the matrix (k, m) applied to its basis: (a, k, o, b)."""
    return (matrix @ core.flatten(2)).view(core.shape[0], len(matrix), *core.shape[2:])


def _turned(core: Tensor, mirrored: bool) -> Tensor:
    """The core, seen from its right side if mirrored."""
    return core.permute(3, 1, 2, 0) if mirrored else core


def _in_new_basis(matrix: Tensor, rhs: Tensor, change: Tensor, bonds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Normal equations (a m b) of a basis, for the changed one: (a k b)."""
    (a, b), (m, k) = bonds, change.shape
    matrix = change.T @ matrix.view(a, m, b * a * m * b)
    matrix = change.T @ matrix.view(a * k * b * a, m, b)
    rhs = change.T @ rhs.view(a, m, -1)
    return matrix.view(a * k * b, a * k * b), rhs.view(a * k * b, -1)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition u, s, v of a matrix u diag(s) v."""
    import torch

    return torch.linalg.svd(matrix, full_matrices=False)
