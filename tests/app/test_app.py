"""The page to play with flows: what it computes against the samplers, its server over HTTP, and itself in Chromium."""

from __future__ import annotations

import _thread
import base64
import http.client
import io
import json
import re
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.app import play, serve
from common.app.__main__ import main
from common.cli.configs import SampleConfig
from common.generate import labels_for, noise_for
from common.images import fit, to_uint8
from common.scripts.folder import Folder
from common.scripts.sampling import make_sampler
from tiny import TINY, folder, options, weights

CONDITIONAL = options(num_classes=3, label_dropout=0.1)
WISH = {"weights": "tiny", "solver": "heun", "n_steps": 4, "n_samples": 3, "seed": 5, "label": None, "cfg": 1.5}


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    here = tmp_path_factory.mktemp("app")
    files = {"tiny": weights(here / "a.pt", CONDITIONAL), "plain": weights(here / "b.pt", TINY)}
    return play.Player({name: play.Entry(str(file), folder(here)) for name, file in files.items()}, "cpu")


def lines(method, wish, *more) -> list[dict]:
    """What one of the player's answers says."""
    said: list[dict] = []
    method(play.wish_of(wish), *more, said.append)
    return said


def pixels(address: str) -> np.ndarray:
    """(H, W) of a grey image that the page is sent."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))))


def photo(size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    """An image file's bytes: a smooth slope."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


# ---- what is computed


def test_step_k_is_the_samplers_own_state_and_the_last_line_what_it_took(player):
    said = lines(player.sample, WISH)
    config = SampleConfig(weights=player.entries["tiny"].path, solver="heun", n_steps=4, seed=5, cfg=1.5, device="cpu")
    sampler, _ = make_sampler(player.entries["tiny"].folder, config)
    x0, y = noise_for(range(3), sampler.shape, 5), labels_for(range(3), 3)
    states, nfe = sampler.from_noise(x0, range(3), y, trajectory=True)
    assert [line["t"] for line in said[:-1]] == [0, 0.25, 0.5, 0.75, 1] and said[0]["names"] == ["0", "1", "2"]
    for k, line in enumerate(said[:-1]):
        shown = np.stack([pixels(address) for address in line["images"]])
        assert line["step"] == k and line["of"] == 4 and (shown == to_uint8(states[:, k])[:, 0].numpy()).all()
    assert (to_uint8(sampler.sample(range(3), y).images)[:, 0].numpy() == shown).all()
    assert said[-1]["nfe"] == nfe == 14 and said[-1]["seconds"] > 0 and said[-1]["solver"] == "heun"


def test_the_ends_of_the_slider_are_the_images_of_the_two_seeds(player):
    def alone(seed: int) -> str:
        return lines(player.sample, WISH | {"n_samples": 1, "seed": seed, "label": 2})[-2]["images"][0]

    def at(*places: float) -> list[str]:
        (line,) = lines(player.between, WISH | {"other": 9, "label": 2, "places": [*places]})
        return line["images"]

    assert at(0) == [alone(5)] and at(1) == [alone(9)] and alone(5) != alone(9)
    assert at(0.5)[0] not in (alone(5), alone(9)) and len(at(0, 0.25, 1)) == 3


def test_a_picture_goes_to_its_noise_and_back(player):
    (line,) = lines(player.invert, {"weights": "plain", "n_steps": 8}, photo())
    before, noise, after = (pixels(address).astype(int) for address in line["images"])
    assert (before == fit(Image.open(io.BytesIO(photo())), 8, 1)[0]).all() and np.abs(before - after).max() <= 1
    assert line["facts"]["error"] < 0.5 and line["facts"]["ratio"] > 54 and (noise != before).any()
    assert (line["solver"], line["grid"], line["nfe"]) == ("rk4", "power", 64)
    (rough,) = lines(player.invert, {"weights": "plain", "n_steps": 2, "solver": "euler"}, photo())
    assert rough["facts"]["error"] > 10 * line["facts"]["error"]


def test_what_weights_can_do_is_told(player):
    (tiny,), (plain,) = (lines(player.about, {"weights": name}) for name in ("tiny", "plain"))
    assert tiny["classes"] == ["0", "1", "2"] and tiny["guidance"] and not plain["classes"] and not plain["guidance"]
    assert {"auto", "euler", "dopri5"} <= {*tiny["solvers"]} and not {"consistency", "idff", "fitted"} & {
        *tiny["solvers"]
    }


def test_weights_are_those_given_those_of_runs_and_the_shipped_ones(tmp_path, monkeypatch):
    place = folder(tmp_path / "made_up")
    run = weights(place.here / "runs" / "RF-0.0" / "RF_weights_step_final.pt", TINY)
    weights(place.here / place.weights, TINY)
    monkeypatch.setattr(play, "data_folders", lambda root: {"made_up": place})
    given = str(weights(tmp_path / "mine.pt", TINY))
    found = play.find_weights([given], tmp_path)
    assert list(found) == [given, str(run.parent.relative_to(tmp_path)), "made_up, shipped"]
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        play.find_weights([str(tmp_path / "nowhere.pt")], tmp_path)
    monkeypatch.setattr(play, "data_folders", lambda root: {})
    with pytest.raises(FileNotFoundError, match="there are no weights .* --weights PATH"):
        play.find_weights([], tmp_path)


def test_the_folders_of_the_repository_are_found():
    found = play.data_folders(play.ROOT).values()
    assert len(found) >= 6 and all(isinstance(each, Folder) for each in found)


MISTAKES = [
    ({"steps": 3}, "unknown: steps; the page's words are"),
    ([], "not an object"),
    ({"n_steps": 0}, "--n_steps 0: must be at least 1"),
    ({"n_steps": 201}, "--n_steps 201: must be at most 200"),
    ({"n_steps": 2.5}, "--n_steps"),
    ({"n_samples": 65}, "must be at most 64"),
    ({"cfg": float("nan")}, "--cfg nan"),
    ({"cfg": "much"}, "--cfg"),
    ({"seed": -1}, "--seed -1"),
    ({"seed": None}, "--seed"),
    ({"solver": "magic"}, "--solver magic"),
    ({"solver": ["euler"]}, "--solver"),
    ({"weights": "/etc/passwd"}, "weights '/etc/passwd': choose one of tiny, plain"),
    ({"weights": {}}, "weights"),
    ({"label": 3}, "--label 3 is out of range"),
    ({"weights": "plain", "label": 0, "cfg": 1}, "these are unconditional"),
    ({"weights": "plain", "cfg": 2}, "b.pt is unconditional"),
    ({"solver": "consistency"}, "--solver consistency needs weights tuned"),
    ({"places": [0.5] * 17}, "give 16 at most"),
    ({"places": [2]}, "--places"),
]


@pytest.mark.parametrize(("change", "match"), MISTAKES)
def test_a_mistake_is_one_line(player, change, match):
    with pytest.raises(ValueError, match=re.escape(match)) as error:
        lines(player.sample, {**WISH, **change} if isinstance(change, dict) else change)
    assert "\n" not in str(error.value)


def test_pictures_are_bounded_before_they_are_decoded(player):
    wide = io.BytesIO()
    Image.new("1", (10_000, 5_001)).save(wide, "PNG")
    for data, match in (
        (b"no picture", "this is no picture that can be read: give one of PNG, JPEG"),
        (photo()[:60], "that can be read"),
        (wide.getvalue(), "10000 x 5001 pixels; 10 MB and 50 million pixels are allowed"),
        (photo((16, 16), "PPM"), "this is no picture"),
    ):
        with pytest.raises(ValueError, match=match):
            lines(player.invert, {"weights": "plain"}, data)
    with pytest.raises(ValueError, match="cannot use --solver unipc2: choose one of euler"):
        lines(player.invert, {"weights": "plain", "solver": "unipc2"}, photo())


def test_what_nobody_waits_for_ends_at_its_next_evaluation(player, monkeypatch):
    calls = []

    def evaluating():
        calls.append(1)
        if len(calls) == 3:
            raise serve.Gone

    monkeypatch.setattr(player, "evaluating", evaluating)
    with pytest.raises(serve.Gone):
        lines(player.invert, {"weights": "plain", "n_steps": 8}, photo())
    assert len(calls) == 3


# ---- over HTTP


@contextmanager
def running(player, patience: float = 5.0):
    """The port of a server in a thread."""
    with serve.listening(0) as door:
        server = serve.server_of(door, player, patience)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield door.getsockname()[1]
        server.shutdown()
        server.end()
        thread.join()


def ask(port: int, method: str, path: str, body: bytes | str | None = None, **headers: str):
    """Status, headers, text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def form(data: bytes, wish: dict) -> tuple[bytes, str]:
    """A form with a picture, and its content type."""
    head = '--xx\r\nContent-Disposition: form-data; name="wish"\r\n\r\n' + json.dumps(wish)
    head += '\r\n--xx\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    return head.encode() + data + b"\r\n--xx--\r\n", "multipart/form-data; boundary=xx"


def test_the_server_answers_streams_and_refuses(player):
    with running(player) as port:
        status, headers, page = ask(port, "GET", "/")
        _, _, script = ask(port, "GET", "/page.js")
        assert status == 200 and "Play with flows" in page and "async function sample" in script
        assert not re.search(
            r"https?:|//[a-z]|@import|url\(", re.sub(r"^\s*//.*|; // .*|\{ // .*", "", page + script, flags=re.M)
        )
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert json.loads(ask(port, "GET", "/weights")[2])["weights"] == ["tiny", "plain"]
        status, _, text = ask(
            port, "POST", "/sample", json.dumps(WISH), Content_Type="application/x-www-form-urlencoded"
        )
        assert status == 200 and [json.loads(line).get("step") for line in text.splitlines()] == [0, 1, 2, 3, 4, None]
        body, kind = form(photo(), {"weights": "plain", "n_steps": 4})
        status, _, text = ask(port, "POST", "/invert", body, Content_Type=kind)
        assert status == 200 and len(json.loads(text)["images"]) == 3
        body, kind = form(bytes(play.MOST_BYTES + 20_000), {"weights": "plain"})
        for expected, match, answer in (
            (400, "choose one of tiny, plain", ask(port, "POST", "/sample", '{"weights": "x"}')),
            (400, "n_steps 0: must be", ask(port, "POST", "/sample", json.dumps(WISH | {"n_steps": 0}))),
            (400, "Expecting", ask(port, "POST", "/sample", "no JSON")),
            (404, "not found", ask(port, "POST", "/nothing", "{}")),
            (405, "not allowed", ask(port, "GET", "/sample")),
            (403, "only this server's own page", ask(port, "POST", "/sample", "{}", Origin="http://evil.example")),
            (400, "", ask(port, "GET", "/weights", Host="evil.example")),
        ):
            status, _, text = answer
            assert status == expected and match in json.loads(text)["error"] and "\n" not in text.strip()
            assert "--" not in text
        with pytest.raises(ConnectionError):  # it hangs up, or says so, before it has read all
            status, _, text = ask(port, "POST", "/invert", body, Content_Type=kind)
            assert status == 413 and "more than 10 MB" in text
            raise ConnectionError
        assert ask(port, "POST", "/about", '{"weights": "tiny"}')[0] == 200  # nothing has died


class Slow(play.Player):
    """Evaluates every few milliseconds until nobody listens."""

    ended = 0

    def sample(self, wish, say):
        try:
            say({"step": 0})
            while True:  # without a word, as between two steps
                self.evaluating()
                time.sleep(0.005)
        finally:
            self.ended += 1

    def between(self, wish, say):
        raise RuntimeError("of ours\n")


def test_one_at_a_time_and_who_does_not_listen_is_dropped(player, capsys):
    slow = Slow(player.entries)
    with running(slow, patience=0.05) as port:
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.sendall(b"POST /sample HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}")
            assert b"200" in first.recv(100)
            status, _, text = ask(port, "POST", "/between", "{}")
            assert status == 503 and json.loads(text)["error"] == serve.BUSY
        for _ in range(200):  # until the server has seen that the first one hung up
            if slow.ended:
                break
            time.sleep(0.02)
        status, _, text = ask(port, "POST", "/between", "{}")
        assert slow.ended == 1 and status == 400 and "a mistake of the program" in json.loads(text)["error"]
    assert "RuntimeError: of ours" in capsys.readouterr().err


def test_the_command_ends_at_ctrl_c_and_refuses_a_port_in_use(player, monkeypatch, capsys):
    monkeypatch.setattr(play, "find_weights", lambda given: player.entries)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, _thread.interrupt_main).start()
        main(["--port", "0", "--no-browser", "--device", "cpu"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert re.search(r"2 weights; open http://127.0.0.1:\d+ .*\nstopped\n", capsys.readouterr().out)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: .* in use; give another one, or 0"):
            main(["--port", str(port), "--no-browser"])
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ValueError, match="the page needs Flask, which is not installed: pip install flask"):
        main(["--no-browser"])


# ---- in a browser


def flags(profile: Path) -> list[str]:
    """Of a Chromium that asks for nothing by itself."""
    quiet = "background-networking component-update sync quic first-run".split()
    off = [f"--disable-{name}" for name in quiet[:-1]]
    return ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *off, f"--user-data-dir={profile}"]


@contextmanager
def chromium(profile: Path):
    """Debian's Chromium, by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    choices = webdriver.ChromeOptions()
    choices.binary_location = chromium
    for flag in [*flags(profile), "--window-size=1280,1000"]:
        choices.add_argument(flag)
    choices.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=choices, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def test_the_page_in_chromium_plays_and_asks_nobody_else(player, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo())
    with chromium(tmp_path / "profile") as browser, running(player) as port:
        script = browser.execute_script

        def until(text: str) -> str:
            for _ in range(600):
                if text in (shown := script("return document.getElementById('status').textContent")):
                    return shown
                time.sleep(0.05)
            raise AssertionError(f"{text!r} never came, but {shown!r}")

        browser.get(f"http://127.0.0.1:{port}/")
        until("10 network evaluations (NFE) for each image")
        assert script(
            "return [document.querySelectorAll('#grid img').length, document.querySelectorAll('#strip img').length]"
        ) == [16, 11]
        script("document.querySelectorAll('#grid figure')[3].click()")
        assert "image 3 (0)" in script("return document.getElementById('one').textContent")
        script("step.value = 0; step.oninput()")
        first = "return document.querySelector('#grid img').src"
        assert (
            script(first)
            == script("return document.querySelector('#grid img').src")
            != script("return frames.at(-1)[0]")
        )
        script("document.getElementById('tab_between').click()")
        until("NFE")
        script("place.value = 1; place.oninput()")
        for _ in range(200):
            if "at 1.00" in script("return document.getElementById('middle_name').textContent"):
                break
            time.sleep(0.05)
        assert script("return [middle.src === right.src, middle.src === left.src]") == [True, False]
        script("document.getElementById('tab_invert').click(); run_invert.click()")
        assert until("choose a picture first") and script("return document.getElementById('status').className") == "bad"
        browser.find_element("id", "file").send_keys(str(tmp_path / "photo.png"))
        script("run_invert.click()")
        until("Error after both ways")
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        own = [url for url in asked if url.startswith(f"http://127.0.0.1:{port}/")]
        assert len(own) >= 6 and {url.split(":")[0] for url in asked} <= {"http", "data", "chrome", "blob"}
        assert not [url for url in asked if url.startswith("http") and url not in own]
