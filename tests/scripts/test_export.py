"""A sampler as one graph: its images are the sampler's, by onnxruntime and by torch.export; what cannot be one."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from common.cli.configs import SampleConfig
from common.export import command, graphs
from common.generate import Sampler, labels_for, noise_for, real_classes
from common.scripts.sampling import make_sampler
from common.solvers import fitted, time_grid
from tiny import folder, options, run, weights

CONDITIONAL = options(num_classes=3, label_dropout=0.5)
HEADS = options(method="idff", sigma=0.3)
onnx = pytest.importorskip("onnx", reason="pip install onnx onnxruntime onnxscript")


class Small(torch.nn.Module):
    """A network of three layers with classes, since that of a U-Net takes exporters seconds."""

    num_classes, null_class, in_channels, out_channels, end_embed = 4, True, 1, 1, None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.labels = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Embedding(4, 1)

    def forward(self, x, t, y=None, r=None):
        y = torch.full((x.shape[0],), 3) if y is None else y
        return self.conv(x).tanh() + (t[:, None] * self.labels(y))[..., None, None]


def sampler_of(**how):
    return Sampler(Small(), "rf", (1, 4, 4), **how)


def missed(out, sampler):
    """The largest difference of a file's images of five noises to those of the sampler."""
    labels = labels_for(range(5), real_classes(sampler.net))
    noise = noise_for(range(5), sampler.shape, 3)
    ours = sampler.from_noise(noise, range(5), labels).images
    assert ours.std() > 0.05 and not (ours.abs() == 1).all()
    inputs = (noise,) if labels is None else (noise, labels)
    return (graphs.read(out, "torch" if out.suffix == ".pt2" else "onnx")(*inputs) - ours).abs().max().item()


def test_an_onnx_model_with_guidance_in_an_interval_gives_the_samplers_images(tmp_path):
    sampler, out = sampler_of(solver="heun", n_steps=3, cfg=1.5, interval=(0.2, 0.8)), tmp_path / "graph.onnx"
    written = graphs.write(sampler, out, "onnx", {"class_names": ["a", "b", "c"], "solver": "heun"})
    assert written.miss < 1e-4 and missed(out, sampler) < 1e-4
    model = onnx.load(out)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts == {"nfe": "9", "class_names": '["a", "b", "c"]', "solver": "heun"}
    # one network, called for each evaluation: at 0, and twice at 1/3, 1/3, 2/3 and, by the last Euler step, 2/3
    calls = [node for node in model.graph.node if node.domain == graphs.DOMAIN]
    assert len(calls) == 9 and [body.name for body in model.functions] == ["Network"]
    assert [value.name for value in model.graph.input] == ["noise", "labels"]
    unguided = sampler_of(solver="heun", n_steps=3)  # what is not guided is not the same
    assert missed(out, unguided) > 0.01


def test_a_program_of_torch_export_is_loaded_back(tmp_path):
    sampler, out = sampler_of(solver="unipc2", n_steps=3), tmp_path / "graph.pt2"
    assert graphs.write(sampler, out, "torch", {"solver": "unipc2"}) == (3, pytest.approx(0, abs=1e-6))
    assert missed(out, sampler) < 1e-5
    extra = {"facts.json": ""}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra["facts.json"]) == {"solver": "unipc2", "nfe": 3}


def test_a_graph_of_other_images_is_not_written(tmp_path, monkeypatch):
    out = tmp_path / "graph.pt2"
    out.write_text("old")
    monkeypatch.setattr(graphs, "read", lambda path, kind: lambda noise, labels: torch.zeros_like(noise))
    with pytest.raises(ValueError, match="differ from the sampler's"):
        graphs.write(sampler_of(solver="euler", n_steps=1), out, "torch", {})
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


HOW = [
    (CONDITIONAL, {"solver": "rk4", "n_steps": 2, "cfg": 2.0}, ()),
    (HEADS, {"solver": "unipc2", "n_steps": 3}, ()),
    (HEADS, {"solver": "idff", "n_steps": 2}, ()),
    (HEADS, {"solver": "fitted", "n_steps": 4}, ()),
    (options(method="flowmap"), {"solver": "flowmap", "n_steps": 2}, ()),
    (options(method="ect"), {"solver": "consistency", "n_steps": 1}, ()),
    (CONDITIONAL, {"solver": "midpoint", "n_steps": 2}, ("--format", "torch")),
    (CONDITIONAL, {"solver": "euler", "n_steps": 2}, ("--int8",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "how", "words"), HOW, ids=[" ".join((how["solver"], *words)) for _, how, words in HOW]
)
def test_graphs_of_a_u_net_by_the_command(tmp_path, config, how, words):
    two_times = config.method == "flowmap"
    file = run(tmp_path / "run", method="flowmap") if two_times else weights(tmp_path / "a_final.pt", config)
    fitted.keep_fitted(file, fitted.adams_sampler(time_grid(4).tolist(), 2), fitted.key_of(4, 1.0))
    out = tmp_path / ("graph.pt2" if "torch" in words else "graph.onnx")
    command.main([str(file), str(out), *words, *(word for key in how for word in (f"--{key}", str(how[key])))])
    miss = missed(out, make_sampler(folder(tmp_path), SampleConfig(weights=str(file), device="cpu", **how))[0])
    if "--int8" not in words:
        assert miss < 1e-4
        return
    assert 1e-4 < miss < 0.5
    kinds = {node.op_type for body in onnx.load(out).functions for node in body.node}
    assert "ConvInteger" in kinds and "Conv" not in kinds


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give weights and a file"),
        (["w.pt", "out.pt2"], "ends in .onnx"),
        (["w.pt", "out.onnx", "--format", "torch"], "ends in .pt2"),
        (["w.pt", "out.pt2", "--format", "torch", "--int8"], "--int8 is for"),
        (["w.pt", "out.onnx", "--solver", "dopri5"], "chooses its steps"),
        (["w.pt", "out.onnx", "--solver", "euler_maruyama"], "draws noise in every step"),
        (["w.pt", "out.onnx", "--solver", "consistency"], "give --n_steps 1"),
        (["w.pt", "out.onnx", "--cfg_interval", "0.1", "0.9"], "without guidance"),
        (["missing.pt", "out.onnx"], "no weights at missing.pt"),
    ],
)
def test_what_cannot_be_a_graph_is_refused_in_a_line(words, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        command.main(words)


def test_refusals_that_need_the_weights(tmp_path):
    file = str(weights(tmp_path / "a_final.pt", CONDITIONAL))
    with pytest.raises(ValueError, match="no sampler was fitted to a_final.pt"):
        command.main([file, str(tmp_path / "a.onnx"), "--solver", "fitted"])
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        command.main([file, str(tmp_path / "a.onnx"), "--class_names", "a", "b"])


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(ValueError, match="needs onnxruntime: pip install onnxruntime"):
        command.main(["w.pt", "out.onnx"])
