"""The body of gen_true_*.py: the real images, for FID."""

from __future__ import annotations

from pathlib import Path

from common import cli
from common.cli.configs import TrueConfig
from common.scripts.folder import Folder, load_data, too_large


def true_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """Write the real images as numbered PNG files or one .npz, for FID."""
    config = cli.parse(TrueConfig, description=description, argv=argv)
    import torch
    from tqdm import tqdm

    from common.images import facts_file, open_writer
    from common.runtime import read_json

    preset = next(iter(folder.presets.values()))
    shape = (config.side or preset.image_size, preset.in_channels)
    chosen = {"split": config.split, "limit": config.n_samples or None}
    stream = too_large(folder, config, *shape, **chosen)
    images = load_data(folder, config, *shape, stream=stream, **chosen)
    target = Path(config.save_dir) if config.save_dir else folder.samples(config, "true")
    facts = facts_file(target)
    known = read_json(facts) if facts.exists() else {}
    fingerprint = {**images.contents(known), "split": config.split, "n": len(images)}
    writer = open_writer(target, len(images), (shape[1], shape[0], shape[0]), fingerprint)
    for index in tqdm(writer.missing(0, len(images)), unit="image", dynamic_ncols=True):
        writer.write(index, images.read(torch.tensor([index]))[0][0])
    writer.finish()
    print(f"{len(images)} images are in {target}")
    return target
