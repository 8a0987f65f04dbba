"""CIFAR-10: presets. ``default`` is for minutes of a GPU, ``small`` for a CPU, ``paper`` as torchcfm and IDFF."""

from dataclasses import replace
from pathlib import Path

from common.cli.configs import TrainConfig
from common.scripts.folder import CPU_NETWORK, OBJECTIVE, Folder

HERE = Path(__file__).resolve().parent

# Tong et al. 2024 and Rezaei et al. 2024: 35.7M parameters, 400k steps, for a GPU.
PAPER = TrainConfig(
    method="idff",
    sigma=0.2,
    flow_weight=2.0,
    num_channel=128,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=4,
    head_channels=64,
    dropout=0.1,
    lr=2e-4,
    warmup=5000,
    ema_decay=0.9999,
    batch_size=128,
    total_steps=400_000,
)

# 19.4M parameters: space-to-depth halves the sides, class labels make the most of few images. Eight minutes of an H200
# with --compile.
DEFAULT = replace(
    PAPER,
    **OBJECTIVE,
    times="mixed",
    num_channel=96,
    channel_mult=(2, 2, 2),
    attention_resolutions=(16, 8),
    dropout=0.05,
    patch_size=2,
    num_classes=10,
    label_dropout=0.1,
    lr=1e-3,
    betas=(0.9, 0.99),
    lr_decay="linear",
    warmup=500,
    ema_decay=0.998,
    batch_size=512,
    total_steps=9_000,
    save_step=500,
    sample_step=1000,
    val_step=1000,
    mixed_precision="bf16",
)

# A network for a CPU, 7.0M parameters.
SMALL = replace(
    DEFAULT,
    times="uniform",
    **CPU_NETWORK,
    betas=(0.9, 0.999),
    lr_decay="cosine",
    ema_decay=0.999,
    batch_size=64,
)

FOLDER = Folder(
    here=HERE,
    presets={
        "default": DEFAULT,
        "small": SMALL,
        "paper": PAPER,
        "paper-deep": replace(PAPER, channel_mult=(1, 2, 2, 4)),
    },
    data="torchvision:CIFAR10",
    weights="results/IDFF-2.0-0.2/IDFF_cifar10_weights_step_final.pt",
    weights_name="{METHOD}_cifar10_weights_step_final.pt",
    for_cpu="small",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
