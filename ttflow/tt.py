"""Functional tensor trains: f_k(z) = sum over the bonds of G_1(z_1) G_2(z_2) ... G_D(z_D), one factor per variable.

G_p(z) = sum_j basis_p,j(z) core_p[:, j] is a matrix of r_(p-1) x r_p numbers, r_0 = r_D = 1. In a train for a
vector-valued function one of the cores, at the position ``output``, has an index for the outputs too, so all outputs
share the functions of the variables to the left and to the right of it. Every core is stored as (r_(p-1), n_p, o_p,
r_p), o_p = 1 but for that one. ``order`` says which variable has which position.

An evaluation costs N n r^2 products per variable; it is done in the dtype of the cores.

Source: Oseledets 2011 (SIAM J. Sci. Comput. 33); Dolgov, Khoromskij, Oseledets and Savostyanov 1306.2269 (block).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttflow.bases import Basis, build, evaluate


class FunctionalTT(nn.Module):
    """A function of D variables with o outputs. ``train(x)`` with x of shape (N, D) gives (N, o).

    Args:
        bases: For each position, the basis of its variable.
        cores: For each position (r_left, n, o or 1, r_right).
        order: The variable of each position; None: 0, 1, ..., D - 1.
        output: The position of the core with the outputs.

    Raises:
        ValueError: shapes that do not fit, or order no permutation.
    """

    def __init__(
        self, bases: Sequence[Basis], cores: Sequence[Tensor], order: Sequence[int] | None = None, output: int = 0
    ) -> None:
        super().__init__()
        self.bases: Any = nn.ModuleList(bases)
        self.order = list(range(len(bases)) if order is None else order)
        self.output = output
        if not bases or sorted(self.order) != list(range(len(bases))):
            raise ValueError(f"order is {self.order}: give each of 0 to {len(bases) - 1} once")
        _check_cores(bases, cores, output)
        for p, core in enumerate(cores):
            self.register_buffer(f"core{p}", core)

    # ---- what it is

    @property
    def cores(self) -> list[Tensor]:
        """The cores by position."""
        return [self.get_buffer(f"core{p}") for p in range(len(self.order))]

    @property
    def ranks(self) -> list[int]:
        """r_1, ..., r_(D-1)."""
        return [core.shape[3] for core in self.cores[:-1]]

    @property
    def outputs(self) -> int:
        """o."""
        return self.cores[self.output].shape[2]

    @property
    def n_parameters(self) -> int:
        """Numbers in the cores."""
        return sum(core.numel() for core in self.cores)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives for ``common.checkpoint.save``; see :meth:`from_state`."""
        bases = [basis.describe() for basis in self.bases]
        return {"bases": bases, "cores": self.cores, "order": self.order, "output": self.output}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> FunctionalTT:
        """The train of a :meth:`state`; the cores are copied, since they may be mapped from a file."""
        sizes = [tuple(core.shape[1:2]) for core in state["cores"]]
        if sizes != [(description["n"],) for description in state["bases"]]:  # before tables of any n are made
            raise ValueError("its cores do not fit their bases")
        bases = [build(description) for description in state["bases"]]
        train = cls(bases, [core.clone() for core in state["cores"]], state["order"], state["output"])
        return train.to(state["cores"][0].dtype)

    # ---- evaluation

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) -> (N, o), in the dtype of the cores."""
        return self.at(self._columns(x))

    def at(self, variables: Sequence[Tensor]) -> Tensor:
        """(N, o) from one tensor per variable, (N,) or (1,): a variable that is equal for all rows is cheaper so."""
        parts, output = list(zip(self.bases, self._by_position(variables), self.cores)), self.output
        for p in reversed(range(len(parts))):
            if len(parts[p][1]) == 1 < len(parts):
                parts, output = _absorbed(parts, output, p)
        values = evaluate([basis for basis, _, _ in parts], [x for _, x, _ in parts])
        factors = [contract(value, core) for value, (_, _, core) in zip(values, parts)]
        left = right = factors[0].new_ones(1, 1, 1)
        for factor in reversed(factors[output + 1 :] if output else factors):
            right = step(right, factor.mT)
        for factor in factors[: output + 1] if output else ():
            left = step(left, factor)
        return left[:, :, 0] * right[:, :, 0] if left.shape[2] == 1 else (left * right).sum(2)

    def factors(self, variables: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`factor` of all positions."""
        values = evaluate(self.bases, self._by_position(variables))
        return [contract(value, core) for value, core in zip(values, self.cores)]

    def factor(self, p: int, x: Tensor, derivative: bool = False) -> Tensor:
        """G_p(x) or its derivative, shape (N, o_p, r_left, r_right)."""
        basis = self.bases[p]
        core = self.get_buffer(f"core{p}")
        values = (basis.derivative if derivative else basis)(x.to(core.dtype))
        return contract(values, core)

    def value_and_diagonal(
        self, variables: Sequence[Tensor], pairs: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The outputs (N, o) and some partial derivatives, exactly: about three times the cost of the outputs.

        Args:
            variables: As in :meth:`at`.
            pairs: Pairs (variable, output); None: (0, 0), (1, 1), ..., (o - 1, o - 1), whose sum is the divergence.

        Returns:
            f (N, o), and df_output / dz_variable for each pair, (N, len(pairs)).
        """
        pairs = [(k, k) for k in range(self.outputs)] if pairs is None else pairs
        factors = self.factors(variables)
        lefts = [factors[0].new_ones(1, 1, 1)]
        rights = [lefts[0]]
        for factor in factors:
            lefts.append(step(lefts[-1], factor))
        for factor in reversed(factors):
            rights.append(step(rights[-1], factor.mT))
        columns = []
        for variable, k in pairs:
            p = self.order.index(variable)
            slope = self.factor(p, variables[variable], derivative=True)
            left, right = (_one(side, k) for side in (lefts[p], rights[len(factors) - 1 - p]))
            columns.append((step(left, _one(slope, k)) * right).sum((1, 2)))
        return lefts[-1][:, :, 0], torch.stack(columns, dim=1)

    def _by_position(self, variables: Sequence[Tensor]) -> list[Tensor]:
        """The variables in the order of the cores and in their dtype."""
        return [variables[k].to(core.dtype) for k, core in zip(self.order, self.cores)]

    def _columns(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.ndim != 2 or x.shape[1] != len(self.order):
            raise ValueError(f"the train has {len(self.order)} variables, x has shape {tuple(x.shape)}: need (N, D)")
        return x.unbind(1)


class SeparateTT(nn.Module):
    """One train for each output, with the interface of one train for all."""

    def __init__(self, trains: Sequence[FunctionalTT]) -> None:
        super().__init__()
        self.trains: Any = nn.ModuleList(trains)

    @property
    def _all(self) -> list[FunctionalTT]:
        return list(self.trains)

    @property
    def ranks(self) -> list[list[int]]:
        """Those of each train."""
        return [train.ranks for train in self._all]

    @property
    def outputs(self) -> int:
        """Number of trains."""
        return len(self.trains)

    @property
    def n_parameters(self) -> int:
        """Numbers in the cores."""
        return sum(train.n_parameters for train in self._all)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives; see :func:`from_state`."""
        return {"trains": [train.state() for train in self._all]}

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) -> (N, o)."""
        return torch.cat([train(x) for train in self._all], dim=1)

    def at(self, variables: Sequence[Tensor]) -> Tensor:
        """See :meth:`FunctionalTT.at`."""
        return torch.cat([train.at(variables) for train in self._all], dim=1)

    def value_and_diagonal(self, variables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :meth:`FunctionalTT.value_and_diagonal`."""
        parts = [train.value_and_diagonal(variables, [(k, 0)]) for k, train in enumerate(self._all)]
        values, slopes = zip(*parts, strict=True)
        return torch.cat(values, dim=1), torch.cat(slopes, dim=1)


Train = FunctionalTT | SeparateTT


def from_state(state: dict[str, Any]) -> Train:
    """A train, or separate trains, from the output of their ``state``."""
    if "trains" in state:
        return SeparateTT([FunctionalTT.from_state(part) for part in state["trains"]])
    return FunctionalTT.from_state(state)


# ------------------------------------------------------------------------------------------------------- construction
def random_train(
    bases: Sequence[Basis],
    rank: int | Sequence[int],
    outputs: int,
    generator: torch.Generator,
    order: Sequence[int] | None = None,
    output: int = 0,
) -> FunctionalTT:
    """A train with random cores in float64, a start for the fit: in each variable a constant and some noise.

    The constants matter: a function that does not depend on a variable is nearly orthogonal to noise in it, and
    alternating least squares leaves such a start only slowly.

    Args:
        bases: For each position.
        rank: Of all bonds, or of each; lowered where the neighbours do not admit as much.
        outputs: o.
        generator: On the CPU.
        order, output: As for :class:`FunctionalTT`.

    Raises:
        ValueError: a rank below 1, or as many ranks as do not fit.
    """
    sizes = [basis.n * (outputs if p == output else 1) for p, basis in enumerate(bases)]
    bonds = [1, *feasible_ranks(sizes, rank), 1]
    cores = []
    for p, basis in enumerate(bases):
        shape = (bonds[p], basis.n, outputs if p == output else 1, bonds[p + 1])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(basis.n)
        size = torch.randn((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
        cores.append((constant(basis)[:, None, None] * size + noise) / math.sqrt(bonds[p]))
    return FunctionalTT(bases, cores, order, output)


def constant(basis: Basis) -> Tensor:
    """Coefficients (n,) of the function of a basis that is nearest to 1 on the box."""
    x = torch.linspace(basis.low, basis.high, 10 * basis.n, dtype=torch.float64)
    return torch.linalg.lstsq(basis(x), torch.ones_like(x)[:, None], driver="gelsd").solution[:, 0]


def feasible_ranks(sizes: Sequence[int], rank: int | Sequence[int]) -> list[int]:
    """Ranks of the D - 1 bonds, none larger than the product of the sizes on either side of it."""
    ranks = [rank] * (len(sizes) - 1) if isinstance(rank, int) else list(rank)
    if len(ranks) != len(sizes) - 1 or any(r < 1 for r in ranks):
        raise ValueError(f"ranks {ranks} for {len(sizes)} variables: give {len(sizes) - 1} numbers of at least 1")
    for bonds, n in ((range(len(ranks)), sizes), (range(len(ranks) - 1, -1, -1), sizes[1:])):
        most = 1
        for p in bonds:
            most = ranks[p] = min(ranks[p], most * n[p])
    return ranks


def _check_cores(bases: Sequence[Basis], cores: Sequence[Tensor], output: int) -> None:
    """Raises ValueError unless the cores form a train on these bases."""
    shapes = [tuple(core.shape) for core in cores]
    fits = len(shapes) == len(bases) and 0 <= output < len(bases) and all(len(shape) == 4 for shape in shapes)
    fits = fits and shapes[0][0] == shapes[-1][3] == 1
    fits = fits and all(a[3] == b[0] for a, b in zip(shapes, shapes[1:]))
    fits = fits and all(
        s[1] == basis.n and (s[2] == 1 or p == output) for p, (s, basis) in enumerate(zip(shapes, bases))
    )
    if not fits:
        sizes = [basis.n for basis in bases]
        raise ValueError(f"cores {shapes} do not form a train on bases of {sizes} functions, outputs at {output}")


# --------------------------------------------------------------------------------------------------------- contraction
def _absorbed(
    parts: list[tuple[Any, Tensor, Tensor]], output: int, p: int
) -> tuple[list[tuple[Any, Tensor, Tensor]], int]:
    """Positions (basis, points, core) without p, whose one point all rows share, and the position of the outputs.

    Its matrices go into the core on the left, or if it is the first on the right: less work for each row.
    """
    basis, point, core = parts[p]
    o, a, b = (matrices := contract(basis(point), core)[0]).shape
    q = p - 1 if p else 1
    near, points, other = parts[q]
    if p:
        product = (other.flatten(0, 2) @ matrices.transpose(0, 1).reshape(a, o * b)).view(*other.shape[:2], -1, b)
    else:
        product = (matrices[:, 0] @ other.flatten(1)).view(o, *other.shape[1:]).transpose(0, 1).flatten(1, 2)[None]
    rest = [(near, points, product) if k == q else part for k, part in enumerate(parts) if k != p]
    output = q if output == p else output
    return rest, output - (output > p)


def contract(values: Tensor, core: Tensor) -> Tensor:
    """sum_j values[n, j] core[a, j, o, b] as (N, o, a, b)."""
    a, m, o, b = core.shape
    return (core.permute(2, 0, 3, 1).reshape(o * a * b, m) @ values.T).view(o, a, b, -1).permute(3, 0, 1, 2)


def step(left: Tensor, factor: Tensor) -> Tensor:
    """(N, o, a) times (N, o, a, b) -> (N, o, b); an o or N of 1 is repeated.

    Term by term: with the rows as the fast index of both, each term is one pass over contiguous numbers.
    """
    if len(factor) == 1 and left.shape[1] == 1:  # the same matrices for all rows
        o, a, b = factor.shape[1:]
        return (factor[0].permute(0, 2, 1).reshape(o * b, a) @ left[:, 0].T).view(o, b, -1).permute(2, 0, 1)
    total = left[:, :, 0, None] * factor[:, :, 0]
    for a in range(1, left.shape[2]):
        total = torch.addcmul(total, left[:, :, a, None], factor[:, :, a])
    return total


def _one(part: Tensor, k: int) -> Tensor:
    """Output k of a part of a train, (N, 1, ...); a part without outputs belongs to all."""
    return part if part.shape[1] == 1 else part[:, k : k + 1]
