"""FID's network against pytorch-fid's own, with random weights; the kernel distance against sums written out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from common.evaluate import features
from common.metrics import kernel_distance
from common.runtime import generator
from nets import random_inception


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# ---- kernel distance


def by_hand(x, y):
    """The unbiased squared MMD with the kernel (x . y / d + 1)^3, pair by pair."""

    def k(p, q):
        return (float(p @ q) / len(p) + 1) ** 3

    m = len(x)
    within = sum(k(v[i], v[j]) for v in (x, y) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(k(p, q) for p in x for q in y) / m**2


def test_all_rows_once_is_the_closed_form():
    x, y = randn(5, 3), randn(5, 3, seed=1) + 0.5
    value, error = kernel_distance(x, y, subsets=3, subset_size=5)
    assert value == pytest.approx(by_hand(x, y), rel=1e-12)
    left = by_hand(x[1::2], y[1::2]), by_hand(x[::2], y[::2])  # the jackknife of two groups
    assert error == pytest.approx(abs(left[0] - left[1]) / 2, rel=1e-9)
    assert kernel_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [2.0]]), 1, 2)[0] == pytest.approx(
        1 + 125 - 2 * (1 + 27) / 2
    )


def test_subsets_are_rows_of_both_sets():
    x, y, g = randn(9, 4), randn(12, 4, seed=1) + 0.3, generator(7)
    rows = [(torch.randperm(9, generator=g)[:5], torch.randperm(12, generator=g)[:5]) for _ in range(4)]
    values = [by_hand(x[a], y[b]) for a, b in rows]
    value, error = kernel_distance(x, y, 4, 5, generator(7))
    assert value == pytest.approx(np.mean(values), rel=1e-9)
    assert error == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-9)


def test_equal_distributions_have_mean_0_and_others_do_not():
    """The mean over fresh sets is within its error of 0; with the diagonals it would be about 2 (2^3 - 1) / 40."""
    sets = [(randn(40, 8, seed=k), randn(40, 8, seed=-k - 1)) for k in range(200)]
    values = torch.tensor([kernel_distance(x, y, 1, 40)[0] for x, y in sets])
    assert values.mean().abs() < 3 * values.std() / 200**0.5 < 0.03
    shift = 0.5 * torch.ones(8, dtype=torch.float64)
    value, error = kernel_distance(randn(800, 8), randn(800, 8, seed=1) + shift, 20, 200, generator(0))
    # E k(x, y) of N(a, I), N(b, I): with u = a . b / d + 1 and v the variance of x . y / d, u^3 + 3 u v + third moment
    exact = moment(shift, shift) + moment(0 * shift, 0 * shift) - 2 * moment(0 * shift, shift)
    assert value == pytest.approx(exact, abs=5 * error) and error < 0.1 * exact


def test_the_error_of_whole_sets_is_the_spread_of_fresh_ones():
    shift = 0.7
    found = [kernel_distance(randn(60, 4, seed=k), randn(60, 4, seed=-k - 1) + shift, 9, 60) for k in range(100)]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.25)


def moment(a, b):
    """E (x . y / d + 1)^3 for x ~ N(a, I), y ~ N(b, I), independent, by the first three cumulants of x . y."""
    d = len(a)
    first, second, third = float(a @ b), d + float(a @ a + b @ b), 6 * float(a @ b)
    mean = first / d + 1
    return mean**3 + 3 * mean * second / d**2 + third / d**3


@pytest.mark.parametrize(
    ("a", "b", "options"),
    [
        (randn(3, 2), randn(3, 3), {"subset_size": 2}),
        (randn(3, 2), randn(4, 2), {"subset_size": 4}),
        (randn(3, 2), randn(4, 2), {"subset_size": 1}),
        (randn(3, 2), randn(4, 2), {"subsets": 0, "subset_size": 2}),
    ],
)
def test_subsets_that_cannot_be_drawn(a, b, options):
    with pytest.raises(ValueError, match=r"rows of \(3, 2\) and .*: give 1 or more, of 2 to 3 rows"):
        kernel_distance(a, b, **options)


# ---- Inception


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """pytorch-fid's network with random weights, and a file of those."""
    from pytorch_fid import inception as fid

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "load_state_dict_from_url", lambda url, progress: random_inception(file))
        net = fid.InceptionV3()
    return net.eval(), file


def test_features_are_those_of_pytorch_fid(theirs):
    net, file = theirs
    images = torch.randint(0, 256, (3, 3, 20, 24), generator=generator(1), dtype=torch.uint8)
    with torch.no_grad():
        want = net(images.float() / 255)[0].flatten(1)
    run = features.inception_network(file).run
    ours = torch.cat([run(part)[0] for part in images.split(2)])
    assert ours.shape == (3, 2048) and want.std() > 1e-3
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4 * want.abs().mean().item())


def test_other_weights_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no Inception weights of FID: download https://github.com/mseitzer"):
        features.load_inception(tmp_path / "other.pth")


def test_weights_are_found_in_the_cache_or_where_they_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert features.find_weights() is None
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"no Inception weights of FID at x.pth: download {features.URL}")
    ):
        features.find_weights("x.pth")
    file = tmp_path / "checkpoints" / features.FILE
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert features.find_weights() == file == features.find_weights(file)


def test_pytorch_fid_downloads_the_same_file():
    from pytorch_fid.inception import FID_WEIGHTS_URL

    assert features.URL == FID_WEIGHTS_URL
