"""The race of methods: its page holds what was measured, asks nobody for anything, and works in a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import race_gif
import race_page
import racing
from started import start
from tiny import ROOT

FOLDER = ROOT / "2D-toys"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def data_of(html: str) -> dict:
    """What a page carries."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """The folder of a tiny race, and what its page carries."""
    out = tmp_path_factory.mktemp("race")
    result = start(FOLDER / "race.py", "--smoke", "--workers", 1, "--out", out, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "13 methods in" in result.stdout and f"results: {out}" in result.stdout
    return out, data_of((out / "race.html").read_text(encoding="utf-8"))


# ---- the files


def test_the_page_is_one_file_that_asks_for_nothing(raced):
    out, data = raced
    assert {path.name for path in out.iterdir()} == {"race.html", "race.csv", "race.gif"}
    html = (out / "race.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|<link|<img|<iframe|\bsrc=|@import|url\(|fetch\(|XMLHttp|import\(", html)
    assert "default-src 'none'" in html and not re.search(r"@[A-Z]+@", html)
    assert html.count("<script") == html.count("</script>") == 2
    assert str(ROOT) not in html and data["command"].startswith("python 2D-toys/race.py --source gaussian")


def test_the_moving_picture_shows_each_particle_where_it_is(tmp_path):
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    rows = [{"name": name, "drawn": name != "c", "look": k, "w2": [0.5]} for k, name in enumerate("abc")]
    ways = [torch.stack([corners * s, -corners * s]) for s in (1.0, 0.5)]  # two frames; b stays in the middle
    results = {row["name"]: {"paths": way} for row, way in zip(rows, [*ways, ways[0]], strict=True)}
    for name, particle in (("a", 1), ("b", 3)):
        results[name]["paths"][:, particle] = 9.0  # outside of the picture: nothing is drawn
    race_gif.write_gif({"methods": rows, "nfe": [5]}, results, corners.repeat(2000, 1), tmp_path / "race.gif")
    picture = Image.open(tmp_path / "race.gif")
    assert picture.n_frames == 2 and picture.info["loop"] == 0 and picture.width == 2 * (race_gif.SIDE + 8)
    middle = {}
    for k in range(2):
        picture.seek(k)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        for panel, name in enumerate("ab"):
            left, top = race_gif.corner(panel)
            colour = np.array([int(race_gif.COLOURS[panel][i : i + 2], 16) for i in (1, 3, 5)])
            part = pixels[top : top + race_gif.SIDE, left : left + race_gif.SIDE]
            y, x = np.nonzero(np.abs(part - colour).sum(2) < 30)
            middle[name, k] = np.array([x.mean(), race_gif.SIDE - y.mean()]) - race_gif.SIDE / 2
            assert 3 * 5 <= len(x) <= 3 * 16  # three discs
    assert np.allclose(middle["a", 0], -middle["a", 1], atol=3) and np.allclose(middle["b", 0], -middle["b", 1], atol=3)
    assert middle["a", 0][0] > 10 > -10 > middle["a", 0][1]  # without the upper left one: right and below
    assert middle["b", 0][0] < -5 and middle["b", 0][1] < -5 and picture.info["duration"] == race_gif.REST


def test_the_table_holds_the_pages_numbers(raced):
    out, data = raced
    with open(out / "race.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [method["name"] for method in data["methods"]]
    assert len(rows) == 13 and data["nfe"] == [1, 2, 3]
    for row, method in zip(rows, data["methods"], strict=True):
        assert (row["source"], row["target"], row["seed"]) == ("gaussian", "8gaussians", "0")
        assert [float(row[f"w2_nfe_{n}"]) for n in data["nfe"]] == method["w2"]
        assert [float(row[key]) for key in ("floor", "floor_low", "floor_high")] == data["floor"]
        for key in ("seconds", "parameters", "straightness", "energy"):
            assert (float(row[key]) if row[key] else None) == method[key], key
        assert row["solver"] == method["solver"]
    assert set(rows[0]) == {"source", "target", "seed", "name", "solver", "seconds", "parameters", "straightness"} | {
        *("energy", "floor", "floor_low", "floor_high", "w2_nfe_1", "w2_nfe_2", "w2_nfe_3")
    }


def decoded(data: dict, method: dict) -> np.ndarray:
    """A method's paths, (frames, particles, 2), from the integers of the page."""
    steps = np.array(method["paths"]).reshape(data["frames"], -1)
    steps[1:] = np.cumsum(steps[1:], axis=0)
    return (np.cumsum(steps, axis=0) * data["unit"]).reshape(data["frames"], -1, 2) + np.array(data["low"])


def test_the_paths_come_back_within_half_a_level_and_no_name_is_read_as_html():
    draw = torch.Generator().manual_seed(0)
    paths = 4 * torch.randn(race_page.FRAMES, 7, 2, generator=draw)
    paths[20, 3] = torch.tensor([900.0, -40.0])  # far outside the picture
    name = "</script><b>&\u2028"
    rows = [{"name": name, "drawn": True}, {"name": "other", "drawn": False}]
    target = torch.randn(50, 2, generator=draw)
    html = race_page.page({"source": "<i>", "target": '"', "methods": rows}, {name: {"paths": paths}}, target)
    assert "<b>" not in html and "<i>" not in html and "<title>&lt;i&gt; → &quot;" in html
    data = data_of(html)
    assert data["methods"][0]["name"] == name and data["particles"] == 7 and data["methods"][1]["paths"] is None
    assert np.abs(decoded(data, data["methods"][0]) - paths.numpy()).max() <= 0.501 * data["unit"]
    points = np.array(data["target_points"]).reshape(-1, 2) * data["unit"] + np.array(data["low"])
    assert np.abs(points - target.numpy()).max() <= 0.501 * data["unit"]
    inside = (paths[0] - torch.tensor(data["low"])) / data["unit"]
    assert ((inside >= 0) & (inside <= data["levels"])).float().mean() > 0.9


def test_every_drawn_method_starts_from_the_same_points(raced):
    _, data = raced
    starts = [decoded(data, method)[0] for method in data["methods"] if method["drawn"]]
    assert len(starts) == 11 and all(np.array_equal(starts[0], other) for other in starts)
    ends = [decoded(data, method)[-1] for method in data["methods"] if method["drawn"]]
    assert not any(np.array_equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


# ---- the measurements


class Wind(torch.nn.Module):
    """The same velocity everywhere."""

    def forward(self, x, t, y=None):
        return torch.tensor([3.0, -4.0]).expand(len(x), 2)


def test_a_constant_velocity_is_measured_exactly():
    x0 = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    result = racing.transport(Wind(), "cfm", x0, x0 + torch.tensor([3.0, -4.0]), ("euler", 0.0, 0, "gaussian"), (1, 4))
    assert list(result["w2"]) == [1, 4] and max(result["w2"].values()) < 1e-5
    assert result["straightness"] < 1e-8 and result["energy"] == pytest.approx(25, rel=1e-4)
    assert result["paths"].shape == (race_page.FRAMES, 60, 2)
    assert torch.allclose(result["paths"][25], x0 + torch.tensor([1.5, -2.0]), atol=1e-4)


def tiny_race(**changes):
    """Options of milliseconds."""
    return replace(racing.Options(), **{"steps": 6, "batch_size": 16, "width": 8, "n_samples": 40} | changes)


@pytest.mark.parametrize("job", ["rf", "sbcfm", "idff"])
def test_a_job_is_a_function_of_its_seed(job):
    options = tiny_race(smoke=True)
    first, again, other = (racing.compete(job, o) for o in (options, options, replace(options, seed=1)))
    names = {"rf": ["rf", *racing.STUDENTS], "sbcfm": ["sbcfm"], "idff": ["idff", "idff (its sampler)"]}
    assert list(first) == names[job]
    for name, row in first.items():
        assert row["w2"] == again[name]["w2"] != other[name]["w2"]
        assert row["paths"] is None if name == "ect" else torch.equal(row["paths"], again[name]["paths"])
        assert (row["straightness"] is None) == (name in ("idff (its sampler)", "ect"))
    if job == "rf":
        assert all(first[name]["seconds"] > first["rf"]["seconds"] > 0 for name in racing.STUDENTS)


def test_fm_is_left_out_where_the_source_is_not_gaussian(monkeypatch):
    asked = []
    row = {"w2": {1: 0.5}, "seconds": 1.0, "parameters": 9, "straightness": None, "energy": None}
    real = {"floor": [0.2, 0.3, 0.4], "energy": 2.0}

    def finished(jobs, options):
        asked.append(jobs)
        yield from [{name: row} for name in racing.ENTRIES if name in jobs] + [{"real": real}]

    monkeypatch.setattr(racing, "finished", finished)
    for source, left_out in (("gaussian", False), ("moons", True)):
        results, floor = racing.race(tiny_race(source=source))
        summary = racing.summary(tiny_race(source=source), results, floor)
        assert ("fm" in asked[-1]) is ("fm" in results) is not left_out
        looks = {method["name"]: method["look"] for method in summary["methods"]}
        assert (looks["rf"], looks["idff"]) == (2, 6), "the same whoever takes part"
        assert bool(summary["left_out"]) is left_out and summary["floor"] == [0.3, 0.2, 0.4]
    assert "Gaussian source, not moons" in summary["left_out"][0]


@pytest.mark.parametrize("flags", [("--source", "nowhere"), ("--steps", "0"), ("--workers", "0"), ("--n_samples", "1")])
def test_a_mistake_is_one_line(flags):
    result = start(FOLDER / "race.py", *flags, cwd=ROOT)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert flags[0] in result.stderr


# ---- in a browser


def browse(page: Path, *flags: str, moment: str = "", milliseconds: int = 3000) -> str:
    """The document after its script has run, from a headless browser without a network."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", f"--user-data-dir={page.parent / 'profile'}"]
    command += [f"--virtual-time-budget={milliseconds}", *flags, f"file://{page}{moment}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture
def page(raced, tmp_path):
    """A copy of the page, so that the browser's own files do not lie beside the original."""
    return Path(shutil.copy(raced[0] / "race.html", tmp_path))


def test_it_plays_by_itself_unless_the_visitor_wants_rest(page):
    shown = browse(page, "--dump-dom")
    assert 'data-state="ready"' in shown and "data-error" not in shown
    assert re.search(r'id="play"[^>]*>Pause<', shown)
    still = browse(page, "--dump-dom", "--force-prefers-reduced-motion")
    assert re.search(r'id="play"[^>]*>Play<', still) and 'id="now" for="time">t = 1.00<' in still


SCRIPT = """<script>
const note = {}, keep = () => note.time = [...document.querySelectorAll("figure")].map(f => f.dataset.time);
const press = (where, key) => where.dispatchEvent(new KeyboardEvent("keydown", { key }));
const names = () => [...document.querySelectorAll("tbody th")].map(th => th.textContent);
const wait = ms => new Promise(done => setTimeout(done, ms));
// a browser without a screen draws one frame or two in all: the frames come from its clock instead
window.requestAnimationFrame = frame => setTimeout(() => frame(performance.now()), 16);
(async () => {
  await wait(50);
  note.opened = document.getElementById("now").textContent;
  note.slider = document.getElementById("time").value;
  note.hidden = document.getElementById("paths").checked === false;
  const play = document.getElementById("play"), canvas = document.querySelector("canvas"), before = canvas.toDataURL();
  document.getElementById("paths").click();
  note.pathsChangeThePicture = canvas.toDataURL() !== before;
  play.click();
  note.playing = play.textContent;
  await wait(800);
  play.click();
  note.stopped = play.textContent;
  note.went = Number(document.getElementById("time").value);
  await wait(300);
  note.stays = Number(document.getElementById("time").value) === note.went;
  location.hash = "#t=0.25";
  await wait(100);
  note.times = [...document.querySelectorAll("figure")].map(f => f.dataset.time);
  note.lines = document.querySelectorAll("#svg > g").length;
  const chart = document.getElementById("svg");
  press(chart, "ArrowRight"); press(chart, "ArrowRight");
  note.tip = document.getElementById("tip").innerText;
  document.querySelectorAll("#legend button")[2].click();
  note.bright = document.querySelectorAll('#svg > g[opacity="1"]').length;
  const heading = document.querySelectorAll("thead button")[2];
  heading.click(); note.up = names(); heading.click(); note.down = names();
  note.sorted = heading.parentNode.getAttribute("aria-sort");
  note.foot = document.querySelector("tfoot").textContent;
  document.querySelectorAll("thead button")[4].click(); note.straight = names();
  document.documentElement.dataset.note = JSON.stringify(note);
})();
</script></body>"""


def test_everything_on_the_page_works(raced, page):
    _, data = raced
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", SCRIPT), encoding="utf-8")
    shown = browse(page, "--dump-dom", moment="#t=0.5&paths=0")
    assert "data-error" not in shown
    note = json.loads(re.search(r'data-note="(.*?)"', shown)[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert note["opened"] == "t = 0.50" and note["slider"] == "0.5" and note["hidden"] and note["pathsChangeThePicture"]
    assert note["playing"] == "Pause" and note["stopped"] == "Play" and 0.5 < note["went"] <= 1 and note["stays"]
    assert note["times"] == ["0.25"] * 11 and note["lines"] == 13 and note["bright"] == 1
    ranked = sorted(data["methods"], key=lambda method: method["w2"][1])
    assert note["tip"].startswith("2 evaluations") and f"{ranked[0]['w2'][1]:.3f}" in note["tip"]
    at_two = {method["name"]: method["w2"][1] for method in data["methods"]}
    for order, names in (("up", sorted(at_two.values())), ("down", sorted(at_two.values(), reverse=True))):
        assert [at_two[name] for name in note[order]] == names
    assert note["sorted"] == "descending" and set(note["straight"][-2:]) == {"idff (its sampler)", "ect"}
    assert f"{data['floor'][0]:.3f}" in note["foot"]


def test_the_picture_is_not_blank(page, tmp_path):
    shots = {}
    for moment in ("#t=0", "#t=1"):
        file = tmp_path / f"{moment[-1]}.png"
        browse(page, f"--screenshot={file}", "--window-size=1400,1000", moment=moment)
        shots[moment] = np.asarray(Image.open(file).convert("RGB")).astype(int)
    for shot in shots.values():
        assert shot.shape == (1000, 1400, 3) and shot.std() > 5
        saturated = (shot.max(2) - shot.min(2)) > 60
        assert (saturated[200:].sum(0) > 0).mean() > 0.25, "points in all four columns"
    assert (shots["#t=0"] != shots["#t=1"]).any(2).sum() > 500
