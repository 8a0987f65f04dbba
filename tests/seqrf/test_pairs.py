"""Pairs of sequential reflow: exact where the flow is known, the same whoever makes them, safe from kills."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from common import runtime
from common.generate import noise_for
from common.images import from_uint8
from common.runtime import generator
from common.solvers import SOLVERS
from problems import Gaussians, Mixture
from seqrf import manifest as M
from seqrf import pairs as P
from seqrf import shards as S
from seqrf.endpoints import Pool, choose_steps, fewest, segment_times
from seqrf.manifest import PairOptions, Teacher
from seqrf.plan import plan
from seqrf.segments import uniform_edges
from tiny import ROOT

GAUSSIANS = Gaussians()
RK4 = {"solver": "rk4", "n_steps": 1}
IMAGES = torch.randint(0, 256, (30, 2, 4, 4), generator=generator(0), dtype=torch.uint8)
LABELS = torch.arange(30) % 3


def points(n: int = 500) -> torch.Tensor:
    """Data of the Gaussian teacher, (n, 1)."""
    return GAUSSIANS.m1 + GAUSSIANS.s1 * torch.randn(n, 1, generator=generator(1))


def generate(folder, velocity, data, labels=None, name="", shape=None, teacher="a" * 64, k=4, edges=None, **options):
    """Pairs by the names of all that there is to say about them."""
    work = {key: options.pop(key) for key in ("rank", "world", "shards") if key in options}
    facts = Teacher(teacher, tuple(data.shape[1:]) if shape is None else shape)
    options = PairOptions(edges=edges or uniform_edges(k), **options)
    return P.generate(folder, velocity, Pool(data, labels, name), facts, options, progress=False, **work)


SMALL = {"n_pairs": 40, "shard_size": 16, "ends": "float32"}


def make(folder, data=None, velocity=GAUSSIANS.velocity, **options):
    """Pairs of a small set, opened."""
    generate(folder, velocity, points() if data is None else data, **SMALL | options)
    return P.Pairs.open(folder)


def by_label(x, t, y):
    """A teacher whose flow moves by the label in unit time."""
    return torch.zeros_like(x) + y[:, None, None, None]


def make_images(folder, **options):
    return make(folder, IMAGES, by_label, labels=LABELS, **RK4, **{"ends": "float16", **options})


def everything(pairs):
    return pairs.batch(range(len(pairs)))


def records(folder):
    """The bytes of every shard after its header, which tells the time."""
    return {path.name: path.read_bytes()[S.HEADER :] for path in sorted(folder.glob("shard-*.pairs"))}


# ---- what a pair is


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"solver": "dopri5", "tolerance": 1e-6}, 1e-5),
        ({"solver": "auto", "tolerance": 1e-4}, 5e-4),
        ({"solver": "ab4", "n_steps": (40, 40, 40, 80)}, 1e-3),
        ({"solver": "dopri5", "tolerance": 1e-6, "edges": (0, 0.1, 0.5, 1)}, 1e-5),
        ({"solver": "rk4", "n_steps": 12, "k": 1}, 1e-4),
    ],
)
def test_ends_are_those_of_the_exact_flow(tmp_path, options, error):
    batch = everything(make(tmp_path, **options))
    for x_a, x_b, t_a, t_b in zip(*batch[:4]):
        ratio = math.sqrt(GAUSSIANS.variance(t_b) / GAUSSIANS.variance(t_a))
        exact = GAUSSIANS.mean(t_b) + ratio * (x_a - GAUSSIANS.mean(t_a))
        assert abs(x_b - exact) < error


@pytest.mark.parametrize("edges", [(0, 0.25, 0.5, 0.75, 1), (0, 1 / 3, 0.9, 1)])
def test_the_ends_of_segments_chain(tmp_path, edges):
    data, k, n = points(2000), len(edges) - 1, 1500
    pairs = make(tmp_path, data, edges=edges, n_pairs=n * k, shard_size=999, solver="dopri5", tolerance=1e-5)
    batch = everything(pairs)
    assert batch.segment.bincount().tolist() == [n] * k and batch.segment[: 2 * k].tolist() == [*range(k), *range(k)]
    of = [
        {name: value[batch.segment == s] for name, value in zip(batch._fields, batch) if value is not None}
        for s in range(k)
    ]
    assert all(torch.equal(of[s]["t_a"], torch.full((n,), edges[s])) for s in range(k))
    assert of[0]["t_a"].max() == 0 and of[-1]["t_b"].min() == 1
    for before, after in pairwise(of):
        assert torch.equal(before["t_b"], after["t_a"])
        # where one segment ends, the next begins: in distribution, for its pairs are others
        assert before["x_b"].mean() == pytest.approx(after["x_a"].mean().item(), abs=0.12)
        assert before["x_b"].std() == pytest.approx(after["x_a"].std().item(), rel=0.08)


def test_a_start_is_a_real_sample_mixed_with_the_pairs_own_noise(tmp_path):
    pairs = make_images(tmp_path, seed=3)
    batch = everything(pairs)
    noise = noise_for(range(40), (2, 4, 4), 3, "pair")
    assert torch.equal(batch.x_a[::4], noise[::4])
    used = set()
    for p in (p for p in range(40) if p % 4):
        t = p % 4 / 4
        distance = (((batch.x_a[p] - (1 - t) * noise[p]) / t) - from_uint8(IMAGES)).abs().flatten(1).amax(1)
        row = int(distance.argmin())
        assert distance[row] < 1e-5 and LABELS[row] == batch.y[p]
        used.add(row)
    assert len(used) > 15  # of 30 in as many draws: 19 expected
    moved = (batch.x_b - batch.x_a) / (batch.t_b - batch.t_a)[:, None, None, None]
    assert torch.allclose(moved, batch.y[:, None, None, None].float().expand_as(moved), atol=0.02)  # float16


def test_the_start_read_is_the_start_solved_to_the_last_bit(tmp_path):
    seen = []

    def velocity(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    for data in (IMAGES, from_uint8(IMAGES), from_uint8(IMAGES).half()):
        seen.clear()
        pairs = make(tmp_path / str(data.dtype), data, velocity, solver="euler", n_steps=1, shard_size=40)
        batch = everything(pairs)
        solved = torch.cat(seen[1:])  # the first was a look at the teacher
        assert torch.equal(solved, torch.cat([batch.x_a[batch.segment == s] for s in range(4)]))
        assert torch.equal(batch.x_a, batch.x_b)


def test_pixels_at_the_end_may_be_uint8(tmp_path):
    coarse, fine = everything(make_images(tmp_path / "a", ends="uint8")), everything(make_images(tmp_path / "b"))
    inner = fine.segment < 3
    assert torch.equal(coarse.x_a, fine.x_a) and torch.equal(coarse.x_b[inner], fine.x_b[inner])
    assert (coarse.x_b - fine.x_b.clamp(-1, 1))[~inner].abs().max() <= 0.5 / 127.5 + 1e-3
    sizes = [M.read_manifest(tmp_path / name).size(0) for name in "ab"]
    assert sizes[1] - sizes[0] == 4 * 32  # of the 16 pairs of a shard 4, 32 numbers


def test_plain_reflow_needs_no_data(tmp_path):
    generate(tmp_path, GAUSSIANS.velocity, None, k=1, shape=(1,), n_pairs=20, tolerance=1e-5)
    batch = everything(P.Pairs.open(tmp_path, k=1, shape=(1,)))
    assert torch.equal(batch.x_a, noise_for(range(20), (1,), 0, "pair")) and batch.y is None
    assert (batch.x_b - 1.5 - 0.4 * batch.x_a).abs().max() < 2e-3
    assert M.read_manifest(tmp_path).size(0) == 20 * 2  # nothing but the ends


def mixture_data(n=500):
    """Data of the Mixture teacher, (n, 2)."""
    modes = Mixture.centres[torch.randint(3, (n,), generator=generator(1))].float()
    return modes + Mixture.spread * torch.randn(n, 2, generator=generator(0))


def test_auto_is_as_good_as_dopri5_and_never_dearer(tmp_path):
    velocity, data = Mixture().velocity, mixture_data()
    made = {
        solver: make(tmp_path / solver, data, velocity, n_pairs=256, shard_size=256, solver=solver, tolerance=1e-4)
        for solver in ("auto", "dopri5")
    }
    steps = made["auto"].manifest.n_steps
    assert len(steps) == 4 and made["auto"].nfe < made["dopri5"].nfe
    exact = everything(
        make(tmp_path / "rk4", data, velocity, n_pairs=256, shard_size=256, solver="rk4", n_steps=60)
    ).x_b
    ends = {solver: everything(pairs) for solver, pairs in made.items()}
    for segment in range(4):
        mine = ends["auto"].segment == segment
        errors = {s: (batch.x_b - exact)[mine].square().mean().sqrt().item() for s, batch in ends.items()}
        assert errors["auto"] <= 1.1 * max(errors["dopri5"], 1e-4)


def test_the_fewest_steps():
    for most in range(1, 12):
        for least in range(1, 15):
            tried = []
            found = fewest(lambda n: tried.append(n) or n >= least, most)
            assert found == (least if least <= most else 0) and max(tried) <= most


def test_auto_leaves_to_dopri5_what_rk4_is_no_good_at():
    """A rush in the first hundredth of the time: small steps there, large ones after it."""

    def velocity(x, t):
        return 50 * torch.exp(-((t / 0.01) ** 2))[:, None] * x

    pool = Pool(points())
    manifest = plan(pool, Teacher("", (1,)), PairOptions(64, uniform_edges(2), tolerance=1e-5))
    assert manifest.n_steps == ()
    steps = choose_steps(velocity, manifest, pool)
    assert steps[0] == 0 and steps[1] == 1


def test_the_steps_are_fine_near_the_data():
    times = segment_times(0.0, 1.0, 8)
    steps = times.diff()
    assert times[0] == 0 and times[-1] == 1 and (steps > 0).all() and (steps.diff() < 0).all() and steps[-1] < 0.01
    halves = torch.cat([segment_times(0.0, float(times[3]), 3), segment_times(float(times[3]), 1.0, 5)[1:]])
    assert torch.allclose(halves, times)  # one grid for the whole path, of which a segment takes its part


@pytest.mark.parametrize("solver", ["dopri5", "auto"])
def test_four_segments_cost_less_than_half_of_the_whole_path(tmp_path, solver):
    """The starts are free, and a quarter of the path is a quarter of the way."""
    options = {"n_pairs": 128, "shard_size": 128, "solver": solver}
    nfe = [make(tmp_path / f"{k}", mixture_data(), Mixture().velocity, k=k, **options).nfe for k in (1, 4)]
    assert nfe[0] > 2 * nfe[1] > 8


# ---- who makes them, and in which order


def test_neither_batches_nor_shards_nor_processes_matter(tmp_path):
    whole = make_images(tmp_path / "whole", shard_size=9)
    for rank in (1, 0):
        options = {"n_pairs": 40, "shard_size": 9, "batch_size": 2, "rank": rank, "world": 2, **RK4}
        generate(tmp_path / "two", by_label, IMAGES, LABELS, **options)
    assert records(tmp_path / "two") == records(tmp_path / "whole") and len(records(tmp_path / "two")) == 5
    other = make_images(tmp_path / "other", shard_size=100)
    for a, b in zip(everything(whole), everything(other), strict=True):
        assert torch.equal(a, b)
    pick = torch.tensor([39, 0, 17, 17, 8])
    for a, b in zip(whole.batch(pick), everything(whole), strict=True):
        assert torch.equal(a, b[pick])


def test_only_the_shards_asked_for_are_made(tmp_path):
    options = {"n_pairs": 40, "shard_size": 9, **RK4}
    generate(tmp_path, GAUSSIANS.velocity, points(), shards=range(1, 3), **options)
    assert list(records(tmp_path)) == ["shard-00001.pairs", "shard-00002.pairs"]
    with pytest.raises(ValueError, match="there is no shard 5: these pairs have the shards 0 to 4"):
        generate(tmp_path, GAUSSIANS.velocity, points(), shards=[5], **options)


def test_a_header_tells_the_cost(tmp_path):
    pairs = make(tmp_path, solver="rk4", n_steps=3)
    header = S.read_header(tmp_path, 2)
    # rk4: 4 evaluations a step, and one where the last step is Euler's
    assert pairs.nfe == header["nfe"] == (3 * 12 + 9) / 4 and header["calls"] == 45 and header["pairs"] == [32, 40]


# ---- kills and damage

PLACES = [str(place) for place in (ROOT, ROOT / "tests", ROOT / "tests" / "seqrf")]  # of this file and what it imports

CHILD = """
import contextlib, os, sys, time
sys.path[:0] = sys.argv[2:]
import test_pairs as T

whole = T.S.atomic_write

@contextlib.contextmanager
def half(path, **options):
    with whole(path, **options) as temporary:
        yield temporary
        if path.name == "shard-00001.pairs":
            os.truncate(temporary, temporary.stat().st_size // 2)
            print("half", flush=True)
            time.sleep(600)

T.S.atomic_write = half
T.make_images(T.P.Path(sys.argv[1]))
"""


def test_kill_9_in_the_middle_of_a_shard_loses_only_that_shard(tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, str(out), *PLACES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert list(records(out)) == ["shard-00000.pairs"] and len(list(out.glob(".shard-00001.pairs.*.tmp"))) == 1
    with pytest.raises(
        ValueError, match=r"2 of the 3 shards in .* cannot be used \(shard 1 missing, shard 2 missing\)"
    ):
        P.Pairs.open(out)
    before = (out / "shard-00000.pairs").stat().st_mtime_ns
    make_images(out)
    make_images(tmp_path / "whole")
    assert records(out) == records(tmp_path / "whole") and S.verify(out) == {}
    assert (out / "shard-00000.pairs").stat().st_mtime_ns == before and not list(out.glob(".*.tmp"))


def test_a_damaged_shard_is_named_and_made_again_alone(tmp_path):
    make(tmp_path, solver="dopri5")
    whole, times = records(tmp_path), {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    path = tmp_path / "shard-00001.pairs"
    text = bytearray(path.read_bytes())
    text[S.HEADER + 20] ^= 1
    path.write_bytes(text)
    P.Pairs.open(tmp_path)  # looks at sizes and headers only
    assert S.verify(tmp_path) == {1: "damaged (checksum)"} and S.verify(tmp_path, [0, 2]) == {}
    make(tmp_path, solver="dopri5")  # so does this: it makes what is missing
    assert S.verify(tmp_path) == {1: "damaged (checksum)"}
    again = {**SMALL, "solver": "dopri5", "shards": S.verify(tmp_path)}
    with pytest.raises(ValueError, match="holds pairs with teacher aaa.*, not bbb"):
        generate(tmp_path, GAUSSIANS.velocity, points(), teacher="bbb", **again)
    with pytest.raises(ValueError, match="holds pairs with data_hash"):
        generate(tmp_path, GAUSSIANS.velocity, points(400), **again)
    generate(tmp_path, GAUSSIANS.velocity, points(), **again)
    assert records(tmp_path) == whole and S.verify(tmp_path) == {}
    changed = {p.name for p in tmp_path.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"shard-00001.pairs"}


def test_shards_that_are_no_good_are_refused_and_filled_in(tmp_path):
    make_images(tmp_path, n_pairs=80)
    good = records(tmp_path)
    paths = [tmp_path / name for name in good]
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    paths[1].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(b"\0" * paths[2].stat().st_size)
    paths[3].unlink()
    found = {0: r"truncated \(1,000 of [\d,]+ bytes\)", 1: "of other pairs", 2: r"damaged \(header\)", 3: "missing"}
    for shard, text in found.items():
        assert re.fullmatch(text, S.flaw(tmp_path, M.read_manifest(tmp_path), shard))
    with pytest.raises(
        ValueError, match=r"4 of the 5 shards .* \(shard 0 truncated .*, \.\.\.\): generate with the same"
    ):
        P.Pairs.open(tmp_path)
    make_images(tmp_path, n_pairs=80)
    assert records(tmp_path) == good


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    pairs = make_images(tmp_path)
    os.truncate(tmp_path / "shard-00000.pairs", 600)
    with pytest.raises(ValueError, match="shard-00000.pairs has changed while it was read"):
        pairs.batch([3])


# ---- reading for training


def test_an_epoch_has_every_pair_once_and_every_batch_all_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(P, "WINDOW", 2)
    pairs = make_images(tmp_path, n_pairs=46, shard_size=8)  # six shards, the last one short: three windows
    batches = [pairs.indices(step, 8, seed=5) for step in range(23)]
    epochs = torch.cat(batches).split(46)
    assert len(epochs) == 4 and all(sorted(epoch.tolist()) == list(range(46)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    counts = torch.stack([(batch % 4).bincount(minlength=4) for batch in batches])
    assert counts.min() >= 1 and counts.max() <= 3
    assert torch.equal(pairs.indices(7, 8, seed=5), batches[7])  # whatever was asked for before
    assert not torch.equal(pairs.indices(7, 8, seed=6), batches[7])
    assert len(pairs.indices(0, 100, seed=5)) == 100  # larger than an epoch
    near = {int(p) // 8 for p in batches[0]}
    assert len(near) <= 2  # of a window's shards


def test_processes_share_a_batch_and_flips_turn_both_ends(tmp_path):
    pairs = make_images(tmp_path)
    plain, flipped = pairs.at(3, 16, seed=1), pairs.at(3, 16, seed=1, flip=True)
    turned = [not torch.equal(a, b) for a, b in zip(plain.x_a, flipped.x_a)]
    assert 3 <= sum(turned) <= 13
    for row, flip in enumerate(turned):
        for old, new in ((plain.x_a, flipped.x_a), (plain.x_b, flipped.x_b)):
            assert torch.equal(new[row], old[row].flip(-1) if flip else old[row])
    parts = [pairs.at(3, 16, seed=1, flip=True, rows=slice(rank, None, 2)) for rank in (0, 1)]
    for whole, first, second in zip(flipped, *parts, strict=True):
        assert torch.equal(whole[0::2], first) and torch.equal(whole[1::2], second)
    with pytest.raises(ValueError, match="samples of 1 are no images: leave out flip"):
        make(tmp_path / "points", **RK4).at(0, 4, seed=0, flip=True)


MEMORY = """
import resource, sys
sys.path[:0] = sys.argv[2:]
import test_pairs as T
pairs = T.P.Pairs.open(sys.argv[1])
T.torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for step in range(12):
    batch = pairs.at(step, 256, seed=0, flip=True)
scattered = pairs.batch(T.torch.randint(len(pairs), (256,), generator=T.generator(0)))
print(len(pairs), peak() - before, len(scattered.x_b))
"""


def test_a_million_pairs_need_no_memory(tmp_path, monkeypatch):
    """Sparse files: no bytes on the disk, but pages to map like any others."""
    monkeypatch.setattr(S, "atomic_write", functools.partial(runtime.atomic_write, sync=False))
    pool = Pool(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    options = PairOptions(10**6, uniform_edges(4), **RK4)
    manifest = M.write_manifest(tmp_path, plan(pool, Teacher("", (3, 32, 32)), options))
    assert manifest.shard_size == 2048
    for shard in range(manifest.n_shards):
        S.write_shard(tmp_path, manifest, shard, np.zeros(0, np.uint8), nfe=4)
        os.truncate(S.shard_path(tmp_path, shard), S.HEADER + manifest.size(shard))
    command = [sys.executable, "-c", MEMORY, str(tmp_path), *PLACES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    count, megabytes, rows = map(int, shown.stdout.split())
    assert count == 10**6 and rows == 256 and megabytes < 250


# ---- mistakes


def refused(action, match: str, error: type[Exception] = ValueError) -> None:
    """The action ends with this error, in one line."""
    with pytest.raises(error, match=match) as raised:
        action()
    assert "\n" not in str(raised.value) and runtime.one_line(raised.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "0 segments: sequential reflow needs at least 1; try 4"),
        ({"edges": (0, 0.5, 0.5, 1)}, "edges must ascend from 0 to 1"),
        ({"edges": (0, 0.5, 0.5 + 1e-12, 1)}, "edges must ascend"),  # the same in float32
        ({"n_pairs": 3}, "3 pairs of 4 segments: give at least one for each"),
        ({"tolerance": 0}, "tolerance 0: give a positive one below 1, such as 1e-4"),
        ({"tolerance": 0, "solver": "dopri5"}, "tolerance 0: give a positive one"),
        ({"solver": "rk5"}, "unknown solver 'rk5': use auto, dopri5 or one of euler"),
        ({"solver": "rk4"}, "None steps of rk4 for 4 segments: give n_steps of at least 1, or one for each"),
        ({"solver": "rk4", "n_steps": 0}, "0 steps of rk4 for 4 segments"),
        ({"solver": "rk4", "n_steps": (1, 2)}, r"\(1, 2\) steps of rk4 for 4 segments"),
        ({"n_steps": 2}, "solver auto finds its own steps: leave out n_steps, or use solver rk4"),
        ({"batch_size": 0}, "batches of 0 pairs, shards of 16: give at least 1"),
        ({"shard_size": 0}, "shards of 0: give at least 1"),
        ({"ends": "int8"}, "ends 'int8' of samples 1: use float16 or float32"),
        ({"ends": "uint8"}, "ends 'uint8' of samples 1"),
        ({"rank": 2, "world": 2}, "process 2 of 2: ranks go from 0 to 1"),
        ({"shape": (3, 32, 32)}, "the data are 1, but the teacher works on 3x32x32: give the teacher's data"),
        ({"data": torch.zeros(0, 1)}, r"data of shape \(0, 1\)"),
        ({"data": torch.zeros(5, 1, dtype=torch.int64)}, "torch.int64: give .* uint8 or floating point"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, "7 labels for 500 samples: give one for each"),
        ({"labels": torch.full((500,), -1)}, "integers from 0 on"),
        ({"velocity": lambda x, t: x * torch.nan}, "nan|not finite"),
        (
            {"velocity": lambda x, t: x * 1e9, **RK4, "ends": "float16"},
            "flow reaches .*, which float16 cannot hold",
        ),
        ({"velocity": lambda x, t: torch.cat([x, x], 1)}, "the teacher turns samples of 1 into 2"),
        ({"velocity": lambda x, t: torch.nn.Linear(2, 2)(x)}, r"the teacher does not work on samples of 1 \(.*mat1"),
    ],
)
def test_mistakes_in_making(tmp_path, options, match):
    refused(lambda: make(tmp_path / "pairs", **options), match)
    assert not list(tmp_path.glob("pairs/shard-*"))


def test_pairs_without_data_start_from_pure_noise_only(tmp_path):
    refused(
        lambda: generate(tmp_path, GAUSSIANS.velocity, None, shape=(1,), n_pairs=8),
        "4 segments start from real samples",
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"k": 2},
            "holds pairs with edges 0, 0.25, 0.5, 0.75, 1, not 0, 0.5, 1: go on with the same options or choose",
        ),
        ({"teacher": "b" * 64}, "holds pairs with teacher aaaa.*, not bbbb"),
        ({"seed": 1}, "holds pairs with seed 0, not 1"),
        ({"data": points(400)}, "holds pairs with data_hash"),
        ({"n_steps": 3}, "holds pairs with n_steps 2, 2, 2, 2, not 3, 3, 3, 3"),
    ],
)
def test_a_folder_with_other_pairs_is_not_touched(tmp_path, options, match):
    make(tmp_path, solver="rk4", n_steps=2)
    before = records(tmp_path)
    refused(lambda: make(tmp_path, **{"solver": "rk4", "n_steps": 2, **options}), match)
    assert records(tmp_path) == before


def test_steps_once_chosen_stay(tmp_path, monkeypatch):
    fixed, mixed = make(tmp_path / "a", tolerance=1e-3), make(tmp_path / "b", tolerance=1e-5)
    assert 0 not in fixed.manifest.n_steps and 0 in mixed.manifest.n_steps
    before = records(tmp_path / "a")
    (tmp_path / "a" / "shard-00001.pairs").unlink()
    monkeypatch.setattr(P, "choose_steps", lambda *_: pytest.fail("chosen again"))
    again = make(tmp_path / "a", tolerance=1e-3, batch_size=3, name="the same elsewhere")
    assert again.manifest == fixed.manifest and records(tmp_path / "a") == before
    with pytest.raises(ValueError, match="holds pairs with batch_size 256, not 3"):  # dopri5's steps are a batch's
        make(tmp_path / "b", tolerance=1e-5, batch_size=3)


def test_mistakes_in_reading(tmp_path, monkeypatch):
    refused(lambda: P.Pairs.open(tmp_path / "none"), "there is no such folder: generate them first", FileNotFoundError)
    refused(lambda: P.Pairs.open(tmp_path), "it has no manifest.json: generate them first", FileNotFoundError)
    pairs = make_images(tmp_path / "made")
    opened = P.Pairs.open(tmp_path / "made", "a" * 64, 4, (2, 4, 4))
    assert len(opened) == 40
    refused(
        lambda: P.Pairs.open(tmp_path / "made", teacher_hash="b" * 64), "made with the teacher aaaaaaaaaaaa, not bbb"
    )
    refused(lambda: P.Pairs.open(tmp_path / "made", k=2), "are of 4 segments, not 2: make some with k = 2")
    refused(lambda: P.Pairs.open(tmp_path / "made", shape=(3, 32, 32)), "are 2x4x4, the network works on 3x32x32")
    refused(lambda: pairs.batch([40]), "there is no pair 40: these are the pairs 0 to 39")
    refused(lambda: pairs.at(0, 0, 0), "--batch_size 0: give 1 or more")
    path = tmp_path / "made" / "manifest.json"
    text = path.read_text()
    path.write_text(text[:-20])
    refused(lambda: P.Pairs.open(tmp_path / "made"), "manifest.json is damaged .*: generate the pairs again")
    facts = json.loads(text)
    for key, value in {"n_pairs": "x", "shape": "x", "edges": [0, "x", 1], "seed": None, "teacher": 3}.items():
        path.write_text(json.dumps({**facts, key: value}))
        refused(lambda: P.Pairs.open(tmp_path / "made"), "manifest.json is damaged .*: expected `")
    for damage in ("[" * 100_000, "[1]", "3"):
        path.write_text(damage)
        refused(lambda: P.Pairs.open(tmp_path / "made"), "manifest.json is damaged")
    path.write_bytes(b"\xff" + text.encode())
    refused(lambda: P.Pairs.open(tmp_path / "made"), "manifest.json is damaged")
    path.write_text(json.dumps({**json.loads(text), "version": 2}))
    refused(lambda: P.Pairs.open(tmp_path / "made"), "is of version 2, this code reads 1")
    path.write_text(text)
    monkeypatch.setattr(P, "first_noise", lambda *_: (0.0, 1.0, 2.0, 3.0))
    refused(lambda: P.Pairs.open(tmp_path / "made"), "this version of torch draws other noise than the pairs in")


def test_a_script_ends_with_one_line_and_code_2(tmp_path):
    code = "import sys; sys.path[:0] = sys.argv[2:]; from seqrf import pairs; from common.runtime import run_main\n"
    code += "run_main(lambda: pairs.Pairs.open(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 2 and re.fullmatch(r"error: no pairs in .*\n", shown.stderr) and not shown.stdout


def test_every_solver_can_make_pairs(tmp_path):
    for solver in SOLVERS:
        pairs = make(tmp_path / solver, solver=solver, n_steps=4, n_pairs=8, shard_size=8)
        assert torch.isfinite(everything(pairs).x_b).all() and pairs.manifest.options.solver == solver
