"""CelebA: IDFF's presets at 64x64, and the Flow Image Generator's recipe at 128x128."""

from dataclasses import replace
from pathlib import Path

from common.cli.configs import TrainConfig
from common.scripts.folder import CPU_NETWORK, OBJECTIVE, Folder

HERE = Path(__file__).resolve().parent

# Rezaei et al. 2024, as their script for CelebA has it.
PAPER = TrainConfig(
    method="idff",
    sigma=0.2,
    flow_weight=2.0,
    image_size=64,
    num_channel=128,
    channel_mult=(1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=4,
    head_channels=64,
    dropout=0.1,
    lr=1e-5,
    warmup=5000,
    ema_decay=0.9999,
    batch_size=128,
    total_steps=500_000,
    flip=False,
    save_step=10_000,
    sample_step=10_000,
    val_step=10_000,
)

# The same network with our objective and the learning rate of their CIFAR-10 recipe.
DEFAULT = replace(PAPER, **OBJECTIVE, lr=2e-4, mixed_precision="bf16", flip=True)

# A network for a CPU: space-to-depth makes 16x16 of the images. Two hours of two cores; of half as many patches' side
# and half the channels, the loss is 2.5 times as high after the same minutes.
SMALL = replace(
    DEFAULT,
    patch_size=4,
    **CPU_NETWORK,
    lr=1e-3,
    lr_decay="cosine",
    warmup=100,
    ema_decay=0.999,
    batch_size=32,
    total_steps=7000,
    save_step=250,
    sample_step=500,
    val_step=250,
    log_step=10,
)

FOLDER = Folder(
    here=HERE,
    presets={"default": DEFAULT, "paper": PAPER, "small": SMALL},
    data="",
    places=("celebA.zip", "img_align_celeba.zip", "img_align_celeba"),
    advice="fetch img_align_celeba.zip (1.4 GB) from mmlab.ie.cuhk.edu.hk/projects/CelebA.html and put it there whole",
    weights="results/IDFF-2.0-0.2/IDFF_celeba_weights_step_final.pt",
    weights_name="{METHOD}_celeba_weights_step_final.pt",
    landing=0.5,  # their velocity near the data is mostly error; chosen by KID of EfficientNet-Lite0 on 500 images
    for_cpu="small",
)

# Flow Image Generator: 1000 epochs of batch 64, Adam without decay (AdamW with none is the same), no clipping.
GENERATOR = TrainConfig(
    method="rf",
    network="conditional_unet",
    image_size=128,
    num_channel=32,
    channel_mult=(1, 2, 4, 8),
    num_res_blocks=1,
    dropout=0.1,
    lr=1e-5,
    warmup=0,
    grad_clip=0.0,
    ema_decay=0.999,
    batch_size=64,
    epochs=1000,
    flip=False,
    save_step=1000,
    val_step=0,
)

GENERATOR_FOLDER = replace(
    FOLDER,
    presets={"default": GENERATOR},
    run="checkpoints",
    weights="checkpoints/rf_best.pth",
    weights_name="rf_weights_step_final.pt",
)
