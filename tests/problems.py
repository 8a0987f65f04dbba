"""Differential equations with known solutions, and how errors fall with the number of steps."""

from __future__ import annotations

import math

import torch

from common.solvers import integrate


class Riccati:
    """dx/dt = x^2 cos t, solved by x(t) = x(0) / (1 - x(0) sin t)."""

    start = torch.tensor([[-1.0], [-0.3], [0.5], [0.7]], dtype=torch.float64)

    def exact(self, t):
        return self.start / (1 - self.start * math.sin(t))

    def velocity(self, x, t):
        return x**2 * torch.cos(t)[:, None]


class Gaussians:
    """Linear path from N(M0, S0^2) to N(M1, S1^2), independent: its velocity, map and score in closed form."""

    m0, s0, m1, s1 = 0.0, 1.0, 1.5, 0.4
    start = torch.tensor([[-2.0], [-0.5], [0.3], [1.7]], dtype=torch.float64)

    def mean(self, t):
        return (1 - t) * self.m0 + t * self.m1

    def variance(self, t):
        return (1 - t) ** 2 * self.s0**2 + t**2 * self.s1**2

    def exact(self, t):
        return self.mean(t) + math.sqrt(self.variance(t)) / self.s0 * (self.start - self.m0)

    def velocity(self, x, t):
        t = t[:, None]
        slope = (t * self.s1**2 - (1 - t) * self.s0**2) / self.variance(t)
        return self.m1 - self.m0 + slope * (x - self.mean(t))

    def score(self, x, t):
        t = t[:, None]
        return (self.mean(t) - x) / self.variance(t)


class Bridge(Gaussians):
    """IDFF's bridge between the same Gaussians: its variance has sigma^2 t (1 - t) added; both heads exact."""

    sigma = 0.8

    def variance(self, t):
        return super().variance(t) + self.sigma**2 * t * (1 - t)

    def heads(self, x, t):
        score = self.score(x, t)
        t = t[:, None]
        x1_hat = self.m1 + t * self.s1**2 / self.variance(t) * (x - self.mean(t))
        return x1_hat, self.sigma**2 / 2 * score

    def velocity(self, x, t):
        t = t[:, None]
        rate = t * self.s1**2 - (1 - t) * self.s0**2 + self.sigma**2 * (1 - 2 * t) / 2
        return self.m1 - self.m0 + rate / self.variance(t) * (x - self.mean(t))


def slope_of(counts, errors):
    """Least-squares slope of -log(error) over log(number of steps)."""
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return -((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()


def error_of(problem, method, times):
    start, end = problem.exact(times[0].item()), problem.exact(times[-1].item())
    return (integrate(problem.velocity, start, times, method) - end).abs().max().item()


class Mixture:
    """N(0, I) to a mixture of Gaussians in the plane, independent coupling: the exact velocity."""

    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-0.5, -2.0]], dtype=torch.float64)
    spread = 0.3

    def velocity(self, x, t):
        t = t[:, None]
        variance = (1 - t) ** 2 + t**2 * self.spread**2
        away = x[:, None] - t[..., None] * self.centres
        weights = torch.softmax(-away.square().sum(-1) / (2 * variance), dim=1)
        means = self.centres + (t * self.spread**2 / variance)[..., None] * away
        x1_hat = (weights[..., None] * means).sum(1)
        x0_hat = (weights[..., None] * ((1 - t) / variance)[..., None] * away).sum(1)
        return x1_hat - x0_hat
