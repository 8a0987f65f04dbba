"""The body of simple_gen_test.py: a picture of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.cli.configs import GridConfig
from common.runtime import number_of
from common.scripts.folder import Folder

NAMED = 16  # classes, at most, that get a row each and its name
LONG = 10.0  # seconds after which a faster way is told
SMALL = 64  # images of this side or less are shown at twice their size


def grid_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """A picture of images from the shipped or given weights, and what it took: a grid, arcs or an inversion.

    Of conditional weights that know few classes each has a row of the grid, with its name before it.
    """
    config, extra = cli.parse_with_extra(GridConfig, description=description, argv=argv)
    if config.invert:
        from common.scripts.invert import invert

        return invert(folder, config, extra)
    import time

    import torch

    from common import generate
    from common.images import class_rows, grid, save_gif, save_png
    from common.scripts.sampling import make_sampler, with_bar
    from common.solvers import SOLVERS

    sampler, info = make_sampler(folder, config, extra)
    start, name, columns, rowed = time.perf_counter(), "", None, 0
    if config.interpolate:
        name, columns, rows = "_arcs", config.columns, math.ceil(config.n_samples / config.columns)
        made = generate.interpolate(sampler, rows, columns, config.batch_size, config.label)
    else:
        classes = generate.real_classes(sampler.net)
        rowed = classes if config.label is None and 1 < classes <= NAMED else 0  # a row each, since they take turns
        made = generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label, config.gif)
    batches = list(with_bar(made, config.n_samples))  # type: ignore[type-var]
    images, nfe = torch.cat([part for *_, part, _ in batches]), batches[-1][-1]
    names = class_names(folder, info, rowed)[: config.n_samples] if rowed else ()
    scale = 2 if images.shape[-1] <= SMALL else 1

    def picture(images: Any) -> Any:
        return (
            class_rows(images, len(names), scale=scale, beside=names) if names else grid(images, columns, scale=scale)
        )

    kind = "gif" if config.gif else "png"
    out = Path(config.out) if config.out else folder.samples(config, f"{sampler.solver}_nfe{nfe:g}{name}.{kind}")
    if config.gif:  # (B, n + 1, C, H, W)
        save_gif(out, [picture(state) for state in images.unbind(1)])
    else:
        save_png(out, picture(images))
    print(
        f"{number_of(len(images), 'image')}, {info['method']['name']} weights of step {info.get('step', '?')}, "
        f"{sampler.solver}, {number_of(sampler.n_steps, 'step')}, grid {sampler.grid}, NFE {nfe:g}, "
        f"seed {config.seed}, {(seconds := time.perf_counter() - start):.1f} s"
    )
    print(f"picture: {out}")
    on_cpu = next(sampler.net.parameters()).device.type == "cpu"
    if on_cpu and seconds > LONG and sampler.solver in (*SOLVERS, "fitted") and not config.gif:
        print(f"faster on a CPU, by onnxruntime: python -m common.export {info['path']} FILE.onnx (docs/howto.md)")
    return out


def class_names(folder: Folder, info: dict[str, Any], count: int) -> Sequence[str]:
    """What weights call their classes; their numbers where neither their file nor, of shipped ones, the folder says."""
    names = info["classes"] or (folder.classes if folder.ships(Path(info["path"])) else ())
    return names if len(names) == count else [str(k) for k in range(count)]
