"""The body of gen_*.py: many images, resumable and splittable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common import cli
from common.cli.configs import GenConfig
from common.scripts.folder import Folder


def gen_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """Generate many images as numbered PNG files or one .npz; goes on where it was stopped."""
    config, extra = cli.parse_with_extra(GenConfig, description=description, argv=argv)
    from common.generate import sample_many
    from common.images import add_counted, open_writer, to_uint8
    from common.runtime import processes
    from common.scripts.sampling import make_sampler, weights_hash, with_bar

    if config.smoke:
        config = replace(config, n_samples=min(config.n_samples, 16))
    here = processes(config.device)
    with here.main_first():  # it keeps an adaptive grid beside the weights, and begins the set; the others read both
        sampler, info = make_sampler(folder, replace(config, device=str(here.device)), extra)
        start, stop = cli.index_range(config.range, config.n_samples)
        target = Path(config.save_dir) if config.save_dir else folder.samples(config, "gen")
        keys = ("cfg", "label", "seed", "ema", "rtol", "atol", "mixed_precision")
        fingerprint = {"weights": weights_hash(info["path"]), **{key: getattr(config, key) for key in keys}}
        fingerprint |= {"label": -1 if config.label is None else config.label}
        fingerprint |= {key: getattr(sampler, key) for key in ("n_steps", "solver", "grid", "landing")}
        fingerprint |= {"times": sampler.times_hash(), **sampler.guidance()}
        c, h, w = sampler.shape
        writer = open_writer(target, config.n_samples, (c, h, w), fingerprint)
    todo = writer.missing(start, stop)[here.rank :: here.world]
    here.wait()  # all see the same images missing before the first one is written
    evaluations = 0.0
    batches = sample_many(sampler, todo, config.batch_size, config.label)
    for indices, images, nfe in with_bar(batches, len(todo), show=here.is_main):
        for index, image in zip(indices, to_uint8(images)):
            writer.write(index, image)
        evaluations += nfe * len(indices)
    here.wait()
    if here.is_main:
        if todo:  # the mean of the images made here: an adaptive solver's number differs between batches
            add_counted(target, nfe=evaluations / len(todo))
        writer.finish()
        print(f"images {start} to {stop - 1} are in {target}" + (f", NFE {evaluations / len(todo):g}" if todo else ""))
    return target
