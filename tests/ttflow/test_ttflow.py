"""The experiment of ttflow: data sets, the network, the search, scores, and the scripts from the command line."""

from __future__ import annotations

import csv
import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

from started import start
from tiny import ROOT
from ttflow import datasets, experiment, hopt, network, score, standings, tables
from ttflow import recflow as rf
from ttflow.experiment import Fitting, plan
from ttflow.options import SMOKE, Options

FOLDER = ROOT / "ttflow"

SEED_CALL = (
    "--seed 42 --dataset-name swissroll-3d-sklearn --bases rbf --odesolve-method-nn euler --odesolve-method-tt rk4 "
    "--verbose 2 --device cpu --dtype float64 --hopt --hopt-max-eval 20"
)


def python(name, *words, code=0):
    """Run a script from its folder: what it printed, or its one line on stderr."""
    packages = ("sklearn.datasets", "optuna", "sqlalchemy", "alembic.context")  # what this folder alone imports
    done = start(FOLDER / name, *words, cwd=FOLDER, packages=packages)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout if code == 0 else done.stderr.strip()


# ---------------------------------------------------------------------------------------------------------- data sets
def test_the_twelve_names_are_those_of_ttrecflow():
    named = "moons circles swissroll-2d swissroll-3d s-curve-2d s-curve-3d blobs".split()
    assert set(datasets.TWELVE) == {f"{name}-sklearn" for name in named} | {
        *"swissroll moons circles gaussian-mixture uniform-sphere".split()
    }


@pytest.mark.parametrize("name", datasets.TWELVE)
def test_a_set_is_repeatable_and_its_parts_are_disjoint(name):
    data, same = (datasets.load(name, 300, 100, seed=3) for _ in range(2))
    assert torch.equal(data.train, same.train) and torch.equal(data.again, same.again)
    assert data.dim == (3 if "3d" in name else 2) and data.train.shape == (300, data.dim)
    assert data.few.shape == data.few_again.shape == (1, 2000, data.dim)
    parts = torch.cat([data.train, data.validation, data.test, data.again]).double()
    assert parts.isfinite().all() and not torch.equal(data.test, data.again)
    # the sets have one centre: those that are equally spaced lie at the same points but for the noise
    assert (data.few[0].mean(0) - data.few_again[0].mean(0)).abs().max() < 0.12 * parts.std(0).max()
    assert not torch.equal(datasets.load(name, 300, 100, seed=4).train, data.train)


@pytest.mark.parametrize(
    ("name", "radii", "tolerance"),
    [("uniform-sphere", [8], 1e-5), ("circles-sklearn", [1.5, 5], 0.15), ("circles", [4, 8], 0.6)],
)
def test_circles_have_their_radii(name, radii, tolerance):
    radius = datasets.load(name, 2000, 10).train.norm(dim=1)
    gap = (radius[:, None] - torch.tensor(radii)).abs()
    assert gap.amin(1).max() < tolerance
    assert all(0.4 < share < 0.6 for share in gap.argmin(1).bincount().div(2000).tolist()) or len(radii) == 1


def test_gaussian_mixture_and_blobs_have_their_centres():
    x = datasets.load("gaussian-mixture", 8000, 10).train
    angles = torch.arange(8) * (math.tau / 8)
    centres = 8 * torch.stack([angles.cos(), angles.sin()], 1)
    nearest = torch.cdist(x, centres).argmin(1)
    assert nearest.bincount(minlength=8).min() > 800
    assert (x - centres[nearest]).square().mean().item() == pytest.approx(0.3, rel=0.05)
    x = datasets.load("blobs-sklearn", 3000, 10).train
    nearest = torch.cdist(x, torch.tensor(datasets.CENTRES)).argmin(1)
    means = torch.stack([x[nearest == k].mean(0) for k in range(3)])
    assert (means - torch.tensor(datasets.CENTRES)).abs().max() < 0.15


def test_the_floor_is_of_independent_points_also_where_a_set_is_even():
    """A flow's samples fall into the parts of a set by chance; exact numbers of each would be a floor below them."""
    data = datasets.load("blobs-sklearn", 300, 3000, draws=40)
    centres = torch.tensor(datasets.CENTRES)

    def counts(x):
        return torch.cdist(x, centres).argmin(-1)[..., None].eq(torch.arange(3)).sum(-2).double()

    assert counts(data.test).tolist() == [1000] * 3 and (counts(data.few) - 2000 / 3).abs().max() < 1
    variance = (counts(data.few_again) - 2000 / 3).square().mean().item()
    assert variance == pytest.approx(2000 * 2 / 9, rel=0.4)  # binomial; 80 degrees of freedom
    assert counts(data.again).tolist() != [1000] * 3


def test_outliers_are_the_points_off_the_data():
    data = datasets.load("gaussian-mixture", 20_000, 4000)
    points = data.again.clone()
    points[::40] *= 0.5  # between the clusters and the centre: a fortieth
    assert score.outliers(data.test, data) == 0.001  # by definition
    assert score.outliers(data.again, data) < 0.004
    assert score.outliers(points, data) == pytest.approx(1 / 40, abs=0.004)


def test_tables_are_principal_components_and_are_split():
    data = datasets.load("digits-16", seed=1)
    parts = [data.train, data.validation, data.test, data.again]
    assert [len(part) for part in parts] == [1797 - 3 * 179, 179, 179, 179] and data.dim == 16
    cov = torch.cat(parts).double().T.cov()
    off = cov - cov.diag().diag()
    assert cov[0, 0].item() == pytest.approx(1, rel=1e-2) and off.abs().max() < 1e-5
    assert (cov.diag().diff() <= 0).all()


def test_csv_files_with_and_without_names(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    for header in ("", "a,b,c"):
        path = tmp_path / f"x{len(header)}.csv"
        np.savetxt(path, rows, delimiter=",", header=header, comments="")
        data = datasets.load(str(path))
        parts = torch.cat([data.train, data.validation, data.test, data.again])
        assert torch.allclose(parts.sort(0).values, torch.from_numpy(rows).float().sort(0).values)


ROWS = np.random.default_rng(5).normal(size=(40, 3)).round(3)


def _lines(form, rows=ROWS):
    return "".join(form.format(k, *row) + "\n" for k, row in enumerate(rows.tolist()))


SPELLINGS = {  # text of a file, encoding, what is said
    "plain": (_lines("{1},{2},{3}"), "utf-8", ""),
    "byte order mark": (_lines("{1},{2},{3}"), "utf-8-sig", ""),
    "unicode text of Excel": ("a\tb\tc\n" + _lines("{1}\t{2}\t{3}"), "utf-16", ""),
    "cp1252": ("grün,b,c\n" + _lines("{1},{2},{3}"), "cp1252", ""),
    "spaces": ("# x y z\n" + _lines("  {1} {2}  {3}"), "utf-8", ""),
    "quoted": ('"a","b","c, too"\n' + _lines('"{1}","{2}","{3}"'), "utf-8", "c, too"),
    "decimal comma": (("a;b;c\n" + _lines("{1};{2};{3}")).replace(".", ","), "utf-8", "decimal comma"),
    "windows lines, a delimiter at the end": (_lines("{1},{2},{3},\r"), "utf-8", ""),
    "index of pandas": (",a,b,c\n" + _lines("{0},{1},{2},{3}"), "utf-8", "column 1 counts the rows: left out"),
    "index by name": ("index,a,b,c\n" + _lines("{0}7,{1},{2},{3}"), "utf-8", "(index) counts the rows: left out"),
    "read back": ("Unnamed: 0,a,b,c\n" + _lines("{0},{1},{2},{3}"), "utf-8", "left out"),
    "names are numbers": ("0,1,2\n" + _lines("{1},{2},{3}"), "utf-8", "first line (0, 1, 2) is taken as the names"),
    "both": (",0,1,2\n" + _lines("{0},{1},{2},{3}"), "utf-8", "left out"),
    "years": ("1990,1995,2000\n" + _lines("{1},{2},{3}"), "utf-8", "is taken as the names"),
    "R's row names": ('"a","b","c"\n' + _lines('"{0}",{1},{2},{3}'), "utf-8", "left out"),
    "dates": ("date,a,b,c\n" + _lines("2020-01-01 00:{0:02d},{1},{2},{3}"), "utf-8", "(date) holds dates"),
    "dates without names": (_lines("{1},2020-02-01 00:{0:02d},{2},{3}"), "utf-8", "column 2 holds dates"),
    "dates as numbers": ("a,b,c,d\n" + _lines("{1},{2},{3},20200131"), "utf-8", "(d) holds dates"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_table_is_read_however_it_is_spelled(name, tmp_path, capsys):
    text, encoding, said = SPELLINGS[name]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    rows = tables.read(path).rows
    assert np.array_equal(rows, ROWS[: len(rows)]) and len(rows) >= 10
    assert said in capsys.readouterr().out


def test_marks_between_thousands(tmp_path, capsys):
    rows = np.array([[1234567.5, -2.25], [12.0, 1000.0], [0.5, 999.125]])
    for text in ('"1,234,567.5","-2.25"\n12,"1,000"\n.5,999.125\n', "1.234.567,5;-2,25\n12;1.000\n,5;999,125\n",
                 "1 234 567,5\t-2,25\n12\t1 000\n0,5\t999,125\n"):  # fmt: skip
        (tmp_path / "t.tsv").write_text(text)
        assert np.array_equal(tables.read(tmp_path / "t.tsv").rows, rows), text
    assert "decimal comma" in capsys.readouterr().out


def test_counts_that_are_data_stay(tmp_path):
    (tmp_path / "t.csv").write_text("3,1\n1,2\n4,3\n1,4\n5,5\n")
    assert tables.read(tmp_path / "t.csv").rows.shape == (5, 2)
    (tmp_path / "t.csv").write_text("id,b\n7,1\n7,2\n9,3\n")
    assert tables.read(tmp_path / "t.csv").rows.shape == (3, 2)


def test_columns_of_other_scales_and_far_from_zero_are_levelled(tmp_path, capsys):
    """In float32 a deviation of 1 at 1e9 is lost; a flow of N(0, I) does not see a column of 1e-6."""
    rows = np.random.default_rng(0).normal(size=(400, 3))
    for factor, shift, said in ((1, [1e9, 0, 0], "means are removed"), ([1e6, 1, 1e-6], [3, 0, 1e-5], "standardised")):
        np.savetxt(tmp_path / "x.csv", rows * factor + shift, fmt="%.18e", delimiter=",")
        data = datasets.load(str(tmp_path / "x.csv"))
        assert said in capsys.readouterr().out and data.units is not None
        parts = torch.cat([data.train, data.validation, data.test, data.again])
        assert parts.mean(0).abs().max() < 1e-3 and parts.std(0).sub(1).abs().max() < 0.1
        back = parts.double() * torch.tensor(data.units.scale) + torch.tensor(data.units.offset, dtype=torch.float64)
        want = torch.from_numpy(rows * factor + shift).sort(0).values
        assert ((back.sort(0).values - want) / torch.tensor(data.units.scale)).abs().max() < 1e-5


def test_the_likelihood_of_a_table_is_in_its_own_units(tmp_path):
    """Stretched by 1000, a column has 1 / 1000 of the density: log 1000 nats more, whatever is fitted to it."""
    rows, nats = np.random.default_rng(0).normal(size=(300, 2)), []
    for factor in (1e3, 1e6):
        np.savetxt(tmp_path / "x.csv", rows * [factor, 1.0], delimiter=",")
        options = Options(**{**SMOKE, "dataset_name": str(tmp_path / "x.csv"), "tt_only": True, "verbose": 0})
        nats.append(experiment.run(options, tmp_path / "out")["tt"]["nll"])
    assert nats[1] - nats[0] == pytest.approx(math.log(1000), abs=1e-3)


def _csv(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "swisroll", "did you mean swissroll"),
        (lambda p: "digits-99", "digits has 64 columns"),
        (lambda p: "none.csv", "no file none.csv"),
        (lambda p: _csv(p / "a.csv", "1,2\n" * 30), "column 1 is constant"),
        (lambda p: _csv(p / "b.csv", "1,nan\n2,3\n" * 30), "row 1 holds NaN"),
        (lambda p: _csv(p / "c.csv", "1,2\n3,4\n"), "has 2 rows"),
        (lambda p: _csv(p / "d.csv", "x,y\n1,two\n"), r"column 2 \(y\) holds text \('two' in row 1\)"),
        (lambda p: _csv(p / "e.csv", "1.5,setosa\n2,virginica\n"), "holds text"),
        (lambda p: _csv(p / "f.csv", "1,2\n3,4\n5\n"), "row 1 has 2 cells, the last has 1"),
        (lambda p: _csv(p / "g.csv", ""), "holds no rows"),
        (lambda p: _csv(p / "h.csv", '"1,234","2,345"\n'), "1,234 may have a decimal comma or thousands"),
        (lambda p: _csv(p / "i.csv", "1,5;2.5\n"), "1,5 beside 1,5"),
        (lambda p: _csv(p / "j.csv", "a,b\n1,\n2,\n"), r"column 2 \(b\) is empty"),
        (lambda p: _csv(p / "k.csv", "2020-01-01\n2021-01-01\n"), "no column of numbers"),
        (lambda p: _csv(p / "l.csv", "1,inf\n2,3\n" * 30), "row 1 holds NaN or inf"),
        (lambda p: _csv(p / "m.csv", "a\0b"), "is not text"),
    ],
)
def test_bad_data_gets_one_line(make, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        datasets.load(make(tmp_path))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ network
@pytest.mark.parametrize(("dim", "n"), [(2, 10_702), (3, 10_903)])
def test_the_network_has_ttrecflows_size(dim, n):
    velocity, _ = network.train(torch.randn(50, dim), "seed", n_steps=1)
    assert velocity.n_parameters == n == sum(p.numel() for p in velocity.parameters())


def test_a_network_learns_the_velocity_of_a_gaussian(monkeypatch):
    monkeypatch.setitem(network.RECIPES, "better", replace(network.RECIPES["better"], batch_size=128))
    x1 = 3 * torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    velocity, seconds = network.train(x1, width=32, n_steps=2500)
    x, t = torch.linspace(-2, 2, 9)[:, None], torch.full((9,), 0.5)
    exact = x * (0.5 * 9 - 0.5) / (0.25 + 0.25 * 9)  # (t 9 - (1 - t)) / ((1 - t)^2 + 9 t^2) x
    with torch.no_grad():
        assert (velocity(x, t) - exact).abs().max() < 0.35 and seconds > 0
    with pytest.raises(ValueError, match="unknown recipe"):
        network.train(x1, "best")


def test_the_seeds_recipe_keeps_the_noise_of_a_point():
    """Else it would see more data than ttrecflow's network did."""
    x1 = torch.arange(40.0)[:, None]
    for name, kept in (("seed", True), ("better", False)):
        draw = network._pairs(x1, network.RECIPES[name], 0)
        seen = {}
        for k in range(2):
            x0, ends, _ = draw(k)
            for a, b in zip(x0[:, 0].tolist(), ends[:, 0].tolist()):
                seen.setdefault(b, set()).add(a)
        assert (max(map(len, seen.values())) == 1) == kept


# -------------------------------------------------------------------------------------------------------------- score
def test_likelihood_of_a_network_is_that_of_its_flow():
    """v = a x: x1 = exp(a) x0, so log p(x) = log N(x exp(-a)) - d a."""
    x = torch.randn(20, 2, dtype=torch.float64)
    got = score.negative_log_likelihood(lambda x, t: 0.7 * x, x, 20)
    start = torch.distributions.Normal(0, 1).log_prob(x * math.exp(-0.7)).sum(1) - 2 * 0.7
    assert got == pytest.approx(-start.mean().item(), abs=1e-5)


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        score.sample(lambda x, t: x * 1e300, torch.ones(3, 2), "euler", 4)


# ------------------------------------------------------------------------------------------------------------- search
def quadratic(shape, sweeps):
    return (shape.rank - 5) ** 2 + abs(math.log10(sweeps.ridge) + 4)


def test_a_search_goes_on_and_keeps_to_the_budget(tmp_path):
    seen = []

    def error(shape, sweeps):
        seen.append((shape, sweeps))
        return quadratic(shape, sweeps)

    def search(n_trials, size=lambda shape: shape.rank * shape.n_basis, basis="bsplines"):
        return hopt.search(error, size, rf.Shape(basis), rf.SWEEPS, n_trials, 200, tmp_path / "study.db")

    search(6)
    first = len(seen)
    shape, sweeps, least = search(14)
    assert first == 6 and len(seen) == 14
    assert all(shape.rank * shape.n_basis <= 200 for shape, _ in seen)
    assert least == min(quadratic(*one) for one in seen) and quadratic(shape, sweeps) == least
    assert shape.basis_options is None and sweeps.tolerance == rf.SWEEPS.tolerance
    with pytest.raises(ValueError, match="no trial of 2"):
        search(2, lambda shape: 1000, "rbf")
    with pytest.raises(ValueError, match="at least 1"):
        search(0, lambda shape: 1, "rbf")


def test_a_study_belongs_to_its_data(tmp_path):
    def search(**about):
        error = lambda shape, sweeps: 1.0  # noqa: E731
        hopt.search(error, lambda shape: 1, rf.Shape("rbf"), rf.SWEEPS, 2, 200, tmp_path / "study.db", about=about)

    search(data="one", seed=0)
    search(data="one", seed=0)
    with pytest.raises(
        ValueError, match="study.db was begun with other settings: data one there and two now; delete it"
    ):
        search(data="two", seed=0)


def test_a_search_over_all_kinds_finds_the_one_that_fits_best(tmp_path):
    seen = []

    def error(shape, sweeps):
        seen.append(shape.basis)
        assert (shape.basis_options is not None and "length" in shape.basis_options) == (shape.basis == "rbf")
        return quadratic(shape, sweeps) + 100.0 * (shape.basis != "fourier")

    path = tmp_path / "study.db"
    shape, _, _ = hopt.search(error, lambda shape: 1, rf.Shape("any"), rf.SWEEPS, 25, math.inf, path)
    assert shape.basis == "fourier" and len(set(seen)) == 4


@pytest.mark.parametrize("bases", ["bsplines", "rbf"])
def test_the_predicted_size_is_that_of_the_fit(bases):
    options = Options("moons", bases=bases, n_train=500, n_pairs=800, sweeps=1, rank=3, verbose=0)
    data = datasets.load("moons", 500, 10)
    fitting = Fitting(options, data)
    for rank in (1, 3, 40):
        shape, sweeps = plan(options, 2)
        shape = replace(shape, rank=rank, n_basis=7, n_time=5)
        assert shape.n_parameters(2) == fitting.fit(shape, sweeps)[0].n_parameters


def test_ranks_adapt_within_the_budget():
    options = Options("moons", n_train=2000, n_pairs=4000, sweeps=6, budget=700, verbose=0)
    velocity, rows = Fitting(options, datasets.load("moons", 2000, 10)).fit(*plan(options, 2))
    assert velocity.n_parameters <= 700 and rows[-1]["validation"] < 0.7 * rows[0]["validation"]


# ------------------------------------------------------------------------------------------------------------ scripts
def test_the_seeds_command_runs_verbatim_and_its_best_model_is_used_again(tmp_path):
    out = tmp_path / "run"
    said = python("train_eval_linear_recflow.py", *shlex.split(SEED_CALL), "--smoke", "--out", out)
    assert {path.name for path in out.iterdir()} == {
        *"figure.png results.json tt.pt network.pt best_model.pt study.db".split()
    }
    results = json.loads((out / "results.json").read_text())
    assert results["tt"]["parameters"] < results["network"]["parameters"] == 10_903 and "floor" in said
    assert results["tt"]["nfe"] == 4 * results["tt"]["n_steps"] and results["network"]["solver"] == "euler"
    for who in ("floor", "tt", "network"):
        assert all(math.isfinite(results[who][key]) for key in ("sinkhorn", "w2", "mmd", "outliers"))
    assert results["compression"] == pytest.approx(10_903 / results["tt"]["parameters"])
    assert rf.TTVelocity.load(out / "tt.pt").n_parameters == results["tt"]["parameters"]
    again = ["--dataset-name", "swissroll-3d-sklearn", "--use-best-model", "--tt-only", "--smoke", "--out", out]
    python("train_eval_linear_recflow.py", *again)
    found = json.loads((out / "results.json").read_text())
    assert found["tt"]["parameters"] == results["tt"]["parameters"] and "network" not in found


def test_tables_of_sixteen_columns_have_a_likelihood(tmp_path):
    more = ["--components", "2", "--export", tmp_path / "digits.npz"]
    said = python(
        "train_eval_linear_recflow.py", "--dataset-name", "digits-16", *more, "--smoke", "--out", tmp_path / "d"
    )
    assert "digits.py" in said and {path.name for path in tmp_path.iterdir()} == {"d", "digits.npz", "digits.py"}
    results = json.loads((tmp_path / "d" / "results.json").read_text())
    assert all(math.isfinite(results[who]["nll"]) for who in ("tt", "network"))
    assert results["floor"]["w2"] > 0


def test_frontier_and_table_run_and_go_on(tmp_path):
    words = ["--dataset-name", "moons", "--budgets", "400", "--widths", "8", "--smoke", "--out", tmp_path / "f"]
    said = python("frontier.py", *words)
    assert said.count("kind ") == 3 and (tmp_path / "f" / "frontier.png").stat().st_size > 10_000
    assert python("frontier.py", *words).count("kind ") == 0
    words = ["--names", "moons", "--seeds", "1", "--smoke", "--out", tmp_path / "t"]
    said = python("twelve.py", *words, "--sinkhorn-draws", "1", "--n-test", "200")
    assert "| moons | " in said and "no worse than the network by sinkhorn on" in said
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    # the flows that are read from their files are the same: so is what is measured again
    python("twelve.py", *words, "--again", "--sinkhorn-draws", "2", "--n-test", "200")
    (new,) = csv.DictReader((tmp_path / "t.csv").open())
    assert (row["sinkhorn_draws"], new["sinkhorn_draws"]) == ("1", "2") and row["tt_sinkhorn"] != new["tt_sinkhorn"]
    assert all(row[f"{who}_w2"] == new[f"{who}_w2"] for who in ("floor", "tt", "network"))


def test_what_is_below_the_floor_is_not_better_than_the_data(tmp_path):
    def run(train, other, **more):
        flow = {"parameters": 1, "fit_seconds": 1.0, "sampling_seconds": 1.0, "w2": 1.0, "outliers": 0.001}
        distances = {"floor": 0.5, "tt": train, "network": other}
        return {who: flow | {"sinkhorn": distance} for who, distance in distances.items()} | more

    for train, other, wins in [(0.49, 0.4, 1), (0.51, 0.4, 0), (0.7, 0.71, 1)]:
        said = standings.table({"blobs": [run(train, other)]})
        assert "| 1.0 / 1.0 / 1.0 | 1 / 1 |" in said
        assert said.endswith(f"by sinkhorn on {wins}, by w2 on 1, by outliers on 1 of 1")
    (tmp_path / "moons" / "seed-1").mkdir(parents=True)
    (tmp_path / "moons" / "seed-1" / "results.json").write_text('{"tt": {"w2": 1}}')
    with pytest.raises(ValueError, match=r"results.json has no outliers, .* run twelve.py with --again"):
        standings.read_runs(tmp_path)


@pytest.mark.parametrize("name", ["frontier.py", "twelve.py"])
def test_results_that_were_cut_off_are_named(name, tmp_path):
    file = tmp_path / ("frontier.json" if name == "frontier.py" else "moons/seed-1/results.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('[{"kind"')
    words = ["--smoke", "--dataset-name", "moons"] if name == "frontier.py" else ["--table"]
    said = python(name, *words, "--out", tmp_path, code=2)
    assert f"{file} is damaged" in said and "\n" not in said


def test_a_file_that_is_no_study_is_named(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database " * 100)
    with pytest.raises(ValueError, match=r"study.db is damaged \(.*delete it, or give another --out") as error:
        hopt.search(lambda *_: 1.0, lambda shape: 1, rf.Shape("rbf"), rf.SWEEPS, 2, 200, tmp_path / "study.db")
    assert "\n" not in str(error.value)


def test_a_network_is_the_same_from_its_file_and_no_other_file_will_do(tmp_path):
    velocity, _ = network.train(3 * torch.randn(200, 2) + 1, width=8, n_steps=5)
    velocity.save(tmp_path / "net.pt")
    x, t = torch.randn(9, 2), torch.rand(9)
    again = network.load(tmp_path / "net.pt")
    assert velocity.scale != 1.0 and torch.equal(again(x, t), velocity(x, t)) and again.recipe == "better"
    weights = FOLDER.parent / "mnist" / "results"
    with pytest.raises(ValueError, match="holds no network of this folder"):
        network.load(next(weights.rglob("flow_matching_mnist.pth")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--use-best-model --tt-only", "run once with --hopt"),
        ("--rank -1", "--rank"),
        ("--sweeps 0", "--sweeps 0: must be at least 1"),
        ("--sinkhorn-draws 0 --tt-only", "--sinkhorn_draws 0: must be at least 1"),
        ("--dataset-name swiss", "unknown data set"),
        ("--n-train 1", "1 training"),
        ("--hopt --use-best-model", "give one of them"),
        ("--bases wavelets", "wavelets"),
        ("--export a-b.npz", "--export a-b.npz: give NAME.npz"),
        ("--components 2 --coupling ot", "leave out --coupling ot"),
        ("--bases any", "--bases any is for --hopt"),
        ("--time-at 4 --tt-only --n-train 50 --n-test 50", "the positions are 0 to 3"),
        ("--n-pairs 1 --tt-only --n-train 50 --n-test 50", "at least 2 rows"),
        ("--rank 9 --tt-only --n-train 900 --n-test 50", "parameters for 900 points"),
    ],
)
def test_mistakes_get_one_line(words, message, tmp_path):
    said = python("train_eval_linear_recflow.py", *words.split(), "--verbose", "0", "--out", tmp_path / "x", code=2)
    assert message in said and "\n" not in said and "Traceback" not in said
