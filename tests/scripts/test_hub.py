"""Weights that travel: safetensors with the description in their header, a hub's folder, and a hub that is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common import checkpoint
from common.records.cards import write_card
from common.runtime import file_hash
from common.scripts.grid import grid_main
from common.scripts.hub import main
from common.solvers import fitted, time_grid
from mnist.config import FOLDER as MNIST
from sst.forecast import load_forecaster
from timeseries_examples import propagator
from tiny import ROOT, difference, folder, network, options, run, weights

CONDITIONAL = options(num_classes=3)
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A weights file with a card and a fitted sampler, and the hub's folder that was made of it."""
    place = tmp_path_factory.mktemp("hub")
    file = weights(place / "run" / "a_final.pt", CONDITIONAL)
    write_card(file, {"note": "made up", "seed": 3, "measured": [{"solver": "euler", "nfe": 4, "effnet_kid": 0.0125}]})
    fitted.keep_fitted(file, fitted.adams_sampler(time_grid(10).tolist(), 2), fitted.key_of(10, 1.0))
    out = main(["export", str(file.parent), str(place / "out"), "--n_samples", "4", *CPU])
    return file, out


def test_the_tensors_the_description_and_the_samplers_are_those_of_the_file(exported, monkeypatch):
    file, out = exported
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "model.json", "model.safetensors", "model.samplers.json", "samples.png",
    }  # fmt: skip
    before = checkpoint.load(file)
    monkeypatch.setattr(torch, "load", None)  # nothing is unpickled
    assert difference(before, checkpoint.load(out)) == ""
    assert difference(load_file(out / "model.safetensors"), before["ema_model"]) == ""  # as anybody reads them
    theirs, ours = (fitted.read_samplers(path) for path in (file, out / "model.safetensors"))
    assert theirs == ours and len(ours["fitted"]) == 1
    config = json.loads((out / "config.json").read_text())
    assert config["method"] == before["method"] and config["network"] == before["network"]
    assert oct((out / "model.safetensors").stat().st_mode) == oct((out / "config.json").stat().st_mode)


def test_the_model_card_tells_what_was_measured_and_shows_a_picture(exported):
    _, out = exported
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and "| euler | 4 | 0.0125 |" in text and "made up" in text
    assert "8x8 images, 3 classes." in text and "4 images, fitted, 10 evaluations each" in text
    with Image.open(out / "samples.png") as picture:
        assert picture.width > 4 * 8


def test_a_folder_of_a_hub_is_sampled_as_its_weights_are(exported, tmp_path):
    file, out = exported
    place = folder(tmp_path, CONDITIONAL)
    how = ["--n_samples", "3", "--n_steps", "10", *CPU]
    pictures = [
        grid_main(place, "", [*how, "--weights", str(path), "--out", str(tmp_path / f"{k}.png")])
        for k, path in enumerate((file, out, out / "model.safetensors"))
    ]
    assert len(pictures) == 3 and len({(tmp_path / f"{k}.png").read_bytes() for k in range(3)}) == 1


def test_final_weights_of_a_run_travel_and_are_trained_on(tmp_path):
    file = run(tmp_path / "run")
    out = main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--n_samples", "0"])
    again = run(tmp_path / "more", init=str(out), total_steps=1)
    assert checkpoint.load(again)["step"] == 1 and not (out / "samples.png").exists()
    assert difference(checkpoint.load(file), checkpoint.load(out)) == ""


def test_safetensors_of_other_projects_load_as_their_other_files_do(tmp_path):
    net = network(options(in_channels=3, num_channel=64))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    save_file(net.state_dict(), tmp_path / "b.safetensors")
    how = {"image_size": 8, "method": "cfm"}
    first, second = (checkpoint.load_network(tmp_path / name, extra=how) for name in ("a.pt", "b.safetensors"))
    assert difference(first[0].state_dict(), second[0].state_dict()) == ""
    assert first[1]["network"] == second[1]["network"]


def flipped(data: bytes) -> bytes:
    """The last byte is another one."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (flipped, "its hash is another one"),
        (lambda data: data[: len(data) // 2], "damaged or not safetensors"),
        (lambda data: b"", "damaged or not safetensors"),
        (lambda data: b"\xff" * 64, "damaged or not safetensors"),
        (lambda data: data.replace(b'\\"step\\": 7', b'\\"step\\":-7'), "step"),
        (lambda data: data.replace(b'\\"version\\": 1', b'\\"version\\": 2'), "format version 2"),
        (lambda data: data.replace(b'\\"network\\": {', b'\\"network\\": ['), "damaged or not safetensors"),
    ],
)
def test_damaged_safetensors_are_refused_in_one_line(exported, tmp_path, damage, match):
    data = (exported[1] / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    with pytest.raises(ValueError, match=match) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_becomes_safetensors_and_a_file_again_to_the_bit(exported, tmp_path):
    file, _ = exported
    safe = main(["convert", str(file.parent), str(tmp_path / "a.safetensors")])
    back = main(["convert", str(safe), str(tmp_path / "back" / "b.pt")])
    before = checkpoint.load(file)
    for made in (safe, back):
        assert difference(before, checkpoint.load(made)) == ""
        assert fitted.read_samplers(made) == fitted.read_samplers(file)
        cards = [json.loads(path.with_suffix(".json").read_text()) for path in (file, made)]
        assert cards[0].keys() == cards[1].keys() and cards[0]["measured"] == cards[1]["measured"]
        assert cards[1]["sha256"] == file_hash(made)
    assert torch.load(back, weights_only=True)["ema_model"].keys() == before["ema_model"].keys()
    for name, match in (
        ("a.safetensors", "is there already"),
        ("a.pt", "a.json is there already"),
        ("c.bin", "ends in"),
    ):
        with pytest.raises(ValueError, match=match):
            main(["convert", str(file), str(tmp_path / name)])
    with pytest.raises(ValueError, match="python -m common.hub convert RUN_FOLDER NEW_FILE"):
        main(["convert", str(file)])


def test_forecasters_and_propagators_are_the_same_from_safetensors(tmp_path):
    sst = main(["convert", str(ROOT / "sst/results/CFM-synthetic"), str(tmp_path / "sst.safetensors")])
    one, two = (load_forecaster(path, torch.device("cpu")) for path in (ROOT / "sst/results/CFM-synthetic", sst))
    assert (one.options, one.spread, one.learnt) == (two.options, two.spread, two.learnt)
    chain = ROOT / "timeseries_examples/results/lorenz/CFM_lorenz_v1.pt"
    (one, past), (two, again) = map(
        propagator.load, (chain, main(["convert", str(chain), str(tmp_path / "l.safetensors")]))
    )
    assert (one.space, one.recipe, past) == (two.space, two.recipe, again)
    assert difference(one.net.state_dict(), two.net.state_dict()) == ""


def test_what_cannot_travel_is_refused_and_nothing_is_written(exported, tmp_path):
    file, out = exported
    run(tmp_path / "run", total_steps=2)
    torch.save(network().state_dict(), tmp_path / "foreign.pt")
    for words, match in (
        ([str(file), str(out)], "is there already"),
        ([str(tmp_path / "run" / "checkpoint_last.pt"), str(tmp_path / "new")], "only averaged final weights"),
        ([str(tmp_path / "foreign.pt"), str(tmp_path / "new")], "only averaged final weights"),
        ([str(file)], "give a run and a new folder"),
        (["", str(tmp_path / "new")], "give a run and a new folder"),
        ([str(tmp_path / "nothing"), str(tmp_path / "new")], "no weights at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            main(["export", *words])
    assert not (tmp_path / "new").exists()


def test_a_mistyped_command_is_named_as_it_was_typed():
    with pytest.raises(ValueError, match="^command imp: choose one of export, convert$"):
        main(["imp"])


def test_the_card_of_weights_for_few_steps_draws_as_many_and_names_their_folder(tmp_path):
    out = main(["export", str(MNIST.here / MNIST.few), str(tmp_path / "digits"), "--n_samples", "1", *CPU])
    text = (out / "README.md").read_text()
    assert "1 image, consistency, 4 evaluations each" in text
    assert "python mnist/simple_gen_test.py --weights path/to/digits " in text


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = weights(tmp_path / "a_final.pt", options(network="conditional_unet", num_channel=8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not say its image size"):  # after the weights have been written
        main(["export", str(file), "out", *CPU])
    assert [path.name for path in tmp_path.iterdir()] == ["a_final.pt"]
    (tmp_path / "out").mkdir()
    main(["export", str(file), "out", "--n_samples", "0"])  # into an empty folder
    assert {path.name for path in tmp_path.iterdir()} == {"a_final.pt", "out"}
    assert difference(checkpoint.load(file), checkpoint.load(tmp_path / "out")) == ""


# ---- a hub


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for of a repository someone/flow: its files, each with a mark, and their bytes."""

    def __init__(self, files: dict[str, bytes], asked: list[str], *arguments) -> None:
        self.files, self.asked = files, asked
        super().__init__(*arguments)

    def log_message(self, *arguments) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/someone/flow/tree/"):
            tree = [{"type": "file", "path": file, "oid": "", "size": len(data)} for file, data in self.files.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/someone/flow"):
            files = [{"rfilename": file} for file in self.files]
            facts = {"id": "someone/flow", "sha": "0" * 40, "siblings": files, "private": False, "tags": []}
            self.answer(json.dumps(facts).encode())
        elif path.startswith("/someone/flow/resolve/") and name in self.files:
            self.answer(self.files[name])
        else:
            self.answer(b"{}", 404, (("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "not found")))

    def answer(self, body: bytes, code: int = 200, more: tuple[tuple[str, str], ...] = ()) -> None:
        """Send it."""
        self.send_response(code)
        marks = [("ETag", f'"{len(body):040d}"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(len(body)))]
        for key, value in (*marks, *more):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def test_weights_of_a_hub_are_fetched_by_name(exported, tmp_path):
    file, out = exported
    files = {path.name: path.read_bytes() for path in out.iterdir()} | {"evil.pt": b"\x80\x02not to be fetched"}
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from common import checkpoint; from common.scripts.folder import Folder\n"
        "from pathlib import Path\n"
        "folder = Folder(Path(), {}, '', '', '{METHOD}.pt')\n"
        "print(checkpoint.find(folder.find_weights('hf:someone/flow')))\n"
        "for name in ('someone/else', 'no name'):\n"
        "    try: checkpoint.find('hf:' + name)\n"
        "    except FileNotFoundError as error: print(error)\n"
    )
    place = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **place}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    fetched, *refused = done.stdout.splitlines()
    assert difference(checkpoint.load(fetched), checkpoint.load(file)) == "" and Path(fetched).is_relative_to(tmp_path)
    assert not any(path.endswith((".pt", ".png", ".md")) for path in asked)
    names = [line.split(" could not be fetched (")[0] for line in refused]
    assert names == ["--weights hf:someone/else", "--weights hf:no name"], refused
