"""From a trained network to images: velocities, guidance, samplers, and many images at a time.

Image k is a function of (weights, seed, k): its starting noise (and the noise of a stochastic sampler) comes from a
generator seeded with k, so the batch size, the number of processes and the order of the work do not matter.
Between two noises, and from images back to noise: ``interpolate`` and ``invert``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import solvers
from common.losses import LEVELS
from common.methods import METHODS, Drift, Output, Velocity, data_heads, sde_of_velocity
from common.runtime import autocast, generator, number_of
from common.solvers.fitted import FittedSampler

WHOLE = (0.0, 1.0)  # all times
BETWEEN = ("midpoint", "heun", "rk4", "dopri5", "torchdyn")  # solvers that evaluate at other times than a step's first


class Guide(NamedTuple):
    """A worse network that guides a better one, and the name and SHA-256 of its file."""

    net: nn.Module
    name: str = ""
    sha256: str = ""


class CountedNetwork(solvers.CountNFE):
    """A network that counts its evaluations per sample, runs in the given precision and returns float32.

    ``guide`` is the guiding network, counted alike, or None.
    """

    def __init__(self, net: nn.Module, precision: str = "no", guide: Guide | None = None):
        super().__init__(net)
        self.precision = precision
        self.guide = CountedNetwork(guide.net, precision) if guide else None

    def __call__(self, x: Tensor, t: Tensor, *conditions: Tensor | None) -> Tensor:
        """``conditions``: labels, and the second time of a network of two."""
        with autocast(x.device, self.precision):
            return super().__call__(x, t, *conditions).float()

    def per_sample(self, n_samples: int) -> float:
        """Evaluations of both networks for each of n samples: their mean, and a whole number where all took as many."""
        rows = self.rows + (self.guide.rows if self.guide else 0)
        return rows // n_samples if rows % n_samples == 0 else rows / n_samples


def guided(
    net: Callable[..., Tensor],
    y: Tensor | None = None,
    cfg: float = 1.0,
    interval: tuple[float, float] = WHOLE,
    guide: Callable[..., Tensor] | None = None,
) -> Output:
    """The network with guidance: worse + cfg (out(y) - worse) at the times of an interval, out(y) at all others.

    ``worse`` is the network without the label (classifier-free guidance), or another network with it (autoguidance).
    cfg = 1 and cfg = 0 cost one evaluation, everything else two; outside of the interval all cost one. Called
    ``out(x, t)``, or ``out(x, t, r)`` of a network of two times, whose first one counts.

    Args:
        y: labels, (B,); None: none, and without a guide no guidance.
        interval: times [from, to) that are guided; one that ends at 1 has that end, too. A GPU is waited for at every
            evaluation where it is not the whole.
        guide: the worse network.

    Source: Ho & Salimans 2022 (2207.12598), equation 6; the interval: Kynkaanniemi et al. 2024 (2404.07724); the worse
    network: Karras et al. 2024 (2406.02507).
    """
    worse = guide or (lambda x, t, y, *r: net(x, t, None, *r))
    if cfg == 1 or (y is None and guide is None):
        return lambda x, t, *r: net(x, t, y, *r)

    def inner(x: Tensor, t: Tensor, y: Tensor | None, *r: Tensor) -> Tensor:
        away = worse(x, t, y, *r)
        return away if cfg == 0 else away + cfg * (net(x, t, y, *r) - away)

    def out(x: Tensor, t: Tensor, *r: Tensor) -> Tensor:
        inside = within(t, interval)
        count = int(inside.sum())
        if count in (0, len(t)):
            return inner(x, t, y, *r) if count else net(x, t, y, *r)
        v, some = net(x, t, y, *r), inside.nonzero()[:, 0]  # rows of several times: a solver that steps adaptively
        away = worse(*(None if each is None else each[some] for each in (x, t, y, *r)))
        return v.index_copy(0, some, away + cfg * (v[some] - away))

    return out if interval != WHOLE else lambda x, t, *r: inner(x, t, y, *r)


def within(t: Tensor, interval: tuple[float, float]) -> Tensor:
    """Which times, (B,), are in [from, to), or in [from, 1]; a node of a grid is its end up to the float32 rounding."""
    start, stop = interval
    return (t >= start - 1e-6) & (t < (stop - 1e-6 if stop < 1 else math.inf))


def heads_of(net: Callable[..., Tensor], y: Tensor | None = None, cfg: float = 1.0) -> Callable[..., Any]:
    """IDFF's two heads, guided: ``heads(x, t) -> (x1_hat, st)``."""
    return data_heads(guided(net, y, cfg))


def velocity_of(
    net: Callable[..., Tensor], method: str, y: Tensor | None = None, cfg: float = 1.0, last: float = math.inf
) -> Velocity:
    """The velocity of the probability-flow ODE that a method's network describes, guided; see ``common.methods``.

    Args:
        last: where a sampler's last step starts: from there on a data head's velocity points at its prediction.
    """
    return METHODS[method].velocity(guided(net, y, cfg), last)


def sde_of(
    net: Callable[..., Tensor],
    method: str,
    sigma: float,
    y: Tensor | None = None,
    coupling: str = "auto",
) -> Drift:
    """Drift and diffusion g(t) of an SDE with the same marginals; see ``common.methods``.

    Args:
        coupling: of the training; "auto": the usual one of the method.

    Raises:
        ValueError: the network does not know the score of its marginals; see :func:`check_sde`.
    """
    check_sde(method, coupling)
    return METHODS[method].sde(guided(net, y), METHODS[method].path(sigma))


def check_sde(method: str, coupling: str = "auto") -> None:
    """Raises ValueError where a velocity does not tell the score: coupled noise and data, or a path of another kind."""
    joint = METHODS[method].joint(coupling)
    if METHODS[method].sde is sde_of_velocity and not hasattr(METHODS[method].path(1.0), "score_divisor"):
        raise ValueError(
            f"--solver euler_maruyama needs the score, which the path of {method} does not tell (it has no "
            "score_divisor): use an ODE solver as heun"
        )
    if joint != "independent" and not METHODS[method].any_coupling:
        raise ValueError(
            f"--solver euler_maruyama needs the score, which a {method} network does not give; use an ODE solver as "
            f"heun (it was trained with {joint} coupling, the score needs independent noise and data)"
        )


def noise_for(indices: Sequence[int], shape: Sequence[int], seed: int, stream: str = "x0") -> Tensor:
    """Standard normal noise, (len(indices), *shape); row i is a function of (seed, stream, indices[i]) only."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, stream, k)) for k in indices])


class Samples(NamedTuple):
    """Images in [-1, 1], (B, C, H, W), and the network evaluations of each, counted at the networks: their mean where
    guidance took other times of each."""

    images: Tensor
    nfe: float


@dataclass(frozen=True)
class Sampler:
    """A network in eval mode, on its device, its method and a solver: ``sampler(indices, labels)`` gives images in
    [-1, 1], (B, C, H, W).

    Method, sigma and coupling are those of the training (from its checkpoint), the solver's options those of
    ``common.solvers``.
    """

    net: nn.Module
    method: str
    shape: tuple[int, int, int]  # (C, H, W) of one image
    sigma: float = 0.0
    solver: str = "euler"
    n_steps: int = 10
    grid: str = "uniform"
    fitted: FittedSampler | None = None  # the sampler, for solver "fitted"
    nodes: Tensor | None = None  # the times, for grid "adaptive"
    rtol: float = 1e-5
    atol: float = 1e-5
    cfg: float = 1.0
    seed: int = 0  # see ``noise_for``
    precision: str = "no"  # "no", "bf16" or "fp16": of the network only
    # Time from which the last step goes straight to the predicted data; 1: no such rule. A data head's and
    # euler_maruyama's last step always does: noise that is added there would stay in the image.
    landing: float = 1.0
    coupling: str = "auto"  # the method's usual
    interval: tuple[float, float] = WHOLE  # times that are guided; see ``guided``
    guide: Guide | None = None  # of autoguidance, of the same method, shape and labels; None: classifier-free guidance

    def guidance(self) -> dict[str, Any]:
        """Interval and guiding weights as cards, marks and kept samplers say them, beside ``cfg``; {} as usual."""
        start, stop = self.interval
        facts = {} if self.interval == WHOLE else {"cfg_interval": f"{start:g}..{stop:g}"}
        return facts | ({"guide": self.guide.name, "guide_sha256": self.guide.sha256} if self.guide else {})

    def counted(self) -> CountedNetwork:
        """The network and its guide, that count their evaluations."""
        return CountedNetwork(self.net, self.precision, self.guide)

    def output(self, net: CountedNetwork, y: Tensor | None) -> Output:
        """What a network of :meth:`counted` says of labels (B,), guided."""
        return guided(net, y, self.cfg, self.interval, net.guide)

    def velocity(self, net: CountedNetwork, y: Tensor | None, last: float = math.inf) -> Velocity:
        """The guided velocity; see :func:`velocity_of`."""
        return METHODS[self.method].velocity(self.output(net, y), last)

    def times_hash(self) -> str:
        """A mark of the times and weights that are not named by solver, grid and n_steps: fitted and adaptive ones."""
        own = (self.fitted, None if self.nodes is None else self.nodes.tolist())
        return "" if own == (None, None) else hashlib.sha256(repr(own).encode()).hexdigest()[:16]

    def __post_init__(self) -> None:
        if not 0 < self.landing <= 1:
            raise ValueError(f"--landing {self.landing:g} is out of range: give a time above 0, to 1 (none)")

    def check(self) -> None:
        """Raises ValueError for a solver that these weights cannot use; sampling does so, too."""
        if self.solver == "euler_maruyama":
            check_sde(self.method, self.coupling)
        if self.solver == "idff" and METHODS[self.method].heads != 2:
            raise ValueError(f"--solver idff needs weights trained with --method idff, these are {self.method}")
        if self.solver == "flowmap" and METHODS[self.method].times is None:
            raise ValueError(f"--solver flowmap needs weights of two times; {self.method} has one: use euler")
        denoiser = METHODS[self.method].denoiser
        if self.solver == "consistency" and denoiser is None:
            raise ValueError(f"--solver consistency needs weights tuned by --method ect, these are {self.method}")
        if self.solver != "consistency" and denoiser:
            raise ValueError(
                f"--solver {self.solver} needs a velocity, which {self.method} weights do not know: use consistency"
            )

    def check_interval(self) -> None:
        """Raises ValueError where the interval guides no step: all would be as without guidance."""
        if self.interval == WHOLE or self.solver in BETWEEN:
            return
        starts = self.times()[:-1]
        if not within(starts, self.interval).any():
            start, stop = self.interval
            raise ValueError(
                f"--cfg_interval {start:g} {stop:g} guides none of the {number_of(len(starts), 'step')}, starting at "
                f"{', '.join(f'{t:.3g}' for t in starts.tolist()[:10])}: give another one, or more --n_steps"
            )

    @property
    def start(self) -> float:
        """Standard deviation at t = 0, by which standard normal noise is multiplied."""
        return METHODS[self.method].path(self.sigma).start

    def __call__(self, indices: Sequence[int], labels: Tensor | None = None) -> Tensor:
        return self.sample(indices, labels).images

    def sample(self, indices: Sequence[int], labels: Tensor | None = None) -> Samples:
        """The images of these indices, (B,), and what each took."""
        return self.from_noise(noise_for(indices, self.shape, self.seed), indices, labels)

    @torch.no_grad()
    def from_noise(
        self, x0: Tensor, indices: Sequence[int], labels: Tensor | None = None, trajectory: solvers.Trajectory = False
    ) -> Samples:
        """The images that given noises, (B, C, H, W), become; ``indices`` name what else a stochastic solver draws.

        Args:
            trajectory: all states from the noise on, (B, n + 1, C, H, W), instead of the images, which are the last;
                or a function that gets each, (B, C, H, W), as the solver makes it, but the noise and not clamped.
        """
        self.check()
        device = next(self.net.parameters()).device
        x0 = (self.start * x0).to(device).contiguous(memory_format=torch.channels_last)
        y = None if labels is None else labels.to(device)
        counted = self.counted()
        times = (self.state_times() if trajectory else self.times()).tolist()
        states = [x0]
        x = self.solve(counted, x0, y, indices, times, states.append if trajectory is True else trajectory)
        x = torch.stack(states, 1) if trajectory is True else x
        return Samples(x.clamp(-1, 1), counted.per_sample(len(x0)))

    def solve(
        self,
        net: CountedNetwork,
        x0: Tensor,
        y: Tensor | None,
        indices: Sequence[int],
        times: list[float],
        seen: solvers.Trajectory = False,
    ) -> Tensor:
        """The images, not clamped, of :attr:`start` times a noise; a function ``seen`` gets the state after each step.

        ``times`` are those of :meth:`times`, or of :meth:`state_times`.
        """
        all_of: dict[str, Any] = {"trajectory": seen}
        if self.fitted is not None:
            return solvers.integrate(self.velocity(net, y, times[-2]), x0, times, self.fitted, **all_of)
        if self.solver == "idff":  # the paper samples with twice the spread that it trains with
            return solvers.idff_sampler(data_heads(self.output(net, y)), x0, times, 2 * self.sigma, **all_of)
        if self.solver == "flowmap":
            return solvers.follow_map(self.output(net, y), x0, times, **all_of)
        if self.solver == "consistency":
            method = METHODS[self.method]
            path: Any = method.path(self.sigma)
            assert method.denoiser is not None  # or check() has refused
            earliest = float(path.time_of(torch.tensor(LEVELS[1])))  # where its training begins
            denoiser, noise = method.denoiser(self.output(net, y)), self._path_noise(indices)
            return solvers.consistency(denoiser, x0, times, path.remaining, noise, earliest, seen)

        def walk(times: list[float]) -> Tensor:
            """The SDE or the ODE over times, as far as no step lands."""
            if self.solver == "euler_maruyama":
                sde = METHODS[self.method].sde(self.output(net, y), METHODS[self.method].path(self.sigma))
                return solvers.euler_maruyama(*sde, x0, times, self._path_noise(indices), **all_of)
            how = {"final_euler": True, "rtol": self.rtol, "atol": self.atol, **all_of}
            return solvers.integrate(self.velocity(net, y), x0, times, self.solver, **how)

        head_lands = METHODS[self.method].heads == 2 and self.solver not in ("dopri5", "torchdyn")
        if self.landing == 1 and not head_lands and self.solver != "euler_maruyama":
            return walk(times)
        # The last step is Euler's, and lands on the predicted data
        x = walk(times[:-1]) if len(times) > 2 else x0
        return solvers.integrate(self.velocity(net, y, times[-2]), x, times[-2:], **all_of)

    def _path_noise(self, indices: Sequence[int]) -> solvers.Noise:
        """The noise of a stochastic solver's steps, each image's from a stream of its own."""
        streams = [generator(self.seed, "path", k) for k in indices]
        return lambda i, x: torch.stack([torch.randn(*self.shape, generator=s) for s in streams]).to(x)

    def times(self) -> Tensor:
        """The nodes; on the CPU, since solvers read them as numbers and must not wait for a GPU to get them."""
        if self.fitted is not None:
            return torch.tensor(self.fitted.times, dtype=torch.float64)
        if self.solver == "dopri5":  # chooses its own steps
            return torch.tensor([0.0, 1.0] if self.landing == 1 else [0.0, self.landing, 1.0])
        if self.nodes is not None:
            return self.nodes.float()
        if self.landing == 1 or self.n_steps == 1:
            return solvers.time_grid(self.n_steps, self.grid)
        return torch.cat([self.landing * solvers.time_grid(self.n_steps - 1, self.grid), torch.ones(1)])

    def state_times(self) -> Tensor:
        """The times of a trajectory's states; of dopri5, whose steps are its own, they are interpolated."""
        times = self.times()
        if self.solver != "dopri5":
            return times
        return torch.cat([times[1] * torch.linspace(0, 1, self.n_steps + 1), times[2:]])


def labels_for(indices: Sequence[int], num_classes: int, label: int | None = None) -> Tensor | None:
    """Labels of images by their index: the given class, or all classes in turn (k mod num_classes).

    Args:
        num_classes: classes of the network without its "no label" row; 0 gives None.
    """
    if num_classes == 0:
        if label is not None:
            raise ValueError("--label needs class-conditional weights; these are unconditional")
        return None
    if label is not None and not 0 <= label < num_classes:
        raise ValueError(f"--label {label} is out of range: these weights know the classes 0 to {num_classes - 1}")
    return torch.tensor([k % num_classes if label is None else label for k in indices])


def real_classes(net: Any) -> int:
    """Classes that a network can be asked for: the rows of its embedding without the "no label" row."""
    return net.num_classes - int(net.null_class)


def sample_many(
    sampler: Sampler,
    indices: Sequence[int],
    batch_size: int = 100,
    label: int | None = None,
    trajectory: bool = False,
) -> Iterator[tuple[list[int], Tensor, float]]:
    """Sample the images of the given indices in batches; an image is the same in any order, batch and larger set.

    Args:
        label: one class for all; None: all classes in turn.
        trajectory: all states from the noise on, (B, n + 1, C, H, W), instead of the images, which are the last.

    Yields:
        Indices, images (B, C, H, W) in [-1, 1] on the CPU, network evaluations of each image.

    Raises:
        ValueError: batch_size below 1, or a label that these weights do not know.
    """
    if batch_size < 1:
        raise ValueError(f"--batch_size {batch_size} must be at least 1")
    classes = real_classes(sampler.net)
    parts = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    noise: Tensor | None = None
    for part, after in zip(parts, [*parts[1:], None]):
        # noise and label are made from the image's own number, so that no image knows its batch
        x0 = noise_for(part, sampler.shape, sampler.seed) if noise is None else noise
        images, nfe = sampler.from_noise(x0, part, labels_for(part, classes, label), trajectory)
        if after is not None:  # while a GPU works on these: noise can take it a third of the time of 10 evaluations
            noise = noise_for(after, sampler.shape, sampler.seed)
        yield part, images.cpu(), nfe


# ---- between two noises, and back to the noise


def slerp(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Points on the arc from a to b: (sin((1 - w) angle) a + sin(w angle) b) / sin(angle), angle being that of a and b.

    Ends of one norm give an arc of that norm, run through at a constant rate. Normal noises of D numbers have norms of
    sqrt(D) within about 1 and stand almost at right angles, so all of the arc has the norm of a noise (in its middle
    with a spread smaller by sqrt(2)); the middle of the straight line has sqrt(D / 2), which no noise has.

    Args:
        a, b: ends, (B, ...); the angle is taken over all the rest.
        w: places, (n,): 0 is a, 1 is b.

    Returns:
        (n, B, ...), in the dtype of a. Parallel ends are joined by a straight line.

    Raises:
        ValueError: opposite ends, between which there is no one arc.

    Source: Shoemake 1985, section 3.3; White 2016 (1609.04468), section 2.1, for the noises of generative models.
    """
    flat_a, flat_b, w = a.double().flatten(1), b.double().flatten(1), w.to(a.device).double()[:, None, None]
    unit_a, unit_b = (x / x.norm(dim=1, keepdim=True) for x in (flat_a, flat_b))
    # Of half the angle, tan is |difference| / |sum|: exact near 0 and pi, where acos loses half its digits.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1, keepdim=True), (unit_a + unit_b).norm(dim=1, keepdim=True))
    if (math.pi - angle).min() < 1e-6:
        raise ValueError("there is no one arc between opposite ends: take other noises")
    sine, parallel = angle.sin(), angle < 1e-6
    weights = (torch.where(parallel, u, (u * angle).sin() / sine.clamp(min=1e-12)) for u in (1 - w, w))
    arc = sum(weight * x for weight, x in zip(weights, (flat_a, flat_b)))
    return torch.as_tensor(arc).reshape(len(w), *a.shape).to(a.dtype)


def interpolate(
    sampler: Sampler, rows: int, columns: int, batch_size: int = 100, label: int | None = None
) -> Iterator[Samples]:
    """Rows of images from noise 2k to noise 2k + 1 along the arc between them; image (k, 0) is that of noise 2k.

    A row has one class (``labels_for`` of its number) and, with a stochastic solver, one path of later noise.

    Yields:
        Row by row (columns, C, H, W), columns >= 2 with the two ends, in [-1, 1] on the CPU, and the evaluations of an
        image of its last batch.
    """
    w = torch.linspace(0, 1, columns)
    for k in range(rows):
        ends = noise_for([2 * k, 2 * k + 1], sampler.shape, sampler.seed)
        y = labels_for([k], real_classes(sampler.net), label)
        batches = [
            sampler.from_noise(x0, [2 * k] * len(x0), None if y is None else y.expand(len(x0)))
            for x0 in slerp(ends[:1], ends[1:], w)[:, 0].split(batch_size)
        ]
        yield Samples(torch.cat([batch.images.cpu() for batch in batches]), batches[-1].nfe)


class Inversion(NamedTuple):
    """The noise of images, the images made of it again, not clamped, and the network evaluations of both ways."""

    noise: Tensor
    images: Tensor
    nfe: float


INVERTERS = ("euler", "midpoint", "heun", "rk4", "ab2", "ab4", "dopri5")  # those that may run towards the noise


@torch.no_grad()
def invert(sampler: Sampler, images: Tensor, labels: Tensor | None = None) -> Inversion:
    """Images to noise by the ODE backwards in time, from t = 1 to 0, and that noise to images again.

    The way back takes the same nodes, so noise and images match to the order of the solver; what they miss is what
    the solver misses, not the network. Cost: twice the solver's NFE.

    IDFF's velocity (x1_hat - x) / (1 - t) - st is 0 / 0 at t = 1, where the way begins: from 1 - SMALLEST_REMAINDER on
    it is held at its value at that time (for the x at hand), both ways. That changes the velocity there by O(0.005)
    over a time of 0.005. Landing on the data head, as samplers do, cannot be undone and is left out.

    Images are (B, C, H, W) in [-1, 1], labels (B,) or None; what is returned is on the CPU.

    Raises:
        ValueError: a solver that cannot run backwards, or a ``landing``.
    """
    if sampler.solver not in INVERTERS:
        raise ValueError(f"--invert cannot use --solver {sampler.solver}: choose one of {', '.join(INVERTERS)}")
    if sampler.landing != 1:
        raise ValueError(f"--invert follows the flow through all times: leave out --landing {sampler.landing:g}")
    device = next(sampler.net.parameters()).device
    x1 = images.to(device).contiguous(memory_format=torch.channels_last)
    net = sampler.counted()
    flow = METHODS[sampler.method].held(sampler.velocity(net, None if labels is None else labels.to(device)))
    times = sampler.times()

    def integrate(x: Tensor, times: Tensor) -> Tensor:
        return solvers.integrate(flow, x, times, sampler.solver, rtol=sampler.rtol, atol=sampler.atol)

    noise = integrate(x1, times.flip(0))
    again = integrate(noise, times)
    return Inversion(noise.cpu() / sampler.start, again.cpu(), net.per_sample(len(x1)))
