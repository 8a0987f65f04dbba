"""The normal equations of a local problem of alternating least squares, and their solution.

The design row of a point is left (x) basis (x) right, so the matrix of the normal equations is a sum of left left^T (x)
basis basis^T (x) right right^T. Each factor is symmetric, so a half of it is enough; and where a basis is local, rows
are sorted by the interval of their point and only the functions of this interval take part. Sums are in float64, over
blocks of rows, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ttflow.tt import FunctionalTT, contract, step

if TYPE_CHECKING:
    from torch import Tensor

    Rows = tuple[Tensor, Tensor]  # inputs (N, D), targets (N, o)
    Data = Rows | Sequence[Rows]
    Draw = Callable[[int], Data]

ROWS = 1024  # of a design matrix at a time: what stays in a core's cache
CACHE = 1 << 30  # bytes of interfaces and bases that are kept between the cores of a sweep


# --------------------------------------------------------------------------------------------------------------- rows
class Block:
    """Some rows of data with what has been computed for them: bases and the interfaces of both sides, by position."""

    def __init__(self, train: FunctionalTT, rows: Rows) -> None:
        import torch

        inputs, self.y = rows[0].to(torch.float64), rows[1].to(torch.float64)
        self.x = [inputs[:, k].contiguous() for k in train.order]
        self.train = train
        self.values: dict[int, Tensor] = {}
        self.sorted: dict[tuple[int, Any], tuple] = {}
        one = self.y.new_ones(1, 1, 1)
        self.left, self.right = {0: one}, {len(self.x) - 1: one}

    def basis(self, p: int) -> Tensor:
        """All functions of position p, (N, n)."""
        if p not in self.values:
            self.values[p] = self.train.bases[p](self.x[p])
        return self.values[p]

    def groups(self, p: int, dtype: Any) -> Iterator[tuple[int, slice, Tensor, Any]]:
        """Runs of rows with the same functions: the first one, the run, its values (width, n), all row numbers."""
        if (p, dtype) not in self.sorted:
            basis = self.train.bases[p]
            start, values = basis.local(self.x[p])
            rows = start.argsort() if basis.width < basis.n else slice(None)
            ends = start.bincount(minlength=basis.n - basis.width + 1).cumsum(0).tolist()
            self.sorted[p, dtype] = (rows, values.T[:, rows].contiguous().to(dtype), ends)
        rows, values, ends = self.sorted[p, dtype]
        begin = 0
        for first, end in enumerate(ends):
            for at in range(begin, end, ROWS):
                run = slice(at, min(at + ROWS, end))
                yield first, run, values[:, run], rows
            begin = end

    def interface(self, p: int, cores: Sequence[Tensor], right: bool) -> Tensor:
        """The product of all factors before position p (or behind it), (N, o, r), from those computed before."""
        products, way = (self.right, 1) if right else (self.left, -1)
        start = p
        while start not in products:
            start += way
        for q in range(start, p, -way):
            factor = contract(self.basis(q), cores[q])
            products[q - way] = step(products[q], factor.mT if right else factor)
        return products[p]

    def forget(self, *changed: int) -> None:
        """Drop the interfaces that contain a changed core."""
        self.left = {p: v for p, v in self.left.items() if p <= min(changed)}
        self.right = {p: v for p, v in self.right.items() if p >= max(changed)}


class Blocks:
    """The rows of a sweep as blocks, kept with their interfaces if there is room, else made anew at every use."""

    def __init__(self, train: FunctionalTT, data: Data, cache: int = CACHE) -> None:
        self.data: Any = data
        if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "split"):
            check_rows(train, self.data)
            self.data = list(zip(*(part.split(8 * ROWS) for part in self.data)))
        self.train = train
        first = self.data[0]
        check_rows(train, first)
        numbers = sum(2 * b.n + 4 * b.width for b in train.bases) + 2 * sum(train.ranks) * train.outputs
        self.blocks = None
        if len(self.data) * len(first[0]) * numbers * 8 <= cache:
            self.blocks = [Block(train, rows) for rows in self.data]

    def __iter__(self) -> Iterator[Block]:
        if self.blocks is not None:
            return iter(self.blocks)
        return (Block(self.train, self.data[i]) for i in range(len(self.data)))

    def inputs(self) -> Tensor:
        """The inputs of the first block."""
        return self.data[0][0]

    def forget(self, *changed: int) -> None:
        """Drop the interfaces that contain a changed core."""
        for block in self.blocks or ():
            block.forget(*changed)


def check_rows(train: FunctionalTT, rows: Rows) -> None:
    """Raises ValueError for data that a train cannot be fitted to."""
    x, y = rows
    d = len(train.order)
    if x.ndim != 2 or x.shape[1] != d or y.shape != (len(x), train.outputs):
        want = f"({d} variables, {train.outputs} outputs)"
        raise ValueError(f"inputs {tuple(x.shape)} and targets {tuple(y.shape)} do not fit the train {want}")
    if len(x) < 2:
        raise ValueError(f"{len(x)} row(s) of data: a fit needs at least 2, and many times its parameters to be good")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("the data hold NaN or infinity: look at them, or drop these rows")


# ---------------------------------------------------------------------------------------------------- normal equations
def normal_equations(
    blocks: Blocks, cores: Sequence[Tensor], p: int, single: bool = False
) -> tuple[Tensor, Tensor, float, int]:
    """A^T A (K, K), A^T y (K, o_p), y^T y and N of the local problem at p, in the given bases; K = r n r'.

    Cost per row, for one train of rank r and a basis of width w: the products of three half matrices of r^2, w^2, r^2.

    Args:
        single: Products of up to ROWS rows in float32, their sums in float64: these products take half the time,
            entries are off by about 1e-7 of their size.
    """
    import torch

    dtype = torch.float32 if single else torch.float64
    a, m, o, b = cores[p].shape
    w = blocks.train.bases[p].width
    hw, ha, hb = (torch.tril_indices(n, n) for n in (w, a, b))
    # E[phi phi^T] has three symmetric factors: of each the lower half, and for each run of functions by itself
    halves = cores[p].new_zeros(m - int(w) + 1, hw.shape[1], ha.shape[1], hb.shape[1])
    rhs = cores[p].new_zeros(m, a * o * b)
    square, rows = 0.0, 0
    for block in blocks:
        square, rows = square + block.y.square().sum().item(), rows + len(block.y)
        n = len(block.y)
        sides = (block.interface(p, cores, right).to(dtype) for right in (False, True))
        left, right = (side.expand(n, -1, -1).permute(1, 2, 0) for side in sides)
        targets = block.y.T.to(dtype)
        for first, run, values, order in block.groups(p, dtype):
            ll, rr, y = (_columns(part, run, order) for part in (left, right, targets))
            rhs[first : first + len(values)] += values @ _weighted(ll, rr, y, o).flatten(0, -2).T
            squares = (_products(part, *half) for part, half in ((values[None], hw), (ll, ha), (rr, hb)))
            halves[first] += _triple(*squares)
    matrix = _unfold(halves, (int(m), a, b), int(w))
    return matrix, rhs.view(m, a, o, b).permute(1, 0, 3, 2).reshape(a * m * b, o), square, rows


def _columns(part: Tensor, run: slice, order: Any) -> Tensor:
    """A run of the ordered rows, which are the last index."""
    return part[..., run] if isinstance(order, slice) else part.index_select(-1, order[run])


def _products(part: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """sum_o part[o, i] part[o, j], (pairs, N)."""
    products = part.index_select(1, i).mul_(part.index_select(1, j))
    return products[0] if len(part) == 1 else products.sum(0)


def _weighted(left: Tensor, right: Tensor, y: Tensor, outputs: int) -> Tensor:
    """left (x) y (x) right, (a, o, b, N), summed over the outputs unless the core has them; left, right: (o, r, N)."""
    if outputs > 1:
        return left[0, :, None, None] * y[None, :, None] * right[0, None, None]
    if len(left) > 1:
        return (left * y[:, None]).sum(0)[:, None, None] * right[0, None, None]
    right = right[0] * y if len(y) == 1 else (right * y[:, None]).sum(0)
    return left[0, :, None, None] * right[None, None]


def _triple(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """sum_n x[i, n] y[j, n] z[k, n]: the two narrow factors are multiplied out, the widest is a matrix product."""
    parts = sorted(((x, 0), (y, 1), (z, 2)), key=lambda part: len(part[0]))
    (u, _), (v, _), (wide, _) = parts
    total = (u[:, None] * v[None]).flatten(0, 1) @ wide.T
    places = [place for _, place in parts]
    return total.view(len(u), len(v), len(wide)).permute(*(places.index(k) for k in range(3)))


def _unfold(halves: Tensor, sizes: tuple[int, int, int], w: int) -> Tensor:
    """The whole matrix (a m b, a m b) from the sums of the half matrices of each run of functions."""
    m, a, b = sizes
    whole = halves[:, _places(w)][:, :, :, _places(a)][:, :, :, :, :, _places(b)]  # (runs, w, w, a, a, b, b)
    matrix = halves.new_zeros(m, m, a, a, b, b)
    for first, part in enumerate(whole):
        matrix[first : first + w, first : first + w] += part
    return matrix.permute(2, 0, 4, 3, 1, 5).reshape(a * m * b, a * m * b)


def _places(n: int) -> Tensor:
    """(n, n): where in the list of the lower half each entry of a symmetric matrix stands."""
    import torch

    i, j = torch.tril_indices(n, n)
    places = torch.empty(n, n, dtype=torch.int64)
    places[i, j] = places[j, i] = torch.arange(len(i))
    return places


def solve(matrix: Tensor, rhs: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge I)^-1 rhs by Cholesky's method; of least norm, by eigenvalues, where that breaks down."""
    import torch

    ridged = matrix.clone()
    ridged.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    size = matrix.diagonal().amax()
    if not failed and factor.diagonal().amin().square() > 1e-13 * size:
        return torch.cholesky_solve(rhs, factor)
    values, vectors = torch.linalg.eigh(ridged)
    large = values > 1e-12 * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    return vectors[:, large] @ ((vectors[:, large].T @ rhs) / values[large, None])
