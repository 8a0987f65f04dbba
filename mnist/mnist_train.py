"""Train a rectified flow on MNIST, and draw single digits from it.

python mnist_train.py                            # 28x28, the shipped recipe
python mnist_train.py --preset seed --image_size 128
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from _repo import HERE
from common.runtime import run_main
from common.scripts.train import train_main
from mnist.config import FOLDER

if TYPE_CHECKING:
    from torch import Tensor, nn


def generate_sample(
    model: nn.Module, img_size: tuple[int, int, int] = (1, 28, 28), steps: int = 100, label: int | None = None
) -> Tensor:
    """Draw one image by RK4 from noise (t = 0) to data (t = 1).

    Args:
        model: a network that predicts the velocity, called ``model(x, t, y)``.
        img_size: (C, H, W).
        steps: intervals of the time grid. Cost: four network evaluations each.
        label: the digit; None: any.

    Returns:
        The image in [-1, 1], shape (1, C, H, W), drawn from torch's global generator.
    """
    import torch

    from common.solvers import integrate, time_grid

    device = next(model.parameters()).device
    y = None if label is None else torch.tensor([label], device=device)
    with torch.no_grad():
        noise = torch.randn(1, *img_size, device=device)
        return integrate(lambda x, t: model(x, t, y), noise, time_grid(steps), "rk4").clamp(-1, 1)


def run(config: Any, images: Any, out: Path, weights_name: str, processes: Any) -> Path:
    """``common.training.train``; weights of ``ConditionalUNet()`` are also left bare where that project looks for them.

    A run of --smoke does not replace such a file.
    """
    from common.training import train

    final = train(config, images, out, weights_name, processes)
    bare = HERE / "flow_matching_mnist.pth"
    if processes.is_main and not config.plan and not (config.smoke and bare.exists()):
        leave_bare(final, bare)
    return final


def leave_bare(final: Path, bare: Path) -> None:
    """Write a run's averaged weights as ``ConditionalUNet().load_state_dict(torch.load(bare))`` takes them.

    Nothing is written where they are those of another network.
    """
    from common import checkpoint
    from common.unet import ConditionalUNet

    shapes = {key: value.shape for key, value in ConditionalUNet().state_dict().items()}
    weights = checkpoint.load(final)["ema_model"]
    if {key: value.shape for key, value in weights.items()} == shapes:
        checkpoint.save(bare, {key: value.float() for key, value in weights.items()})
        print(f"the weights alone, for ConditionalUNet(): {bare}")


if __name__ == "__main__":
    run_main(lambda: train_main(FOLDER, __doc__, run=run))
