"""MNIST: presets. ``default`` is what is shipped, ``seed`` the Flow Image Generator's 64x64 set-up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.cli.configs import TrainConfig
from common.scripts.folder import Folder

HERE = Path(__file__).resolve().parent

# Class-conditional rectified flow at 28x28; space-to-depth makes it a network for a CPU.
DEFAULT = TrainConfig(
    method="rf",
    image_size=28,
    in_channels=1,
    num_channel=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(7,),
    head_channels=32,
    dropout=0.0,
    patch_size=2,
    num_classes=10,
    label_dropout=0.1,
    lr=1e-3,
    lr_decay="cosine",
    warmup=300,
    ema_decay=0.999,
    batch_size=64,
    total_steps=5000,
    flip=False,
    save_step=500,
    sample_step=1000,
    val_step=1000,
    mixed_precision="bf16",
)

# Flow Image Generator: no classes, 20 epochs of batch 64, learning rate 1e-4, four levels; --image_size 128 is its
# other size.
SEED = replace(
    DEFAULT,
    network="conditional_unet",
    image_size=64,
    patch_size=1,
    channel_mult=(1, 2, 2, 4),
    dropout=0.1,
    num_classes=0,
    lr=1e-4,
    lr_decay="none",
    warmup=0,
    epochs=20,
    mixed_precision="no",
)


def load_data(*args: Any, **options: Any) -> Any:
    """MNIST by torchvision, or by Keras when its mirror fails; imported late, so that --help stays fast."""
    from mnist.by_keras import load_mnist

    return load_mnist(*args, **options)


FOLDER = Folder(
    here=HERE,
    presets={"default": DEFAULT, "seed": SEED},
    data="torchvision:MNIST",
    weights="results/RF-0.0/flow_matching_mnist.pth",
    few="results/ECT-0.0/flow_matching_mnist.pth",
    weights_name="flow_matching_mnist.pth",
    load_data=load_data,
)
