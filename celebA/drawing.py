"""Images from a checkpoint by plain RK4, as the Flow Image Generator draws them; imports torch when it draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def sample_from_checkpoint(
    checkpoint_path: str | Path,
    out_path: str | Path = "samples/sample.png",
    steps: int = 2000,
    batch_size: int = 1,
    seed: int = 0,
) -> Tensor:
    """Draw images by RK4 from noise (t = 0) to data (t = 1), and save them side by side.

    Args:
        checkpoint_path: a checkpoint of this script, of another one here, or of the Flow Image Generator itself.
        out_path: the picture to write.
        steps: intervals of the time grid. Cost: four network evaluations each; 100 are plenty for most networks.
        batch_size: number of images.
        seed: image k is a function of the weights, this seed and k.

    Returns:
        The images in [-1, 1], (batch_size, C, H, W), on the CPU.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or none that this repository knows.
    """
    import torch
    from tqdm import tqdm

    from common import checkpoint, generate
    from common.images import grid, save_png
    from common.methods import METHODS
    from common.runtime import pick_device
    from common.solvers import integrate, time_grid

    net, info = checkpoint.load_network(checkpoint_path)
    net: Any = net.to(pick_device())
    method = info["method"]["name"]
    side = info["network"].get("image_size") or info["config"].get("image_size", 128)
    shape = (net.out_channels // METHODS[method].heads, side, side)
    start = METHODS[method].path(info["method"].get("sigma", 0.0)).start
    noise = start * generate.noise_for(range(batch_size), shape, seed).to(pick_device())
    velocity = generate.velocity_of(net, method)
    with torch.no_grad(), tqdm(total=4 * steps, unit="evaluation", dynamic_ncols=True) as bar:

        def counted(x: Tensor, t: Tensor) -> Tensor:
            bar.update(1)
            return velocity(x, t)

        images = integrate(counted, noise, time_grid(steps), "rk4").clamp(-1, 1).cpu()
    save_png(out_path, grid(images, n_columns=batch_size))
    print(f"{batch_size} image(s), {4 * steps} network evaluations each: {out_path}")
    return images
