"""Sequential reflow: flows with known chords, the sampler's evaluations one by one, students that begin as teachers."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from common import checkpoint
from common.metrics import straightness
from common.networks import MLP, build_network, network_description
from common.solvers import CountNFE, dopri5, integrate
from common.training.small import fit
from nets import randomised
from problems import Gaussians, Mixture
from seqrf import networks as students
from seqrf import segments as seg
from tiny import options

UNEVEN = [0.0, 0.1, 0.4, 1.0]


class GaussianPairs(Gaussians):
    """Exact pairs of a segment, and the velocity of their chords, which do not cross."""

    def move(self, x, t, s):
        ratio = (self.variance(s) / self.variance(t)) ** 0.5
        return self.mean(s) + ratio * (x - self.mean(t))

    def pairs(self, edges, n, seed=0):
        """x_a, x_b, t_a, t_b, segment; in turn from all segments."""
        g = torch.Generator().manual_seed(seed)
        segment = torch.arange(n) % (len(edges) - 1)
        nodes = torch.tensor(edges, dtype=torch.float64)
        t_a, t_b = nodes[segment], nodes[segment + 1]
        x0 = torch.randn(n, 1, generator=g, dtype=torch.float64)
        start, end = t_a[:, None], t_b[:, None]
        return self.move(x0, 0 * start, start), self.move(x0, 0 * end, end), t_a, t_b, segment

    def chords(self, edges):
        """net(x, t, y, segment): the velocity of the chord that passes x at t."""
        nodes = torch.tensor(edges, dtype=torch.float64)

        def net(x, t, y, segment):
            t_a, t_b = nodes[segment][:, None], nodes[segment + 1][:, None]
            u, shift = (t[:, None] - t_a) / (t_b - t_a), self.move(torch.zeros_like(x), t_a, t_b)
            slope = self.move(torch.ones_like(x), t_a, t_b) - shift - 1
            x_a = (x - u * shift) / (1 + u * slope)
            return (shift + slope * x_a) / (t_b - t_a)

        return net


def steps_of(velocities):
    """velocity(x, t, segment), constant in each segment and the same everywhere."""
    return lambda x, t, segment: velocities[segment].expand_as(x)


def recorded(velocity):
    """The velocity, and a list that gets (x, t, segment) of every call."""
    calls = []

    def record(x, t, segment):
        calls.append((x.clone(), t[0].item(), segment))
        return velocity(x, t, segment)

    return record, calls


# ---- edges


def test_uniform_edges():
    assert seg.uniform_edges(1) == [0, 1] and seg.uniform_edges(4) == [0, 0.25, 0.5, 0.75, 1]
    for k in (3, 7, 12):
        edges = seg.uniform_edges(k)
        assert edges[-1] == 1 and len(edges) == k + 1


def test_adaptive_edges_are_as_good_on_other_trajectories():
    times = torch.linspace(0, 1, 121, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)

    def fine():
        return integrate(Mixture().velocity, torch.randn(64, 2, generator=g).double(), times, "rk4", trajectory=True)

    seen, other = fine(), fine()
    for k in (2, 3, 4, 6):
        edges = seg.adaptive_edges(seen, times, k)
        uniform = seg.sequential_straightness(other, times, seg.uniform_edges(k))
        assert len(edges) == k + 1 and seg.sequential_straightness(other, times, edges) < 0.9 * uniform
    assert seg.adaptive_edges(seen, times, 1) == [0, 1]
    assert min(b - a for a, b in pairwise(seg.adaptive_edges(seen, times, 6, shortest=0.1))) > 0.0999


def test_a_corner_becomes_an_edge():
    times = torch.linspace(0, 1, 101)
    bent = (times - 0.3).abs()[:, None, None].repeat(1, 2, 3)
    assert seg.adaptive_edges(bent, times, 2) == pytest.approx([0, 0.3, 1], abs=1e-6)
    spike = torch.where(times > 0.995, 50.0, 0.0)[:, None, None].repeat(1, 2, 3)
    assert seg.adaptive_edges(spike, times, 2) == pytest.approx([0, 0.99, 1], abs=1e-6)
    assert seg.adaptive_edges(spike, times, 2, shortest=0.05) == pytest.approx([0, 0.95, 1], abs=1e-6)


# ---- losses


@pytest.mark.parametrize("edges", [[0.0, 1.0], UNEVEN], ids=["one", "three"])
def test_the_chords_are_the_minimum_of_the_loss(edges):
    flow = GaussianPairs()
    pairs, u = flow.pairs(edges, 60), torch.rand(60, generator=torch.Generator().manual_seed(1)).double()
    chords = flow.chords(edges)
    assert seg.reflow_loss(chords, *pairs, u).max() < 1e-12
    assert seg.distill_loss(chords, *pairs).max() < 1e-12
    for kind, at_rest in (("mse", 0.01), ("huber", math.sqrt(0.01 + seg.HUBER**2) - seg.HUBER)):
        off = seg.reflow_loss(lambda *inputs: chords(*inputs) + 0.1, *pairs, u, kind=kind)
        torch.testing.assert_close(off, torch.full((60,), at_rest), rtol=1e-4, atol=0)
    curved = seg.reflow_loss(lambda x, t, y, segment: flow.velocity(x, t), *pairs, u)
    assert curved.mean() > 1e-3


def test_the_loss_of_a_network_that_says_nothing():
    x_a = torch.zeros(2, 3, 4, 4)
    x_b = torch.stack([torch.full((3, 4, 4), 1.5), torch.full((3, 4, 4), -0.5)])
    t_a, t_b, segment = torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.75]), torch.tensor([0, 1])
    seen = []

    def net(x, t, y, segment):
        seen.append((x, t, y, segment))
        return torch.zeros_like(x)

    y = torch.tensor([7, 8])
    loss = seg.reflow_loss(net, x_a, x_b, t_a, t_b, segment, torch.tensor([0.5, 1.0]), y)
    assert loss.tolist() == [9, 4]  # (1.5 / 0.5)^2 and (-0.5 / 0.25)^2
    huber = seg.reflow_loss(net, x_a, x_b, t_a, t_b, segment, torch.tensor([0.5, 1.0]), y, "huber", c=6.0)
    want = [(math.sqrt(9 * 48 + 36) - 6) / 48, (math.sqrt(4 * 48 + 36) - 6) / 48]
    torch.testing.assert_close(huber, torch.tensor(want))
    x, t, labels, places = seen[0]
    assert torch.equal(x[0], x_b[0] / 2) and torch.equal(x[1], x_b[1]) and t.tolist() == [0.25, 0.75]
    assert torch.equal(labels, y) and torch.equal(places, segment)


def test_pseudo_huber_is_its_definition_also_for_tiny_errors():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, 2, 2, generator=g), torch.randn(5, 3, 2, 2, generator=g)
    norm, d = (a - b).double().flatten(1).norm(dim=1), 12
    for c in (None, 0.1, 30.0):
        size = 0.00054 * d if c is None else c
        want = ((norm**2 + size**2).sqrt() - size) / d
        torch.testing.assert_close(seg.pseudo_huber(a, b, c).double(), want, rtol=1e-5, atol=0)
    tiny = seg.pseudo_huber(torch.full((1, 4), 1e-6), torch.zeros(1, 4), c=1.0)  # sqrt(1 + 4e-12) is 1 in float32
    assert tiny.item() == pytest.approx(4e-12 / 2 / 4, rel=1e-5, abs=0)
    x = (10 * torch.randn(50, 4, generator=g)).requires_grad_()
    seg.pseudo_huber(x, torch.zeros(50, 4)).sum().backward()
    assert 0.249 < x.grad.norm(dim=1).min() and x.grad.norm(dim=1).max() < 0.25001


def test_distillation_looks_at_the_starts_only():
    x_a, x_b, t_a, t_b, segment = (v.float() if v.is_floating_point() else v for v in GaussianPairs().pairs(UNEVEN, 12))
    line = nn.Linear(1, 1)
    seen = []

    def net(x, t, y, segment):
        seen.append((x, t))
        return line(x)

    loss = seg.distill_loss(net, x_a, x_b, t_a, t_b, segment).mean()
    loss.backward()
    assert len(seen) == 1 and torch.equal(seen[0][0], x_a) and torch.equal(seen[0][1], t_a)
    missing = line(x_a).detach() - (x_b - x_a) / (t_b - t_a)[:, None]
    torch.testing.assert_close(line.weight.grad, (2 * missing * x_a).mean(0, keepdim=True))
    assert torch.equal(seg.reflow_loss(net, x_a, x_b, t_a, t_b, segment, torch.zeros(12)).mean(), loss)


def test_places_along_the_chords_have_their_density():
    n, a = 20_000, 4.0
    for density in seg.DENSITIES:
        u = seg.draw_u(n, torch.Generator().manual_seed(3), density)
        assert torch.equal(u, seg.draw_u(n, torch.Generator().manual_seed(3), density))
        assert (
            u.dtype == torch.float32
            and 0 <= u.min()
            and u.max() <= 1
            and u.mean().item() == pytest.approx(0.5, abs=1e-3)
        )
        at = u.double().sort().values
        assert not torch.equal(u.double(), at)
        grow, fall = torch.expm1(a * at), math.exp(a) - torch.exp(a * (1 - at))  # the two halves of the mixture
        below = (grow + fall) / (2 * math.expm1(a)) if density == "u-shaped" else at
        off = below * n - torch.arange(n)
        assert off.min() > -0.02 and off.max() < 1.02, "one in each n-th part"
    counts = torch.histc(u, 20, 0, 1) / n * 20
    middle = (torch.arange(20) + 0.5) / 20
    density = a / math.expm1(a) * (torch.exp(a * middle) + torch.exp(a * (1 - middle))) / 2
    torch.testing.assert_close(counts, density, rtol=0.02, atol=0)


# ---- sampler


def test_steps_are_shared_among_the_segments():
    times = seg.segment_times(UNEVEN, 8)
    assert [len(part) - 1 for part in times] == [3, 3, 2]  # the remainder goes to the noisy ones
    assert [(part[0], part[-1]) for part in times] == list(pairwise(UNEVEN))
    for part in times:
        assert torch.tensor(part).diff().std() < 1e-7
    assert seg.sample_times(UNEVEN) == UNEVEN
    assert seg.sample_times(UNEVEN, 8)[2:5] == pytest.approx([0.2 / 3, 0.1, 0.2])
    assert [len(part) - 1 for part in seg.segment_times(seg.uniform_edges(4), 103)] == [26, 26, 26, 25]


def test_one_step_each_is_exact_where_the_velocity_is_constant():
    v = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.25, -1.0]], dtype=torch.float64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    lengths = torch.tensor(UNEVEN, dtype=torch.float64).diff()
    want = x + (lengths[:, None] * v).sum(0)
    for method in ("euler", "heun", "ab2", "dopri5"):
        torch.testing.assert_close(seg.sample(steps_of(v), x, UNEVEN, method=method), want, rtol=0, atol=1e-12)
    path = seg.sample(steps_of(v), x, UNEVEN, trajectory=True)
    assert path.shape == (4, 5, 2) and torch.equal(path[0], x)
    torch.testing.assert_close(path[1], x + 0.1 * v[0], rtol=0, atol=1e-12)
    assert seg.sequential_straightness(path, UNEVEN, UNEVEN) < 1e-20
    assert seg.sequential_straightness(path, UNEVEN, [0, 0.4, 1]) > 0.1
    assert max(map(max, seg.truncation_error(steps_of(v), x, UNEVEN, fine=3))) < 1e-12


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("heun", 2), ("rk4", 4), ("ab2", 1), ("dpmpp2m", 1)])
def test_segments_follow_each_other_and_are_counted(method, each):
    flow = Gaussians()
    velocity, calls = recorded(lambda x, t, segment: flow.velocity(x, t) + segment)
    counted = CountNFE(velocity)
    path = seg.sample(counted, flow.start, UNEVEN, 8, method, trajectory=True)
    assert path.shape[0] == len(seg.sample_times(UNEVEN, 8)) == 9 and counted.nfe == 8 * each == len(calls)
    at = 0
    for i, n in enumerate((3, 3, 2)):
        own = [call for call in calls if call[2] == i]
        assert len(own) == n * each and all(UNEVEN[i] - 1e-12 <= t <= UNEVEN[i + 1] + 1e-12 for _, t, _ in own)
        assert torch.equal(own[0][0], path[at]) and own[0][1] == UNEVEN[i], "starts where the one before ended"
        part = integrate(lambda x, t: flow.velocity(x, t) + i, path[at], seg.segment_times(UNEVEN, 8)[i], method)
        at += n
        assert torch.equal(part, path[at]), "no memory of the segment before"
    assert torch.equal(seg.sample(counted, flow.start, UNEVEN, 8, method), path[-1])


def test_an_adaptive_solver_stops_at_every_edge():
    flow = Gaussians()
    counted = CountNFE(lambda x, t, segment: flow.velocity(x, t))
    path = seg.sample(counted, flow.start, UNEVEN, 6, "dopri5", trajectory=True, rtol=1e-6, atol=1e-6)
    in_all, x = counted.nfe, flow.start
    counted.reset()
    for i, span in enumerate(pairwise(UNEVEN)):
        x = dopri5(lambda x, t: counted(x, t, i), x, span, 1e-6, 1e-6)
    assert in_all == counted.nfe > 18
    want = torch.stack([flow.exact(t) for t in seg.sample_times(UNEVEN, 6)])
    torch.testing.assert_close(path, want, rtol=0, atol=2e-5)
    torch.testing.assert_close(x, path[-1], rtol=0, atol=1e-12)


def test_one_segment_is_the_plain_solver():
    flow = Gaussians()
    for method in ("heun", "ab2"):
        ours = seg.sample(lambda x, t, segment: flow.velocity(x, t), flow.start, [0, 1], 7, method)
        assert torch.equal(ours, integrate(flow.velocity, flow.start, [i / 7 for i in range(8)], method))


def test_guidance_asks_the_segments_own_network():
    def net(x, t, y, segment):
        return x * (segment + 1) + (0 if y is None else y[:, None])

    x, t, y = torch.ones(2, 3), torch.zeros(2), torch.tensor([1, 2])
    assert torch.equal(seg.velocity_of(net)(x, t, 1), 2 * x)
    assert torch.equal(seg.velocity_of(net, y)(x, t, 1), 2 * x + y[:, None])
    counted = CountNFE(net)
    assert torch.equal(seg.velocity_of(counted, y, cfg=3.0)(x, t, 2), 3 * x + 3 * y[:, None]) and counted.nfe == 2


# ---- measures


def test_straightness_falls_with_the_number_of_segments():
    flow = Gaussians()
    times = [i / 240 for i in range(241)]
    path = integrate(flow.velocity, flow.start, times, "rk4", trajectory=True)
    values = [seg.sequential_straightness(path, times, seg.uniform_edges(k)) for k in (1, 2, 4, 8)]
    assert values[0] == pytest.approx(straightness(path, times), rel=1e-12) and values[0] > 0.1
    assert all(b < 0.5 * a for a, b in pairwise(values))
    single = torch.tensor(times)  # float32 times hold the edge 0.1 only nearly
    by_hand = sum(straightness(path[i : j + 1], times[i : j + 1]) for i, j in ((0, 24), (24, 96), (96, 240)))
    assert seg.sequential_straightness(path, single, UNEVEN) == pytest.approx(by_hand, rel=1e-6)


def test_truncation_errors_of_exponential_growth():
    k, x = 4, torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    h = 1 / k
    within, in_all = seg.truncation_error(lambda x, t, segment: x, x, seg.uniform_edges(k), fine=20)
    assert within == pytest.approx([math.exp(i * h) * (math.exp(h) - 1 - h) for i in range(k)], rel=1e-6)
    assert in_all == pytest.approx([math.exp(i * h) - (1 + h) ** i for i in range(1, k + 1)], rel=1e-6)
    finer, _ = seg.truncation_error(lambda x, t, segment: x, x, seg.uniform_edges(k), 8, fine=20)
    assert finer[0] == pytest.approx(math.exp(h) - (1 + h / 2) ** 2, rel=1e-6)
    still = {"velocity": lambda x, t, segment: 0 * x, "reference": lambda x, t, segment: x}
    within, in_all = seg.truncation_error(x=x, edges=[0, 0.5, 1], fine=20, **still)
    assert within == pytest.approx([math.exp(0.5) - 1, math.exp(1) - math.exp(0.5)], rel=1e-6)
    assert in_all == pytest.approx([math.exp(0.5) - 1, math.exp(1) - 1], rel=1e-6)


# ---- students

IMAGES = {"channel_mult": (2,), "num_channel": 32}
TEACHERS = {
    "unet": options(**IMAGES),
    "unet with labels": options(num_classes=3, label_dropout=0.1, **IMAGES),
    "conditional_unet": options(network="conditional_unet", **IMAGES),
    "mlp": MLP(2, 16, 2),
    "mlp with labels": MLP(2, 16, 2, nn.GELU, num_classes=3),
}
both = pytest.mark.parametrize("condition", ["heads", "edges"])
every = pytest.mark.parametrize("name", TEACHERS)


def teacher_of(name):
    """A teacher with random weights, its description, and x, t, y for it."""
    kind, g = TEACHERS[name], torch.Generator().manual_seed(1)
    shape = (2,) if isinstance(kind, MLP) else (1, 8, 8)
    description = kind.description if isinstance(kind, MLP) else network_description(kind)
    net = randomised(build_network(description))
    y = torch.arange(6) % 3 if "labels" in name else None
    return net, description, (torch.randn(6, *shape, generator=g), torch.rand(6, generator=g), y)


def student_of(name, condition, edges=UNEVEN):
    net, description, inputs = teacher_of(name)
    make = students.with_heads if condition == "heads" else students.with_edges
    return make(net, edges, description), net, inputs


MIXED = torch.tensor([2, 0, 1, 1, 2, 0])


@both
@every
def test_a_student_begins_as_its_teacher(name, condition):
    student, teacher, (x, t, y) = student_of(name, condition)
    with torch.no_grad():
        want = teacher(x, t, y)
        assert want.abs().mean() > 1e-3 and not student.training
        for segment in (0, 1, 2, MIXED, torch.full((6,), 1)):
            assert torch.equal(student(x, t, y, segment), want)
    assert student.num_classes == teacher.num_classes and student.edges == UNEVEN


@both
@every
def test_a_mixed_batch_is_its_segments(name, condition):
    student, _, (x, t, y) = student_of(name, condition)
    randomised(student.net.get_submodule(student._place or "end_embed"), seed=3)
    with torch.no_grad():
        mixed = student(x, t, y, MIXED)
        alone = [student(x, t, y, i) for i in range(3)]
        for i in range(3):
            assert torch.equal(mixed[MIXED == i], alone[i][MIXED == i])
            assert torch.equal(student(x, t, y, torch.full((6,), i)), alone[i])
            assert (alone[i] - alone[i - 1]).abs().mean() > 1e-4


@both
@every
def test_a_description_makes_the_student_again(name, condition, tmp_path):
    student, teacher, (x, t, y) = student_of(name, condition)
    randomised(student, seed=4)
    assert json.loads(json.dumps(student.description)) == student.description
    checkpoint.save(tmp_path / "a.pt", {"network": student.description, "net_model": student.state_dict()})
    state = checkpoint.load(tmp_path / "a.pt")
    again = students.build(state["network"]).eval()
    again.load_state_dict(state["net_model"])
    with torch.no_grad():
        assert torch.equal(again(x, t, y, MIXED), student(x, t, y, MIXED))
    place = {"u": "time_embed", "c": "time_mlp", "m": "net.0"}[name[0]]
    own = {f"net.{key}" for key in teacher.state_dict()}
    inner = [key.removeprefix(f"{place}.") for key in teacher.state_dict() if key.startswith(f"{place}.")]
    kept = {key for key in own if not key.startswith(f"net.{place}.")}
    if condition == "heads":
        kept |= {f"net.{place}.heads.{i}.{key}" for i in range(3) for key in inner}
    else:
        kept = own | {f"net.end_embed.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(student.state_dict()) == kept


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_training_one_segment_leaves_the_other_heads(name):
    student, teacher, (x, t, y) = student_of(name, "heads")
    before = {key: value.clone() for key, value in student.state_dict().items()}
    untouched = {key: value.clone() for key, value in teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        student(x, t, y, torch.full((6,), 1)).square().mean().backward()
        optimizer.step()
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split("heads.")[1][0] for key in changed if "heads." in key} == {"1"}
    assert any("heads." not in key for key in changed), "the rest of the network is shared"
    assert all(torch.equal(value, untouched[key]) for key, value in teacher.state_dict().items())


@both
def test_a_student_learns_the_chords(condition):
    """Three Euler steps miss the map of an exact flow by far; those of a student of its pairs do not."""
    flow, torch_state = GaussianPairs(), torch.get_rng_state()
    torch.manual_seed(0)
    pairs = [v.float() if v.is_floating_point() else v for v in flow.pairs(UNEVEN, 192)]
    teacher = MLP(1, 32, 2, nn.GELU)
    student = (students.with_heads if condition == "heads" else students.with_edges)(teacher, UNEVEN)

    def loss_at(step):
        return seg.reflow_loss(student, *pairs, seg.draw_u(192, torch.Generator().manual_seed(step))).mean()

    losses = fit(student, loss_at, 250, lr=2e-2, ema_decay=0.99)
    torch.set_rng_state(torch_state)
    start = flow.start.float()
    with torch.no_grad():
        ours = seg.sample(seg.velocity_of(student.eval()), start, UNEVEN)
    plain = seg.sample(lambda x, t, segment: flow.velocity(x, t), flow.start, UNEVEN)
    off, missed = (ours - flow.exact(1.0)).abs().mean(), (plain - flow.exact(1.0)).abs().mean()
    assert off < 0.4 * missed and losses[-1] < 0.005 * losses[0]


# ---- bad input

X, T = torch.zeros(2, 2), torch.zeros(2)


def still(x, t, segment):
    return torch.zeros_like(x)


PATH = torch.arange(9.0)[:, None, None].expand(9, 2, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: seg.uniform_edges(0), "0 segments: sequential reflow needs at least 1; try 4"),
        (lambda: seg.uniform_edges(-2), "-2 segments: sequential reflow needs at least 1"),
        (lambda: seg.checked_edges([0, 0.5]), r"from 0 to 1, but are \(0, 0.5\); try 0 0.25"),
        (lambda: seg.checked_edges([0.1, 1]), "from 0 to 1"),
        (lambda: seg.checked_edges([0, -0.5, 1]), "ascend from 0 to 1"),
        (lambda: seg.checked_edges([0, 0.5, 0.5, 1]), "ascend"),
        (lambda: seg.checked_edges([0, math.nan, 1]), "ascend"),
        (lambda: seg.checked_edges([]), "ascend"),
        (lambda: seg.adaptive_edges(PATH, torch.linspace(0, 1, 9), 9), "9 segments of at least 1 of 8 fine steps"),
        (lambda: seg.adaptive_edges(PATH, torch.linspace(0, 1, 9), 0), "0 segments of at least 1 of 8 fine steps"),
        (lambda: seg.adaptive_edges(PATH, torch.linspace(0, 0.9, 9), 2), "from 0 to 1"),
        (
            lambda: seg.sample(still, X, seg.uniform_edges(4), 3),
            "3 steps for 4 segments: each needs one; give --n_steps 4",
        ),
        (lambda: seg.sample(still, X, [0, 1], 3, "simpson"), "unknown solver 'simpson'"),
        (lambda: seg.draw_u(3, torch.Generator(), "bell"), "unknown density 'bell': use one of uniform, u-shaped"),
        (lambda: seg.reflow_loss(still, X, X, T, T, T, T, kind="l3"), "unknown loss 'l3': use one of mse, huber"),
        (lambda: seg.pseudo_huber(X, X, 0.0), "it must be positive; try 0.00108"),
        (
            lambda: seg.sequential_straightness(PATH, torch.linspace(0, 1, 9), [0, 0.3, 1]),
            "0.3 is not among the 9 times",
        ),
        (lambda: seg.sequential_straightness(PATH, torch.linspace(0, 1, 8), [0, 1]), "for 8 times"),
        (lambda: students.with_heads(MLP(2), [0, 2]), "ascend from 0 to 1"),
        (lambda: students.with_heads(nn.Linear(2, 2), [0, 1]), "a Linear cannot become a student: give one of UNet"),
        (lambda: students.with_edges(build_network(network_description(TEACHERS["unet"])), [0, 1]), "info"),
        (lambda: students.with_edges(MLP(2), [0, 1], MLP(3).description), "is not that of the network"),
        (lambda: students.build({"name": "UNet"}), "of a UNet, not of a student"),
        (lambda: students.with_heads(MLP(2), [0, 0.5, 1])(X, T, None, 2), "segment 2 to 2: there are only 0 to 1"),
        (lambda: students.with_heads(MLP(2), [0, 0.5, 1])(X, T, None, torch.tensor([-1, 0])), "segment -1 to 0"),
        (lambda: students.with_edges(MLP(2), [0, 0.5, 1])(X, T, None, torch.tensor([0, 5])), "segment 0 to 5"),
        (lambda: students.with_edges(MLP(2), [0, 1])(X, T, None, torch.tensor([0])), "2 integers, one for each sample"),
        (lambda: students.with_edges(MLP(2), [0, 1])(X, T, None, torch.zeros(2)), "2 integers, one for each sample"),
        (lambda: students.with_edges(MLP(2), [0, 1])(X, T, None, 0.5), "a number or 2 integers"),
    ],
)
def test_mistakes_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
