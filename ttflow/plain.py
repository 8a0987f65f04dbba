"""A tensor-train velocity by numpy alone, from the .npz of the same name beside this file: no torch, no repository.

python NAME.py 1000 > points.csv      # or, in Python: import NAME; NAME.velocity(x, t); NAME.sample(1000)
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
P = dict(np.load(FILE)) if FILE.is_file() else {}


def train(variables):
    """f (n, d) at variables (n,) each, z_1, ..., z_d and t: the product of the matrices G_p(z_p)."""
    product = np.ones((1, 1, 1, 1))
    for p, k in enumerate(P["order"]):
        x = np.clip(variables[k], *P[f"range{p}"])
        piece = np.searchsorted(P[f"ends{p}"], x, side="right")
        u = (x - P[f"origin{p}"][piece]) * P[f"rate{p}"][piece]
        core = P[f"core{p}"][piece]  # (n, powers, outputs or 1, r, r')
        factor = core[:, -1]
        for power in range(core.shape[1] - 2, -1, -1):
            factor = factor * u[:, None, None, None] + core[:, power]
        product = product @ factor
    return product[:, :, 0, 0]


def mixed(y, t):
    """The velocity of the Gaussian mixture, in the coordinates y (n, d) of the frame."""
    d = y.shape[1]
    weight, centre, spread, axes = np.split(P["components"], [1, 1 + d, 1 + 2 * d], axis=1)
    axes = axes.reshape(-1, d, d)
    along = (y - t * centre[:, None]) @ axes
    variance = (1 - t) ** 2 + t**2 * spread[:, None]
    logit = weight - (along**2 / variance + np.log(variance)).sum(2) / 2
    w = np.exp(logit - logit.max(0))
    each = centre[:, None] + (along * (t * spread[:, None] - (1 - t)) / variance) @ axes.swapaxes(1, 2)
    return ((w / w.sum(0))[:, :, None] * each).sum(0)


def velocity(x, t):
    """(n, d) at points x (n, d) and a time t: noise at 0, data at 1."""
    (m0, m1), (v0, v1, c), rotation = P["means"], P["variances"], P["rotation"]
    scale = np.sqrt((1 - t) ** 2 * v0 + t**2 * v1 + 2 * t * (1 - t) * c)
    slope, y = (t * v1 - (1 - t) * v0 + (1 - 2 * t) * c) / scale, x @ rotation
    z, left = (y - ((1 - t) * m0 + t * m1) @ rotation) / scale, max(1 - t, P["last"])
    alone = mixed(y, t) if "components" in P else z * slope + (m1 - m0) @ rotation
    v = alone + train([*z.T, np.full(len(x), t)])
    end, frame = y + left * v, y + left * alone
    inside = np.clip(end, np.minimum(P["bound"][0], frame), np.maximum(P["bound"][1], frame))
    return np.where(inside == end, v, (inside - y) / left) @ rotation.T


def sample(n, steps=50, seed=0):
    """n points, by Runge and Kutta's method of order 4."""
    x, h = np.random.default_rng(seed).standard_normal((n, P["rotation"].shape[0])), 1 / steps
    for t in np.arange(steps) * h:
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, t + h))
    return x
