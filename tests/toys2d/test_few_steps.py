"""Students of a flow in the plane: what they learn from, where they rest, how they sample, and the script."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import few_step_rows
import students
from common.data import toys
from common.networks import MLP, with_second_time
from common.paths import expand
from common.solvers import time_grid
from common.training import small
from started import start
from tiny import ROOT

WIND = torch.tensor([3.0, -4.0])


@pytest.fixture
def wind():
    """A flow of the same velocity everywhere."""
    net = MLP(2, 8, 1)
    with torch.no_grad():
        net.net[-1].weight.zero_()
        net.net[-1].bias.copy_(WIND)
    return net.eval()


def begun(teacher, method):
    """A student before its first step."""
    return copy.deepcopy(teacher) if method == "ect" else with_second_time(teacher, teacher.description)[0]


def loss_of(net, teacher, method):
    """A student's loss as a function of the step."""
    if method == "seqrf":
        made = students.segment_pairs(teacher, "moons", "circles", 80, seed=0)
        return students.chord_loss(net, made, 32, seed=0)
    pairs = small.fresh_pairs("moons", "circles", "independent", 32, seed=0)
    return students.tuning_loss(net, teacher, method, pairs, n_steps=10, seed=0)


@pytest.mark.parametrize("method", ["seqrf", "ect", "flowmap", "meanflow"])
def test_a_constant_flow_is_its_own_student(wind, method):
    net = begun(wind, method)
    loss = loss_of(net, wind, method)
    assert all(loss(step).item() < 1e-4 for step in range(10)), "nothing to learn"
    x0 = torch.randn(20, 2)
    for n in (1, 3):
        states, nfe = students.sample_steps(net, method, x0, time_grid(n), "moons")
        assert nfe == n and torch.equal(states[0], x0)
        if method != "ect" or n == 1:
            torch.testing.assert_close(states[-1], x0 + WIND, rtol=0, atol=1e-5)
    found = []
    for factor in (1, 2):
        with torch.no_grad():
            net.net[-1].bias.mul_(factor)
        slope = torch.autograd.grad(loss(3), net.net[-1].bias)[0].norm()
        found.append((loss(3) if method == "ect" else slope).item())  # a norm's slope is not small near its minimum
    print(method, found)
    assert found[0] < 0.02 and found[1] > 0.3, "another velocity is no solution"


def test_a_teacher_s_pairs_keep_the_point_and_have_its_direction():
    class Spin(nn.Module):
        def forward(self, x, t, y=None):
            return torch.stack([-x[:, 1], x[:, 0]], 1) + t[:, None]

    seen = []
    x0, x1, t = torch.randn(9, 2), torch.randn(9, 2), torch.rand(9)
    students.taught(lambda net, *pair: seen.append(pair), Spin())(None, x0, x1, t, None)
    a, b, time, *_ = seen[0]
    xt = expand(1 - t, x0) * x0 + expand(t, x0) * x1
    torch.testing.assert_close(expand(1 - t, a) * a + expand(t, a) * b, xt, rtol=0, atol=1e-5)
    torch.testing.assert_close(b - a, Spin()(xt, t), rtol=0, atol=1e-5)
    assert torch.equal(time, t)


def test_chords_are_a_quarter_of_the_flow_and_a_step_belongs_to_the_segment_it_begins_in(wind):
    starts, ends, times = students.segment_pairs(wind, "gaussian", "8gaussians", 400, seed=1)
    torch.testing.assert_close(ends - starts, (WIND / 4).expand(400, 2), rtol=0, atol=1e-4)
    assert times.unique(return_counts=True)[1].tolist() == [100] * 4
    radius = starts.norm(dim=1).view(4, 100).mean(1)
    assert radius[0] < 1.6 and torch.all(radius.diff() > 0.1), "from the source towards the data"
    ends_of = students.segment_end(torch.tensor([0.0, 0.2, 0.25, 0.5, 0.99, 1.0]))
    assert ends_of.tolist() == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_consistency_step_begins_at_a_fresh_point_of_the_source():
    seen = []

    def home(x, t, y=None):  # D = 0
        seen.append(x)
        return -x / (1 - t)[:, None]

    x0 = toys.sample("8gaussians", 200, torch.Generator().manual_seed(0))
    end = students.sample_steps(home, "ect", x0, time_grid(2), "8gaussians", seed=3)[0][-1]
    assert torch.equal(seen[0], x0) and end.abs().max() < 1e-5
    again = 2 * seen[1]  # (1 - t) x0' with t = 1/2
    assert again.norm(dim=1).mean().item() == pytest.approx(5.1, abs=0.2), "the circle of radius 5"
    assert (again - x0).norm(dim=1).median() > 3


def test_times_of_a_flow_map_are_ordered_and_half_of_them_end_at_the_data():
    u, v = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0))
    t, r = students.map_times(u, v)
    assert (t < r).all() and t.min() >= 0 and r.max() == 1
    assert (r == 1).float().mean().item() == pytest.approx(0.5, abs=0.03) and (t < 0.1).float().mean() > 0.19
    t, r = students.mean_times(u, v)
    assert (t <= r).all() and (r == t).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (r == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_student_ends_nearer_to_the_fine_solution_than_an_euler_step():
    teacher = small.train_mlp("8gaussians", "moons", "rf", n_steps=120, batch_size=64, width=32, lr=5e-3)
    x0 = toys.sample("8gaussians", 500, torch.Generator().manual_seed(0))
    fine, before = few_step_rows.fine_ends(teacher, x0), copy.deepcopy(teacher.state_dict())

    def miss(net, method):
        end = students.sample_steps(net, method, x0, time_grid(1), "8gaussians")[0][-1]
        return (end - fine).square().sum(1).mean().sqrt().item()

    for method, share in (("ect", 0.2), ("flowmap", 0.2), ("meanflow", 0.9)):  # measured: 0.12, 0.12, 0.85
        how = {"batch_size": 64, "seed": 0, "lr": 5e-3}
        student = students.student_of(teacher, method, "8gaussians", "moons", 80, **how)
        print(method, miss(begun(teacher, method), method), miss(student, method))
        assert miss(student, method) < share * miss(begun(teacher, method), method)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items()), "the teacher stays"


# ---- the script


def test_rows_are_measured_once_and_the_table_is_theirs(tmp_path, capsys, monkeypatch):
    options = few_step_rows.Options(smoke=True, out=tmp_path, methods=("ect", "flowmap"))
    few_step_rows.run(options)
    first = capsys.readouterr().out
    rows = few_step_rows.JsonLines(tmp_path / "few_steps.jsonl").read()
    assert [row["method"] for row in rows] == ["rf", "ect", "flowmap"] and len(rows[0]["floor"]) == 3
    assert set(rows[0]["w2"]) == {"1", "2", "4", "100"} and set(rows[1]["rms"]) == {"1"}
    assert f"| | ect | 10 | {rows[1]['w2']['1']:.3f} | {rows[1]['w2']['2']:.3f} |" in first
    monkeypatch.setattr(few_step_rows, "learnt", lambda *a: pytest.fail("trained again"))
    few_step_rows.run(options)
    assert "| | flowmap | 10 |" in capsys.readouterr().out
    assert few_step_rows.spread([1.0, 2.0]) == "1.500 +- 0.707"
    with pytest.raises(BaseException, match="trained again"):
        few_step_rows.run(replace(options, methods=("seqrf",)))


def test_an_unknown_pair_is_one_line():
    result = start(ROOT / "2D-toys" / "few_steps.py", "--pairs", "moons-mars", cwd=ROOT)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "moons-mars" in result.stderr
