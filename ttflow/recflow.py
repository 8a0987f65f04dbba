"""Velocities of flows as functional tensor trains, fitted without gradient descent.

The train works in a moving frame: z = R^T (x - m(t)) / s(t), where R turns to the principal axes of the data and m, s
are the mean and the standard deviations of the points of the paths at time t. For Gaussian data z stays as it is along
the flow: the velocity is R (s' z) + m'. The train is fitted to what the velocities u have besides, R^T (u - m') - s' z,
so it has to learn only what is not Gaussian; and z fills the same box at all times.

Outside the box that nearly all of the data are in, the train goes on with its value at the edge, so the flow goes on as
the frame's, which is linear: a point of the tails is carried as one of a Gaussian, and has such a density. A straight
continuation of the train would be that of its noise at the edge.

The best fit is a mean of such velocities, so the end of a path that it points to, x + (1 - t) v, lies among those that
the velocities u point to: it is kept within their range, or where the frame alone points further out, no further than
that. A flow cannot explode, even where there were no data to say what the train should be.

What it is fitted to comes from a draw, see ``draws``.

Source: Liu et al. 2209.03003 (rectified flow); Chen et al. 1806.07366, eq. 8 (the density along a flow).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from common.runtime import checked, generator
from ttflow.als import fit, fit_each
from ttflow.bases import make
from ttflow.draws import data_pairs, flow_pairs, on_lines, on_trajectories, posterior_means, stratified
from ttflow.sweeper import Sweeps
from ttflow.tt import FunctionalTT, SeparateTT, Train, from_state, random_train

if TYPE_CHECKING:
    from ttflow.draws import Draw

__all__ = ["SWEEPS", "Frame", "Shape", "Sweeps", "TTVelocity", "fit_velocity", "frame_of", "log_likelihood"]
__all__ += ["data_pairs", "flow_pairs", "on_lines", "on_trajectories", "posterior_means", "stratified"]

FORMAT = "tt-velocity"
SCALES = ("moving", "whitened", "none")
LEAST = 1e-4  # least variance in the frame, in parts of the mean variance
MARGIN = 0.1  # of the range of the ends, on either side
LAST = 0.01  # of the path: from here on its end is no nearer


class Contents(TypedDict):
    """Of a file of a velocity."""

    format: str
    version: int
    frame: dict[str, Tensor]
    train: dict[str, Any]
    bound: Tensor
    options: dict[str, Any]


# --------------------------------------------------------------------------------------------------------------- frame
class Frame(nn.Module):
    """z = R^T (x - m(t)) / s(t): see the module.

    With a Gaussian mixture (see :func:`on_mixture`) z is the same, but the velocity besides the train is the mixture's.

    Args:
        rotation: R (d, d), orthogonal.
        means: m(0) and m(1), (2, d); m is linear between them.
        variances: v0, v1 and c, (3, d): s(t)^2 = (1 - t)^2 v0 + t^2 v1 + 2 t (1 - t) c.
        components: Of a mixture (K, 1 + 2 d + d^2), for each log weight, R^T mean, the variances along the principal
            axes, and these axes, R^T Q, row by row; None: no mixture.
    """

    rotation: Tensor
    means: Tensor
    variances: Tensor
    components: Tensor | None

    def __init__(self, rotation: Tensor, means: Tensor, variances: Tensor, components: Tensor | None = None) -> None:
        super().__init__()
        for name, value in (("rotation", rotation), ("means", means), ("variances", variances)):
            self.register_buffer(name, value)
        self.register_buffer("components", components)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m(t), s(t), s'(t) for t (B,): each (B, d)."""
        t = t[:, None]
        v0, v1, c = self.variances
        mean = torch.lerp(self.means[:1], self.means[1:], t)
        scale = ((1 - t).square() * v0 + t.square() * v1 + 2 * t * (1 - t) * c).sqrt()
        return mean, scale, (t * v1 - (1 - t) * v0 + (1 - 2 * t) * c) / scale

    def rows(self, x: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (N, d + 1), z and t, and targets R^T (u - m') - s' z (N, d), in the dtype of the frame."""
        x, t, u = (v.to(self.means.dtype) for v in (x, t, u))
        mean, scale, slope = self.at(t)
        z = (x - mean) @ self.rotation / scale
        if self.components is not None:
            alone = self.mixed((x @ self.rotation).T, t)[0].T
            return torch.cat([z, t[:, None]], dim=1), u @ self.rotation - alone
        drift = (u - (self.means[1] - self.means[0])) @ self.rotation
        return torch.cat([z, t[:, None]], dim=1), drift - z * slope

    def mixed(self, turned: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """R^T v of the mixture's own flow at R^T x (d, B), and its derivatives along the diagonal: (d, B) each.

        A component N(mu, S) of the data is N(t mu, C) at t, C = (1 - t)^2 I + t^2 S, and moves with
        v_k = mu + (t S - (1 - t) I) C^-1 (x - t mu). The flow's velocity is E[x1 - x0 | x] = sum_k w_k v_k with the
        posterior weights w_k of the components; their gradients are w_k (s_k - sum_j w_j s_j), s_k = -C^-1 (x - t mu).

        Args:
            turned: R^T x.
            t: (B,), or (1,) for a time that all rows share.
        """
        assert self.components is not None
        d = len(self.rotation)
        weights, centres, spreads, axes = self.components.split([1, d, d, d * d], dim=1)
        axes = axes.view(-1, d, d)
        spreads, early = spreads[:, :, None], 1 - t
        along = axes.mT @ (turned - t * centres[:, :, None])  # (K, d, B), each in its component's axes
        variance = early.square() + t.square() * spreads
        gain = (t * spreads - early) / variance
        w = (weights - (along.square() / variance + variance.log()).sum(1) / 2).softmax(0)[:, None]
        each, scores = centres[:, :, None] + axes @ (gain * along), -(axes @ (along / variance))
        pull = scores - (w * scores).sum(0)
        return (w * each).sum(0), (w * (axes.square() @ gain + each * pull)).sum(0)


def frame_of(x0: Tensor, x1: Tensor, straight: bool = True, rotate: bool = True, scale: str = "moving") -> Frame:
    """The frame of paths from x0 (N, d) to x1 (N, d), float64.

    Args:
        x0, x1: Starts and ends, row by row; 10,000 are plenty.
        straight: The paths are straight lines between them. False: only their ends are known, as for the trajectories
            of a flow, and the standard deviations are those of an independent coupling.
        rotate: To the principal axes of x1; False: R = I.
        scale: "moving": s(t) as it is. "whitened": its root mean square over the time. "none": 1.

    Raises:
        ValueError: fewer than 2 rows, NaN, shapes that do not fit, or an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: use one of {', '.join(SCALES)}")
    if x0.shape != x1.shape or x0.ndim != 2 or len(x0) < 2:
        raise ValueError(
            f"x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)}: need two equal shapes (N, d), N of at least 2"
        )
    x0, x1 = x0.to(torch.float64), x1.to(torch.float64)
    if not (x0.isfinite().all() and x1.isfinite().all()):
        raise ValueError("x0 or x1 hold NaN or infinity: look at the data, or drop these rows")
    rotation = torch.linalg.eigh(x1.T.cov().reshape(x1.shape[1], -1))[1].flip(1) if rotate else torch.eye(x1.shape[1])
    rotation = rotation.to(torch.float64)
    means = torch.stack([x0.mean(0), x1.mean(0)])
    a, b = (x0 - means[0]) @ rotation, (x1 - means[1]) @ rotation
    v0, v1 = a.square().mean(0), b.square().mean(0)
    least = LEAST * float(v0.mean() + v1.mean()) or 1.0  # a coordinate without spread must not divide by 0
    v0, v1 = v0.clamp(min=least), v1.clamp(min=least)
    c = (a * b).mean(0).maximum(-0.99 * (v0 * v1).sqrt()) if straight else torch.zeros_like(v0)  # -1: s(t) has a zero
    if scale != "moving":
        v0 = v1 = c = (v0 + v1 + c) / 3 if scale == "whitened" else torch.ones_like(v0)
    return Frame(rotation, means, torch.stack([v0, v1, c]))


def on_mixture(frame: Frame, weights: Tensor, means: Tensor, covariances: Tensor) -> Frame:
    """The frame with the velocity of a Gaussian mixture in place of that of one Gaussian.

    The train is then fitted to what the velocities have besides the mixture's, so it has to learn only what the mixture
    lacks, as far as held-out rows confirm it. For straight paths from independent standard normal noise alone.

    Args:
        frame: See :func:`frame_of`.
        weights, means, covariances: Of the data, (K,), (K, d), (K, d, d).
    """
    rotation = frame.rotation.to(torch.float64)
    weights, means, covariances = (value.to(rotation) for value in (weights, means, covariances))
    spreads, axes = torch.linalg.eigh(rotation.T @ covariances @ rotation)
    parts = [weights.log()[:, None], means @ rotation, spreads.clamp(min=0), axes.flatten(1)]
    return Frame(rotation, frame.means, frame.variances, torch.cat(parts, dim=1))


# ------------------------------------------------------------------------------------------------------------ velocity
class TTVelocity(nn.Module):
    """velocity(x, t) of a flow: x (B, d), t (B,), t = 0 noise and t = 1 data, for ``common.solvers.integrate``.

    It computes in the dtype of its numbers (:func:`fit_velocity` gives float32; ``.double()`` changes it) and returns
    that of x.

    Args:
        frame: See the module.
        train: Inputs z_1, ..., z_d, t; outputs the part of the velocity that the frame does not have.
        bound: Least and largest R^T (x + (1 - t) v), (2, d), where that of the frame alone is not beyond.
        options: Primitives to keep with it, how it was made for instance.
    """

    bound: Tensor

    def __init__(self, frame: Frame, train: Train, bound: Tensor, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.frame, self.train_, self.options = frame, train, dict(options or {})
        self.register_buffer("bound", bound)

    @property
    def dim(self) -> int:
        """d."""
        return self.frame.means.shape[1]

    @property
    def n_parameters(self) -> int:
        """Numbers in the cores, and of a mixture; the frame's d^2 + 5 d are not fitted and not counted."""
        d, components = self.dim, self.frame.components
        return self.train_.n_parameters + (0 if components is None else len(components) * (1 + d + d * (d + 1) // 2))

    @property
    def n_bytes(self) -> int:
        """Of all that is stored: cores and frame."""
        return sum(v.numel() * v.element_size() for v in self.state_dict().values())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, d)."""
        turned, z, t, slope, _ = self._place(x, t)
        velocity = self._bounded(turned, z, t, slope, self.train_.at([*z, t]).T)[0]
        return (velocity.T @ self.frame.rotation.T).to(x)

    def with_divergence(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, d) and its exact divergence (B,), at about three times the cost."""
        turned, z, t, slope, scale = self._place(x, t)
        value, diagonal = self.train_.value_and_diagonal([*z, t])
        velocity, free, fixed, mixed = self._bounded(turned, z, t, slope, value.T)
        # where the bound is a number v = (bound - R^T x) / (1 - t), where it is the frame's end v is the frame's
        edge = torch.where(fixed, -1 / _left(t), slope / scale if mixed is None else mixed)
        inside = (diagonal.T + slope) / scale if mixed is None else diagonal.T / scale + mixed
        divergence = torch.where(free, inside, edge).sum(0)
        return (velocity.T @ self.frame.rotation.T).to(x), divergence.to(x)

    # Below, the rows are the fast index: (d, B), and (d, 1) for a time that all rows share.

    def _place(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """R^T x, z, t, s'(t), s(t); a time that all rows share is kept once."""
        dtype = self.frame.means.dtype
        t = t.to(dtype).reshape(-1)
        if len(t) > 1 and t.device.type == "cpu" and bool((t == t[0]).all()):  # on a GPU the test would wait for it
            t = t[:1]
        mean, scale, slope = (part.T for part in self.frame.at(t))
        turned = self.frame.rotation.T @ x.to(dtype).T
        return turned, (turned - self.frame.rotation.T @ mean) / scale, t, slope, scale

    def _bounded(
        self, turned: Tensor, z: Tensor, t: Tensor, slope: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """R^T v, where the end that it points to is within the bounds by itself, and where the bound is a number.

        Of a frame with a mixture also the derivatives of the mixture's velocity.
        """
        left, (low, high) = _left(t), self.bound[:, :, None]
        if self.frame.components is None:
            drift = (self.frame.rotation.T @ (self.frame.means[1] - self.frame.means[0]))[:, None]
            velocity, alone, mixed = torch.addcmul(value, z, slope) + drift, z * slope + drift, None
        else:
            alone, mixed = self.frame.mixed(turned, t)
            velocity = value + alone
        end, linear = (torch.addcmul(turned, v, left) for v in (velocity, alone))
        inside = end.clamp(linear.minimum(low), linear.maximum(high))
        free, fixed = inside == end, (inside == low) | (inside == high)
        return (velocity if free.all() else torch.where(free, velocity, (inside - turned) / left)), free, fixed, mixed

    def state(self) -> dict[str, Any]:
        """Tensors and primitives; see :meth:`from_state`."""
        return {
            "format": FORMAT,
            "version": 1,
            "frame": dict(self.frame.named_buffers()),
            "train": self.train_.state(),
            "bound": self.bound,
            "options": self.options,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TTVelocity:
        """The velocity of a :meth:`state`.

        Raises:
            ValueError: it is not one: entries, shapes or numbers.
        """
        checked(state, Contents, "its contents")
        try:
            frame = Frame(**{name: value.clone() for name, value in state["frame"].items()})
            train = from_state(state["train"])
        except (LookupError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"its frame or train is damaged ({type(error).__name__})") from error
        velocity = cls(frame, train, state["bound"].clone(), state["options"])
        velocity.check()
        return velocity

    def check(self) -> None:
        """Raises ValueError unless shapes fit and all numbers are finite."""
        d = len(self.frame.rotation)
        shapes = {"rotation": (d, d), "means": (2, d), "variances": (3, d)}
        fits = all(getattr(self.frame, name).shape == shape for name, shape in shapes.items())
        mixture = self.frame.components
        fits &= mixture is None or (mixture.ndim == 2 and mixture.shape[1] == 1 + 2 * d + d * d and len(mixture) > 0)
        if not fits or self.bound.shape != (2, d):
            raise ValueError("its frame and bound are of no one dimension")
        trains = self.train_.trains if isinstance(self.train_, SeparateTT) else [self.train_]
        if any(len(train.order) != d + 1 for train in trains) or sum(train.outputs for train in trains) != d:
            raise ValueError(f"its train is not one of {d} coordinates and t")
        if (
            not all(value.isfinite().all() for value in self.state_dict().values())
            or (self.frame.variances[:2] <= 0).any()
        ):
            raise ValueError("it holds something that is no finite number, or a variance that is not above 0")

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file of tensors and primitives."""
        from common import checkpoint

        checkpoint.save(path, self.state())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> TTVelocity:
        """Read it from a file, without running anything that the file may contain.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of :meth:`save`.
        """
        from common import checkpoint

        state = checkpoint.load(path)
        if state.get("format") != FORMAT or state.get("version") != 1:
            raise ValueError(f"{path} holds no tensor-train velocity of version 1: give a file that this folder wrote")
        try:
            return cls.from_state(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _left(t: Tensor) -> Tensor:
    """1 - t, of at least LAST."""
    return (1 - t).clamp(min=LAST)


def _ends(frame: Frame, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Least and largest R^T (x + (1 - t) u), (2, d), with a margin for what a draw has not seen."""
    ends = (x + _left(t)[:, None] * u).to(frame.rotation) @ frame.rotation
    low, high = ends.aminmax(dim=0)
    return torch.stack([low - MARGIN * (high - low), high + MARGIN * (high - low)])


@torch.no_grad()
def log_likelihood(
    velocity: TTVelocity,
    x: Tensor,
    n_steps: int = 50,
    method: str = "rk4",
    log_source: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p_1(x) = log p_0(x_0) - int_0^1 div v(x_t, t) dt along the flow, with the exact divergence; shape (B,).

    Args:
        velocity: Of a flow whose source is standard normal, or has the density log_source.
        x: Data, shape (B, d).
        n_steps, method: For ``common.solvers.integrate`` from t = 1 to 0.
        log_source: (B, d) -> (B,); None: standard normal.

    Source: Chen et al. 1806.07366, eq. 8.
    """
    from common.solvers import integrate, time_grid

    def slope(state: Tensor, t: Tensor) -> Tensor:
        v, divergence = velocity.with_divergence(state[:, :-1], t)
        return torch.cat([v, divergence[:, None]], dim=1)

    start = torch.cat([x, x.new_zeros(len(x), 1)], dim=1)
    end = integrate(slope, start, time_grid(n_steps).flip(0), method)
    x0 = end[:, :-1]
    source = log_source(x0) if log_source else -x0.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi)
    return source + end[:, -1]


# ----------------------------------------------------------------------------------------------------------------- fit
@dataclass(frozen=True)
class Shape:
    """A train before its fit: bases, order of the variables, ranks. Positions count from 0 to d.

    Attributes:
        basis, n_basis: Of each coordinate; a name of ``bases.KINDS``.
        basis_options: Further options of these bases: length, degree, period, outside.
        time_basis, n_time: Of t.
        rank: Of all bonds or each; where ranks adapt the one to begin with.
        time_at: Position of t; None: d, the last.
        output_at: Position of the core with the outputs; None: that of t. Where outputs move only the first one.
        coordinates: Their order in the train; None: 0, ..., d - 1, falling variance of the data if the frame rotates.
        separate: One train for each coordinate of the velocity.
        coverage: The box of each coordinate holds this part of the first draw.
        seed: Of the random start.
    """

    basis: str = "bsplines"
    n_basis: int = 20
    basis_options: Mapping[str, Any] | None = None
    time_basis: str = "legendre"
    n_time: int = 8
    rank: int | Sequence[int] = 5
    time_at: int | None = None
    output_at: int | None = None
    coordinates: Sequence[int] | None = None
    separate: bool = False
    coverage: float = 0.999
    seed: int = 0

    def n_parameters(self, d: int) -> int:
        """Of a train of this shape for d coordinates."""
        return self.random([(0.0, 1.0)] * d).n_parameters

    def random(self, boxes: Sequence[tuple[float, float]]) -> Train:
        """A random train, or one for each output, for coordinates in these boxes.

        Raises:
            ValueError: what ``bases`` or ``tt`` refuse, or positions that there are not.
        """
        d = len(boxes)
        coordinates = list(range(d) if self.coordinates is None else self.coordinates)
        if sorted(coordinates) != list(range(d)):
            raise ValueError(f"coordinates {coordinates}: give each of 0 to {d - 1} once")
        order = coordinates.copy()
        order.insert(d if self.time_at is None else self.time_at, d)  # t is variable d
        output = order.index(d) if self.output_at is None else self.output_at
        if not 0 <= output <= d:
            raise ValueError(f"output_at is {output}: the positions of this train are 0 to {d}")
        options = {"outside": "clamp", **(self.basis_options or {})}
        bases = [make(self.basis, self.n_basis, *box, **options) for box in boxes]
        bases.append(make(self.time_basis, self.n_time, 0.0, 1.0, outside="clamp"))
        by_position, g = [bases[k] for k in order], generator(self.seed, "start")
        if self.separate:
            return SeparateTT([random_train(by_position, self.rank, 1, g, order, output) for _ in range(d)])
        return random_train(by_position, self.rank, d, g, order, output)


SHAPE = Shape()
# Most of the error is noise and stays, so small improvements count. Without smooth a train is wild in the corners of
# the box, where there are hardly any points. The less noise the velocities of a draw have, the less ridge is needed.
SWEEPS = Sweeps(ridge=1e-4, moves=False, smooth=0.01, tolerance=1e-5)


def fit_velocity(
    draw: Draw,
    frame: Frame,
    start: Shape | TTVelocity = SHAPE,
    sweeps: Sweeps = SWEEPS,
    validation: tuple[Tensor, Tensor, Tensor] | None = None,
    progress: bool | str = False,
) -> tuple[TTVelocity, list[dict[str, Any]]]:
    """Fits a train to a draw: ``on_lines`` of ``data_pairs`` (or of ``flow_pairs``: reflow), or ``on_trajectories``.

    Args:
        draw: See ``draws``; fresh in each sweep.
        frame: See :func:`frame_of`.
        start: A shape: begin at random. A velocity: begin with its train, whose bases, ranks and order stay; with the
            same frame this is a warm start.
        sweeps: How it is fitted; see ``als.fit``.
        validation: Held-out x, t, u: see ``als.fit``.
        progress: Show a bar; a string is its title.

    Returns:
        The velocity, float32, and the rows of ``als.fit``.

    Raises:
        ValueError: what ``bases``, ``tt`` or ``als`` refuse.
    """
    frame = Frame(*(value.to(torch.float64, copy=True) for value in frame.buffers()))
    draw = _remembered(draw)
    rows = _remembered(lambda k: frame.rows(*draw(k)))
    inputs, _ = rows(0)
    bound = _ends(frame, *draw(0))
    if isinstance(start, TTVelocity):
        train = from_state(start.train_.state()).double()
    else:
        train = start.random([_box(column, start.coverage) for column in inputs[:, :-1].unbind(1)])
    held_out = None if validation is None else frame.rows(*validation)
    solve: Any = fit_each if isinstance(train, SeparateTT) else fit
    best, history = solve(train, rows, sweeps, held_out, progress)
    if frame.components is not None and held_out is not None:  # little may be left to learn: noise would be all
        best = _shrunk(best, *held_out)
    return TTVelocity(frame, best, bound).float(), history


def _shrunk(train: Train, inputs: Tensor, targets: Tensor) -> Train:
    """The train with each output times the factor in [0, 1] of least error on these rows, <f, y> / <f, f>."""
    if isinstance(train, SeparateTT):
        return SeparateTT([_shrunk(one, inputs, targets[:, k : k + 1]) for k, one in enumerate(train.trains)])
    values = torch.cat([train(x) for x in inputs.split(8192)])
    factors = ((values * targets).sum(0) / values.square().sum(0).clamp(min=1e-300)).clamp(0, 1)
    cores = [core * factors[:, None] if p == train.output else core for p, core in enumerate(train.cores)]
    return FunctionalTT(train.bases, cores, train.order, train.output)


def _box(z: Tensor, coverage: float) -> tuple[float, float]:
    """The interval that holds this part of the values, as much outside on either side."""
    if not z.isfinite().all():
        raise ValueError("the points hold NaN or infinity: look at the data, or drop these rows")
    ordered, out = z.sort().values, (1 - coverage) / 2 * (len(z) - 1)
    return float(ordered[math.floor(out)]), float(ordered[math.ceil(len(z) - 1 - out)])


def _remembered(rows: Callable[[int], Any]) -> Callable[[int], Any]:
    """The function with its last result kept."""
    last: dict[int, Any] = {}

    def remembered(k: int) -> Any:
        if k not in last:
            last.clear()
            last[k] = rows(k)
        return last[k]

    return remembered
