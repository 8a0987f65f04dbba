"""Windows and roll-outs, against counts and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from common.data import series


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- windows


def test_windows_are_all_those_inside_a_trajectory():
    """Frames carry (trajectory, time): every window must hold consecutive times of one trajectory."""
    lengths = [7, 3, 4, 12]
    trajectories = [torch.stack([torch.full((n,), k), torch.arange(n)], 1) for k, n in enumerate(lengths)]
    index = series.windows(trajectories, past=3, horizon=1)
    assert len(index) == sum(max(0, n - 3) for n in lengths) == len({tuple(row) for row in index.tolist()})
    past, future = series.frames_at(trajectories, index, 3, 1)
    assert past.shape == (len(index), 3, 2) and future.shape == (len(index), 1, 2)
    whole = torch.cat([past, future], 1)
    assert (whole[:, :, 0] == index[:, :1]).all()
    assert (whole[:, :, 1] == index[:, 1:] + torch.arange(4)).all()


def test_windows_without_a_future():
    index = series.windows([torch.zeros(4, 2)], 2, 0)
    assert index.tolist() == [[0, 0], [0, 1], [0, 2]]
    past, future = series.frames_at([torch.zeros(4, 2)], index, 2, 0)
    assert past.shape == (3, 2, 2) and future.shape == (3, 0, 2)


@pytest.mark.parametrize("arguments", [(0, 1), (1, -1)])
def test_windows_refuse_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="need past >= 1"):
        series.windows([torch.zeros(10)], *arguments)


def test_a_series_that_is_too_short_gives_one_line():
    with pytest.raises(ValueError, match="no window of 3 . 5 frames in 2 trajectories of at most 7 frames") as error:
        series.windows([torch.zeros(7), torch.zeros(2)], 3, 5)
    assert "\n" not in str(error.value)


# ---- roll-out


def test_roll_out_of_a_rotation_is_its_power():
    angle = 0.1
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    start = normal(5, 2)
    path = series.roll_out(lambda x, k: x @ turn.T, start, 40)
    assert path.shape == (40, 5, 2)
    assert torch.allclose(path[-1], start @ torch.linalg.matrix_power(turn, 40).T)


def test_roll_out_counts_its_steps():
    seen = []

    def step(x, k):
        seen.append(k)
        return x + k

    path = series.roll_out(step, torch.zeros(5, 1), 3)
    assert seen == [0, 1, 2]
    assert path[:, 0, 0].tolist() == [0, 1, 3]


def test_roll_out_names_the_step_that_is_not_finite():
    def step(x, k):
        return torch.where(torch.arange(3) < 2, x, math.nan) if k == 4 else x

    with pytest.raises(ValueError, match="not finite at step 5 of 9, in 1 of 3 rows"):
        series.roll_out(step, torch.zeros(3), 9)


def test_roll_out_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="keep its shape"):
        series.roll_out(lambda x, k: x[:, :1], torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="of 0 steps"):
        series.roll_out(lambda x, k: x, torch.zeros(2), 0)


def test_the_progress_bar_is_on_request(capsys):
    series.roll_out(lambda x, k: x, torch.zeros(2), 3)
    assert capsys.readouterr().err == ""
    series.roll_out(lambda x, k: x, torch.zeros(2), 3, progress="forecast")
    assert "forecast" in capsys.readouterr().err
