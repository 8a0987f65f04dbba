"""Is a sample a training image again? Distances of samples to their nearest training images, in a feature space.

They are compared with those of held-out real images, which nobody can have memorised: samples that are nearer than
these are suspect. Source: Carlini et al. 2023 (2301.13188) for the question; Meehan et al. 2020 (2004.05675) for the
comparison with held-out images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import plots
from common.images import grid

SHOWN, COUNT = 16, 3  # samples of the picture, and training images beside each
COPY = 1e-3  # of the held-out images' median distance: nearer is the same image up to rounding


class Nearest(NamedTuple):
    """Distances to the nearest rows of a bank, ascending, and their places, (N, count)."""

    distances: Tensor
    places: Tensor


def nearest(rows: Tensor, bank: Tensor, count: int = COUNT) -> Nearest:
    """The Euclidean distances of rows (N, F) to the ``count`` nearest of a bank (M, F).

    Found by matrix products, whose differences lose digits near 0, and then computed from the differences themselves.
    Memory: 256 M numbers.
    """
    found, norms = [], bank.square().sum(1)
    for part in rows.split(256):
        rough = norms - 2 * part @ bank.T  # and |row|^2, which is the same for all
        places = rough.topk(min(len(bank), count + 5), largest=False).indices
        exact = (part[:, None] - bank[places]).norm(dim=2)
        distances, order = exact.sort(1)
        found.append(Nearest(distances[:, :count], places.gather(1, order)[:, :count]))
    return Nearest(*map(torch.cat, zip(*found)))


def compare(samples: Tensor, training: Tensor, held_out: Tensor) -> tuple[dict[str, Any], Nearest, Tensor]:
    """Figures of features (N, F) of samples, training and held-out images; the samples' nearest; held-out distances.

    "nearer_than_1_percent" is the share of samples that are nearer to a training image than 99% of the held-out ones
    are: 0.01 of samples as good as real images, more where training images come again. "copies" are at distance 0.

    Raises:
        ValueError: no held-out images.
    """
    if not len(held_out):
        raise ValueError("--nearest compares with held-out images: there are none (--val_fraction 0, no test split)")
    found, real = nearest(samples, training), nearest(held_out, training, 1).distances[:, 0]
    own, usual = found.distances[:, 0], real.median()
    figures = {
        "nearer_than_1_percent": (own < real.quantile(0.01)).float().mean().item(),
        "copies": int((own <= COPY * usual).sum()),
        "copies_held_out": int((real <= COPY * usual).sum()),
        "median_distance": own.median().item(),
        "median_distance_held_out": usual.item(),
        "training_images": len(training),
        "held_out_images": len(held_out),
    }
    return figures, found, real


def draw(path: Path, samples: Tensor, training: Tensor, found: Nearest, held_out: Tensor) -> None:
    """The samples (N, C, S, S) that are nearest to training images (M, C, S, S), uint8, each before its nearest ones,
    and the distances of all and of held-out images, (K,)."""
    plt = plots.pyplot()
    chosen = found.distances[:, 0].argsort()[:SHOWN]
    cells = [torch.cat([samples[k : k + 1], training[found.places[k]]]) for k in chosen.tolist()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=(1, 1.2))
    per_row = 2 if len(cells) > 1 else 1
    picture = grid(torch.cat(cells), per_row * len(cells[0]), scale=2)
    left.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
    for column in range(per_row):  # a frame around the samples, which begin each group
        width = (picture.shape[1] - 2) / per_row
        height = picture.shape[0]
        box = plt.Rectangle((column * width, 0), width / len(cells[0]), height - 1, fill=False, ec=plots.SOURCE, lw=2)
        left.add_patch(box)
    left.set_axis_off()
    left.set_title(f"the {len(cells)} nearest samples (red), each before its {len(cells[0]) - 1} nearest", fontsize=9)
    own = found.distances[:, 0]
    edges = torch.linspace(0, float(torch.cat([own, held_out]).quantile(0.995)), 41).tolist()
    for values, name, colour in ((held_out, "held-out images", plots.TARGET), (own, "samples", plots.MADE)):
        right.hist(values.tolist(), edges, density=True, alpha=0.6, color=colour, label=f"{len(values)} {name}")
    right.axvline(float(held_out.quantile(0.01)), color="black", ls="--", lw=0.8, label="nearest 1% of held-out ones")
    right.set(xlabel="distance to the nearest training image", yticks=[])
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    plots.save(figure, path)
