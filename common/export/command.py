"""Write a whole sampler, steps, guidance and clamping, as one graph (noise, labels) -> images of any batch size.

    python -m common.export cifar10/results/IDFF-2.0-0.2 build/cifar10.onnx
    python -m common.export mnist/results/RF-0.0 build/mnist.pt2 --format torch --solver heun --n_steps 5 --cfg 1.5

The ONNX model runs by onnxruntime, where nothing of this library is installed; on a CPU it is faster than torch (see
benchmarks/LOG.md). Before the file takes its place its images are compared with the sampler's. It says of itself where
it comes from, what its inputs and images are, method, solver, evaluations and names of the classes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common import cli
from common.cli.configs import WHOLE, GridName, SampleConfig, SolverName
from common.cli.ranges import Above, AtLeast, AtMost, Count, NoneFor, NotNegative
from common.scripts.folder import Folder

if TYPE_CHECKING:
    from common.generate import Sampler

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
NOT_FIXED = {
    "dopri5": "chooses its steps as it goes",
    "torchdyn": "steps in another package",
    "euler_maruyama": "draws noise in every step",
}


@dataclass(frozen=True)
class Options:
    """Options of the export; those of the sampler are simple_gen_test.py's."""

    weights: str = ""
    """Checkpoint file, run folder, a hub's folder or hf:USER/NAME; may stand without this flag"""
    out: str = ""
    """File to write, .onnx or .pt2; may stand without this flag"""
    format: Literal["onnx", "torch"] = "onnx"
    """torch: a program of torch.export"""
    int8: bool = False
    """Networks in 8 bits, dynamically quantised by onnxruntime; their images are others, of less quality"""
    class_names: tuple[str, ...] = ()
    """Names of the classes, for the file to tell, where the weights' own does not"""

    # ---- the sampler
    solver: SolverName = "auto"
    """Numerical method of fixed steps; auto: the sampler fitted to these weights and n_steps, else a good plain one"""
    n_steps: Count | None = None
    """Intervals of the time grid; none: 10"""
    grid: GridName = "auto"
    """Time grid; adaptive: made for these weights by dynamic programming"""
    cfg: NotNegative = 1.0
    """Guidance scale of conditional weights, or by a guide; 1: none"""
    cfg_interval: tuple[Annotated[float, AtLeast(0), AtMost(1)], ...] = WHOLE
    """Times FROM TO (0 noise, 1 data) that --cfg guides"""
    guide: str = ""
    """Worse weights for the same task that --cfg leads away from"""
    landing: Annotated[float | None, Above(0), AtMost(1), NoneFor(0)] = None
    """Time from which the last step goes straight to the predicted data; none: no such rule"""
    ema: bool = True
    """Averaged weights; --no-ema: the raw ones, when the file has them"""

    def check_together(self) -> None:
        ending = ENDINGS[self.format]
        if self.out and Path(self.out).suffix != ending:
            raise ValueError(f"{self.out}: the file of --format {self.format} ends in {ending}")
        if self.int8 and self.format != "onnx":
            raise ValueError("--int8 is for --format onnx")
        self.sampling.check_together()
        check_fixed(self.solver, self.n_steps or SampleConfig.usual_steps)
        needed = ("onnx", "onnxscript", "onnxruntime") if self.format == "onnx" else ()
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")

    @property
    def sampling(self) -> SampleConfig:
        """The options of the sampler."""
        known = {field.name for field in fields(SampleConfig)}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name in known}
        return SampleConfig(**own, device="cpu")


def export(options: Options) -> Path:
    """Write the graph, and return its file.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: nothing is named, a sampler that is no fixed graph, names that are not as many as the classes, a
            missing package.
    """
    if not (options.weights and options.out):
        raise ValueError("give weights and a file to write: python -m common.export WEIGHTS FILE.onnx")
    from common import checkpoint
    from common.export import graphs
    from common.generate import real_classes
    from common.scripts.sampling import make_sampler

    source, out = checkpoint.find(Path(options.weights).expanduser(), "WEIGHTS"), Path(options.out).expanduser()
    folder = Folder(here=source.parent, presets={}, data="", weights=source.name, weights_name="")
    sampler, info = make_sampler(folder, cli.with_values(options.sampling, {"weights": str(source)}))
    check_fixed(sampler.solver, sampler.n_steps)
    count, names = real_classes(sampler.net), options.class_names or tuple(info["classes"])
    if names and len(names) != count:
        raise ValueError(f"--class_names: {len(names)} names for {count} classes of {source.name}")
    written = graphs.write(sampler, out, options.format, facts_of(sampler, source, options, names), options.int8)
    print(f"graph: {out}, {out.stat().st_size / 1e6:.1f} MB, {sampler.solver}, NFE {written.nfe:g}")
    print(f"largest difference to the sampler's own images, which are in [-1, 1]: {written.miss:.1g}")
    return out


def check_fixed(solver: str, n_steps: int) -> None:
    """Raises ValueError for a solver whose images are no fixed function of the noise."""
    if solver == "consistency" and n_steps > 1:
        raise ValueError("--solver consistency draws noise between its steps, a graph has but one: give --n_steps 1")
    if reason := NOT_FIXED.get(solver):
        raise ValueError(
            f"--solver {solver} {reason}, which no fixed graph does: give euler, midpoint, heun, rk4, unipc2, fitted "
            "or another one of fixed steps"
        )


def facts_of(sampler: Sampler, source: Path, options: Options, names: Sequence[str]) -> dict[str, Any]:
    """What the file says of itself, beside its evaluations."""
    from common.generate import real_classes
    from common.records.cards import commit
    from common.runtime import file_hash

    count, shape = real_classes(sampler.net), ", ".join(map(str, sampler.shape))
    inputs = {"noise": f"standard normal, float32 (batch, {shape})"}
    inputs |= {"labels": f"int64 (batch,), 0 to {count - 1}"} if count else {}
    return {
        "weights": source.name,
        "weights_sha256": file_hash(source),
        **inputs,
        "images": f"float32 (batch, {shape}) in [-1, 1]",
        **({"class_names": list(names)} if names else {}),
        "method": sampler.method,
        "sigma": sampler.sigma,
        "solver": sampler.solver,
        "grid": sampler.grid,
        "n_steps": sampler.n_steps,
        "cfg": sampler.cfg,
        **sampler.guidance(),
        "landing": sampler.landing,
        "precision": "int8, dynamic" if options.int8 else "float32",
        "commit": commit(),
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """The command line; returns the file."""
    return export(cli.parse(Options, description=__doc__ or "", argv=argv, words=("weights", "out")))
