"""Functional tensor trains and their fit: known functions and ranks, normal equations against plain least squares."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import checkpoint
from ttflow import als, bases, normal, tt
from ttflow.sweeper import Adapt, Sweeper, Sweeps

F64 = torch.float64


def seeded(k=0):
    return torch.Generator().manual_seed(k)


def cube(n, d, k=0):
    return torch.rand(n, d, generator=seeded(k), dtype=F64) * 2 - 1


def legendre(d, n):
    return [bases.Legendre(n, -1, 1) for _ in range(d)]


def mixed():
    """Bases of several kinds and sizes, for four variables."""
    return [bases.BSplines(6, -1, 1), bases.Legendre(4, -1, 1), bases.Gaussians(5, -1, 1), bases.BSplines(5, -1, 1, 2)]


def example(outputs=3, output=1, rank=3, order=(2, 0, 3, 1)):
    return tt.random_train(mixed(), rank, outputs, seeded(), order, output)


def fixed(x, y):
    return lambda k, data=(x, y): data


def worst(train, x, y):
    return (train(x) - y).abs().max().item()


# ---- evaluation


@pytest.mark.parametrize("output", [0, 1, 3])
def test_a_train_is_the_sum_over_its_bonds(output):
    train, x = example(output=output), cube(7, 4) * 1.3
    want = torch.zeros(7, 3, dtype=F64)
    for n in range(7):
        for k in range(3):
            product = torch.ones(1, 1, dtype=F64)
            for p, variable in enumerate(train.order):
                core = train.cores[p][:, :, min(k, train.cores[p].shape[2] - 1)]
                values = train.bases[p](x[n : n + 1, variable])[0]
                product = product @ torch.einsum("j,ajb->ab", values, core)
            want[n, k] = product.item()
    torch.testing.assert_close(train(x), want, rtol=1e-12, atol=1e-13)
    assert train.n_parameters == sum(core.numel() for core in train.cores) and train.ranks == [3, 3, 3]
    for common in ([0], [1], [2], [3], [0, 2], [1, 2, 3], [0, 1, 2, 3]):  # the same for all rows, wherever it stands
        shared = [x[:1, k] if k in common else x[:, k] for k in range(4)]
        same = torch.stack([column.expand(7) for column in shared], 1)
        torch.testing.assert_close(train.at(shared).expand(7, 3), train(same), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("output", [0, 2, 3])
def test_partial_derivatives_are_those_of_finite_differences_and_of_autograd(output):
    train, x, h = example(output=output), cube(20, 4) * 0.9, 1e-5
    wanted = [(0, 0), (1, 1), (2, 2), (3, 0)]
    value, slopes = train.value_and_diagonal(x.unbind(1), wanted)
    torch.testing.assert_close(value, train(x), rtol=1e-12, atol=1e-13)
    for column, (variable, k) in enumerate(wanted):
        shift = h * torch.eye(4, dtype=F64)[variable]
        difference = (train(x + shift) - train(x - shift))[:, k] / (2 * h)
        torch.testing.assert_close(slopes[:, column], difference, rtol=0, atol=1e-7 * slopes.abs().max().item())
        at = x.clone().requires_grad_()
        given = torch.autograd.grad(train(at)[:, k].sum(), at)[0][:, variable]
        torch.testing.assert_close(slopes[:, column], given, rtol=1e-10, atol=1e-12)
    assert torch.equal(train.value_and_diagonal(x.unbind(1))[1], slopes[:, :3])


def test_separate_trains_are_one_function():
    parts = [tt.random_train(mixed(), 2, 1, seeded(k), (2, 0, 3, 1)) for k in range(3)]
    train, x = tt.SeparateTT(parts), cube(9, 4)
    assert torch.equal(train(x), torch.cat([part(x) for part in parts], 1)) and train.outputs == 3
    assert torch.equal(train.at(x.unbind(1)), train(x))
    value, slopes = train.value_and_diagonal(x.unbind(1))
    assert torch.equal(value, torch.cat([part.value_and_diagonal(x.unbind(1), [(0, 0)])[0] for part in parts], 1))
    at = x.clone().requires_grad_()
    for k in range(3):
        given = torch.autograd.grad(train(at)[:, k].sum(), at)[0][:, k]
        torch.testing.assert_close(slopes[:, k], given, rtol=1e-10, atol=1e-12)
    assert train.n_parameters == sum(part.n_parameters for part in parts)


def test_saved_trains_are_the_same_to_the_bit(tmp_path):
    x = cube(11, 4)
    parts = [tt.random_train(mixed(), 2, 1, seeded(k)) for k in range(2)]
    for train in (example(), example().float(), tt.SeparateTT(parts)):
        checkpoint.save(tmp_path / "a.pt", {"train": train.state()})
        again = tt.from_state(checkpoint.load(tmp_path / "a.pt")["train"])
        assert type(again) is type(train) and torch.equal(again(x), train(x)) and again.ranks == train.ranks
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(again.buffers(), train.buffers()))


def test_ranks_are_lowered_to_what_the_neighbours_admit():
    assert tt.feasible_ranks([2, 3, 4, 5], 100) == [2, 6, 5]
    assert tt.feasible_ranks([2, 3, 4, 5], [1, 6, 6]) == [1, 3, 5]
    train = tt.random_train(legendre(3, 3), 50, 4, seeded(), output=2)
    assert train.ranks == [3, 9] and [core.shape[2] for core in train.cores] == [1, 1, 4]


# ---- local problems


def design(train, x, p):
    """The matrix of the local problem at p, (N o, a n o_p b), by perturbing the core entry by entry."""
    cores = train.cores
    columns = []
    for i in range(cores[p].numel()):
        unit = torch.zeros(cores[p].numel(), dtype=F64)
        unit[i] = 1
        changed = [unit.view_as(core) if q == p else core for q, core in enumerate(cores)]
        columns.append(tt.FunctionalTT(list(train.bases), changed, train.order, train.output)(x).flatten())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("p", range(4))
@pytest.mark.parametrize("outputs", [1, 3])
def test_normal_equations_in_pieces_are_those_of_the_whole_least_squares_problem(p, outputs, monkeypatch):
    monkeypatch.setattr(normal, "ROWS", 13)
    train, x = example(outputs, 1, 2), cube(150, 4) * 1.1
    y = torch.randn(150, outputs, generator=seeded(3), dtype=F64)
    a, n, o, b = train.cores[p].shape
    direct = design(train, x, p)
    assert direct.shape == (150 * outputs, a * n * o * b)
    whole, right = direct.T @ direct, direct.T @ y.flatten()
    whole = whole.view(a, n, o, b, a, n, o, b)
    pieces = [(x[i : i + 40], y[i : i + 40]) for i in range(0, 150, 40)]
    for data, cache in (((x, y), 1 << 30), (pieces, 1 << 30), (pieces, 0)):
        blocks = normal.Blocks(train, data, cache)
        matrix, rhs, square, rows = normal.normal_equations(blocks, train.cores, p)
        assert rows == 150 and square == pytest.approx(y.square().sum().item(), rel=1e-12)
        for k in range(o):
            part = whole[:, :, k, :, :, :, k].reshape(a * n * b, a * n * b)
            torch.testing.assert_close(matrix, part, rtol=1e-11, atol=1e-11 * part.abs().max().item())
        want = right.view(a, n, o, b).permute(0, 1, 3, 2).reshape(a * n * b, o)
        torch.testing.assert_close(rhs, want, rtol=1e-11, atol=1e-11 * want.abs().max().item())
        fast, fast_rhs, *_ = normal.normal_equations(blocks, train.cores, p, single=True)
        for near, exact in ((fast, matrix), (fast_rhs, rhs)):
            assert 0 < (near - exact).abs().max() < 1e-6 * exact.abs().max()  # float32, summed in float64


@pytest.mark.parametrize("moves", [True, False])
def test_a_solved_core_is_the_least_squares_solution(moves):
    train, x = example(rank=2), cube(400, 4)
    y = torch.randn(400, 3, generator=seeded(3), dtype=F64)
    sweeper = Sweeper(train, x, Sweeps(ridge=0.0, moves=moves))
    blocks = normal.Blocks(train, (x, y))
    for p, q in ((0, 1), (1, 2), (2, 3), (3, 2), (2, 1)):
        error = sweeper.solve(p, blocks)
        now = sweeper.result()
        assert error == pytest.approx((now(x) - y).square().sum(1).mean().item(), rel=1e-9)
        best = torch.linalg.lstsq(design(now, x, p), y.flatten()[:, None]).solution
        fitted = (design(now, x, p) @ best).view(400, 3)
        torch.testing.assert_close(now(x), fitted, rtol=0, atol=1e-8)
        sweeper.move(p, q, blocks)
        if not moves:
            torch.testing.assert_close(sweeper.result()(x), now(x), rtol=0, atol=1e-10)
        core = sweeper.cores[p].permute(3, 1, 2, 0) if q < p else sweeper.cores[p]
        flat = core.reshape(-1, core.shape[3])
        torch.testing.assert_close(flat.T @ flat, torch.eye(flat.shape[1], dtype=F64), rtol=0, atol=1e-12)
        assert sweeper.output == (q if moves else 1)


def test_an_interface_is_kept_until_a_core_in_it_changes():
    train, x = example(rank=2), cube(60, 4)
    block = normal.Block(train, (x, torch.zeros(60, 3, dtype=F64)))
    left = block.interface(3, train.cores, right=False)
    right = block.interface(0, train.cores, right=True)
    assert sorted(block.left) == sorted(block.right) == [0, 1, 2, 3]
    assert block.interface(3, train.cores, right=False) is left
    block.forget(1)
    assert sorted(block.left) == [0, 1] and sorted(block.right) == [1, 2, 3]
    changed = train.cores
    changed[1] = 2 * changed[1]
    torch.testing.assert_close(block.interface(3, changed, right=False), 2 * left, rtol=1e-14, atol=0)
    torch.testing.assert_close(block.interface(0, changed, right=True), 2 * right, rtol=1e-14, atol=0)


# ---- fits of known functions

KNOWN = {
    "separable": (1, True, lambda z: (z[:, :1] - 2) * torch.exp(z[:, 1:2] / 2) * torch.cos(z[:, 2:3])),
    "sum of sines": (2, True, lambda z: torch.sin(2 * z).sum(1, keepdim=True)),
    "polynomial": (2, True, lambda z: z[:, :1] * z[:, 1:2] - 2 * z[:, 2:3] ** 3 * z[:, 1:2] ** 2),
    "three outputs": (3, False, lambda z: torch.stack([z[:, 0] * z[:, 2], z[:, 1] ** 3 + z[:, 2], z.sin().prod(1)], 1)),
    # where the outputs have moved to the last core, the bond before it carries z0, z1^3, 1 and sin z0 sin z1
    "moving": (4, True, lambda z: torch.stack([z[:, 0] * z[:, 2], z[:, 1] ** 3 + z[:, 2], z.sin().prod(1)], 1)),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_function_of_low_rank_is_recovered_at_its_rank_and_not_below(name):
    rank, moves, f = KNOWN[name]
    x, new = cube(1000, 3), cube(500, 3, 1)
    y = f(x)
    for r in (rank, rank - 1):
        if r:
            start = tt.random_train(legendre(3, 12), r, y.shape[1], seeded(5), output=1)
            sweeps = Sweeps(150 if r == rank else 20, ridge=0.0, moves=moves, tolerance=0.0, patience=10)
            train, _ = als.fit(start, fixed(x, y), sweeps)
            error = worst(train, new, f(new))
            assert error < 1e-8 if r == rank else error > 1e-2, (r, error)


@pytest.mark.parametrize("moves", [True, False])
def test_a_random_train_is_recovered_on_splines(moves):
    truth = tt.random_train([bases.BSplines(8, -1, 1) for _ in range(4)], [2, 3, 2], 2, seeded(2), (3, 1, 0, 2), 1)
    x = cube(4000, 4)
    start = tt.random_train(list(truth.bases), [4, 6, 4] if moves else [2, 3, 2], 2, seeded(7), truth.order, 1)
    train, history = als.fit(start, fixed(x, truth(x)), Sweeps(40, ridge=0.0, moves=moves, tolerance=0.0))
    assert worst(train, cube(500, 4, 1), truth(cube(500, 4, 1))) < 1e-8 and train.order == truth.order
    assert history[-1]["parameters"] == train.n_parameters and history[-1]["ranks"] == train.ranks


def test_the_error_never_rises_while_the_outputs_stay():
    x = cube(800, 4)
    y = torch.stack([torch.sin(3 * x[:, 0] * x[:, 1]), torch.cos(x.sum(1))], 1)
    y = y + 0.1 * torch.randn(y.shape, generator=seeded(4), dtype=F64)
    start = tt.random_train(legendre(4, 6), 3, 2, seeded(1), output=2)
    sweeper = Sweeper(start, x, Sweeps(ridge=0.0, moves=False))
    blocks = normal.Blocks(start, (x, y))
    errors = [sweeper.solve(0, blocks)]
    for p, q in [(0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 0)] * 3:
        sweeper.move(p, q, blocks)
        errors.append(sweeper.solve(q, blocks))
    assert all(b <= a * (1 + 1e-10) for a, b in zip(errors, errors[1:])) and errors[-1] < 0.5 * errors[0]


# ---- ranks


@pytest.mark.parametrize("moves", [True, False])
def test_adaptation_finds_the_ranks(moves):
    x = cube(2000, 4)
    a, b, c, d = x.unbind(1)
    adapt = Adapt(max_rank=6, growth=1)
    sweeps = Sweeps(60, ridge=0.0, moves=moves, adapt=adapt, uniform=0.0, tolerance=0.0, patience=9)
    one = (a * b + c**2 * d + b**2 * d)[:, None]  # left of the second bond: ab, 1, b^2
    start = tt.random_train(legendre(4, 6), 1, 1, seeded(3))
    train, history = als.fit(start, fixed(x, one), sweeps)
    assert train.ranks == [2, 3, 2] and worst(train, x, one) < 1e-8
    assert history[0]["ranks"] != [2, 3, 2]
    two = torch.stack([a * b, b * c**2 + a], 1)  # {a, 1} before the outputs, {c^2, 1} behind them; d takes no part
    start = tt.random_train(legendre(4, 6), 1, 2, seeded(3), output=1)
    train, _ = als.fit(start, fixed(x, two), sweeps)
    assert worst(train, x, two) < 1e-8
    if train.output == 1:
        assert train.ranks == [2, 2, 1]
    else:  # at an end, a bond carries both outputs
        assert train.output in (0, 3) and max(train.ranks) <= 3


def test_noise_is_not_worth_a_rank():
    x = cube(4000, 3)
    clean = torch.sin(2 * x).sum(1, keepdim=True)
    y = clean + 0.3 * torch.randn(clean.shape, generator=seeded(4), dtype=F64)
    start = tt.random_train(legendre(3, 8), 1, 1, seeded(3))
    train, _ = als.fit(start, fixed(x, y), Sweeps(12, ridge=0.0, uniform=0.0, adapt=Adapt()))
    assert train.ranks == [2, 2]
    assert (train(x) - clean).square().mean().sqrt() < 2 * 0.3 * math.sqrt(train.n_parameters / 4000)
    noise = 0.3 * torch.randn(4000, 1, generator=seeded(5), dtype=F64)
    nothing, _ = als.fit(start, fixed(x, noise), Sweeps(8, adapt=Adapt()))
    assert nothing.ranks == [1, 1]


def test_a_budget_is_kept():
    x = cube(2000, 4)
    y = torch.exp(-(x.sum(1, keepdim=True) ** 2) * 3).expand(-1, 2) * x[:, :2]
    for moves in (True, False):
        for budget in (60, 200):
            start = tt.random_train(legendre(4, 6), 1, 2, seeded(3), output=1)
            sweeps = Sweeps(10, moves=moves, adapt=Adapt(budget=budget), tolerance=0.0)
            train, history = als.fit(start, fixed(x, y), sweeps)
            assert train.n_parameters <= budget and (budget == 60 or train.n_parameters > 100)
            errors = [row["train"] for row in history]
            assert errors[-1] < errors[0]


# ---- stability, memory, data


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_a_problem_without_full_rank_stays_finite(ridge):
    x = cube(12, 3)
    x[:, 2] = x[:, 1]
    x = x.repeat(3, 1)
    y = torch.sin(3 * x[:, :2])
    for kind in (bases.BSplines(8, -1, 1), bases.Gaussians(20, -1, 1, 2.0), bases.Legendre(9, -1, 1)):
        start = tt.random_train([kind] * 3, 4, 2, seeded(1), output=1)
        for options in ({"moves": True}, {"moves": False}, {"adapt": Adapt(max_rank=6)}):
            train, history = als.fit(start, fixed(x, y), Sweeps(6, ridge=ridge, **options))
            assert all(core.isfinite().all() for core in train.cores)
            assert all(math.isfinite(row["train"]) for row in history)
            assert worst(train, x, y) < (1e-2 if options == {"moves": False} or ridge else 0.2)
            assert train(cube(100, 3, 2) * 3).isfinite().all()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() > 8 * self.numel:
            self.numel = out.untyped_storage().nbytes() // 8
        return out


class Lazy:
    """n blocks of 512 rows that are made when they are asked for."""

    def __init__(self, n):
        self.n, self.asked = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked += 1
        x = cube(512, 3, i)
        return x, torch.sin(2 * x)


def test_memory_does_not_grow_with_the_number_of_rows():
    sizes = []
    for n in (2, 12):
        data = Lazy(n)
        start = tt.random_train([bases.BSplines(8, -1, 1)] * 3, 3, 3, seeded(1), output=1)
        with Largest() as largest:
            train, _ = als.fit(start, lambda k: data, Sweeps(2, ridge=0.0, moves=False, cache=0))
        assert data.asked > 5 * n, "nothing was kept"
        x = torch.cat([cube(512, 3, i) for i in range(n)])
        same, _ = als.fit(start, fixed(x, torch.sin(2 * x)), Sweeps(2, ridge=0.0, moves=False))
        torch.testing.assert_close(train(x), same(x), rtol=0, atol=1e-7 + (n == 2) * 1e-5)
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1]


def test_new_draws_average_the_noise_out():
    def noisy(k):
        x = cube(600, 2, k)
        return x, torch.sin(2 * x[:, :1]) * x[:, 1:] + torch.randn(600, 1, generator=seeded(100 + k), dtype=F64)

    x = cube(2000, 2, 999)
    clean = torch.sin(2 * x[:, :1]) * x[:, 1:]
    start = tt.random_train(legendre(2, 6), 1, 1, seeded(1))
    seen: list[int] = []

    def record(k):
        seen.append(k)
        return noisy(k)

    als.fit(start, record, Sweeps(5))
    assert seen == [0, 1, 2, 3, 4]
    first = noisy(0)
    once, _ = als.fit(start, lambda k: first, Sweeps(6, tolerance=0.0))
    held_out = (x, clean)
    fresh, history = als.fit(start, noisy, Sweeps(20, tolerance=0.0, patience=20), held_out)
    assert (fresh(x) - clean).square().mean() < 0.8 * (once(x) - clean).square().mean() and len(history) == 20


def test_it_stops_on_held_out_rows_and_returns_the_best():
    x, new = cube(60, 3), cube(2000, 3, 1)
    y = x.prod(1, keepdim=True) + 0.05 * torch.randn(60, 1, generator=seeded(2), dtype=F64)
    held_out = (new, new.prod(1, keepdim=True))
    start = tt.random_train(legendre(3, 5), 3, 1, seeded(1))
    train, history = als.fit(start, fixed(x, y), Sweeps(50, ridge=1e-8, patience=4), held_out)
    errors = [row["validation"] for row in history]
    assert len(errors) < 50 and (train(new) - held_out[1]).square().mean().item() == pytest.approx(
        min(errors), rel=1e-9
    )
    assert history[-1]["train"] < history[0]["train"] and [row["sweep"] for row in history] == list(range(len(errors)))


def test_a_warm_start_goes_on_where_it_was():
    x = cube(1000, 3)
    y = torch.sin(2 * x)
    start = tt.random_train(legendre(3, 12), 2, 3, seeded(1), output=1)
    train, history = als.fit(start, fixed(x, y), Sweeps(4, ridge=0.0, moves=False, tolerance=0.0))
    again, more = als.fit(train, fixed(x, y), Sweeps(2, ridge=0.0, moves=False, tolerance=0.0))
    assert more[0]["train"] <= history[-1]["train"] * (1 + 1e-9) + 1e-15 and history[0]["train"] > 1e-3
    assert worst(again, x, y) <= worst(train, x, y) + 1e-6


def test_separate_trains_are_fitted_one_by_one():
    x = cube(500, 3)
    y = torch.sin(2 * x)
    starts = tt.SeparateTT([tt.random_train(legendre(3, 12), 2, 1, seeded(k)) for k in range(3)])
    train, history = als.fit_each(starts, fixed(x, y), Sweeps(60, ridge=0.0, tolerance=0.0), (x, y))
    assert worst(train, x, y) < 1e-8 and {row["output"] for row in history} == {0, 1, 2}
    pieces = [(x[:200], y[:200]), (x[200:], y[200:])]
    same, _ = als.fit_each(starts, lambda k: pieces, Sweeps(60, ridge=0.0, tolerance=0.0))
    torch.testing.assert_close(same(x), train(x), rtol=0, atol=1e-8)


# ---- bad input

X = cube(20, 2)
START = tt.random_train(legendre(2, 3), 2, 1, seeded())
NAN = torch.full((20, 1), math.nan)


def fit_to(x=X, y=X[:, :1], **options):
    return als.fit(START, fixed(x, y), Sweeps(**options))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: tt.random_train(legendre(2, 3), 0, 1, seeded()), r"ranks \[0\] for 2 variables: give 1 numbers"),
        (lambda: tt.random_train(legendre(3, 3), [2], 1, seeded()), "for 3 variables: give 2 numbers"),
        (lambda: tt.FunctionalTT(START.bases, START.cores, [0, 0]), r"order is \[0, 0\]: give each of 0 to 1 once"),
        (lambda: tt.FunctionalTT(START.bases, START.cores[:1]), "do not form a train"),
        (lambda: tt.FunctionalTT(START.bases, START.cores[::-1]), "do not form a train on bases of"),
        (lambda: START(torch.zeros(3, 5)), r"has 2 variables, x has shape \(3, 5\)"),
        (lambda: fit_to(y=NAN), "NaN or infinity"),
        (lambda: fit_to(x=X[:, :1]), r"inputs \(20, 1\) and targets \(20, 1\) do not fit the train"),
        (lambda: fit_to(y=X), r"targets \(20, 2\) do not fit the train \(2 variables, 1 outputs\)"),
        (lambda: fit_to(X[:1], X[:1, :1]), r"1 row\(s\) of data: a fit needs at least 2"),
        (lambda: Sweeps(0), "0 sweeps: give at least 1"),
        (lambda: Sweeps(ridge=-1.0), "the ridge is -1"),
        (lambda: Sweeps(ridge=math.nan), "the ridge is nan"),
        (lambda: fit_to(adapt=Adapt(max_rank=0)), "give 1 numbers of at least 1"),
        (lambda: fit_to(adapt=Adapt(budget=5)), "a budget of 5 parameters: rank 1 alone needs 6"),
    ],
)
def test_mistakes_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- against teneva
def test_the_fit_agrees_with_tenevas():
    """One output, polynomials of the same degree, the same rows with noise: the least squares solution is one."""
    teneva = pytest.importorskip("teneva")
    import numpy as np

    truth = tt.random_train(legendre(3, 4), 2, 1, seeded(4))
    x = cube(3000, 3, k=1)
    y = truth(x)
    y = y + 0.05 * y.std() * torch.randn(y.shape, generator=seeded(2), dtype=torch.float64)
    start = tt.random_train(legendre(3, 4), 2, 1, seeded(5))
    ours, _ = als.fit(start, fixed(x, y), Sweeps(60, ridge=1e-12, tolerance=0.0))
    np.random.seed(0)
    cores = teneva.als_func(x.numpy(), y[:, 0].numpy(), teneva.rand([4, 4, 4], 2), -1.0, 1.0, nswp=60, lamb=1e-9)
    at = cube(500, 3, k=3)
    theirs = torch.from_numpy(teneva.func_get(at.numpy(), cores, -1.0, 1.0))
    assert (ours(at)[:, 0] - theirs).square().mean().sqrt() < 1e-3 * theirs.std()
    assert (ours(at)[:, 0] - truth(at)[:, 0]).square().mean().sqrt() < 0.02 * y.std()
