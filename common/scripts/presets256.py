"""Presets of the folders of 256x256 images."""

from __future__ import annotations

from dataclasses import replace

from common.cli.configs import TrainConfig
from common.scripts.folder import CPU_NETWORK, OBJECTIVE


def large_image_presets(batch_size: int) -> dict[str, TrainConfig]:
    """IDFF presets for 256x256 colour images, by name.

    ``paper`` is the network and recipe of IDFF's released scripts for these sizes; what it does not name (128 channels,
    2 residual blocks, heads of 64, dropout 0.1, warm-up 5000, EMA 0.9999) is as in ``TrainConfig``. The others change
    what it takes: ``default`` is for one GPU of 24 GB, ``multi`` for several, ``small`` for a CPU, which sees patches
    of 8x8 pixels as one (space-to-depth). They have our objective; their learning rates are chosen here, not tuned.

    Args:
        batch_size: of ``paper``.
    """
    paper = TrainConfig(
        method="idff",
        sigma=0.2,
        image_size=256,
        channel_mult=(1, 1, 2, 2, 4, 4),
        lr=1e-5,
        batch_size=batch_size,
        total_steps=500_000,
        flip=False,
        save_step=10_000,
        sample_step=10_000,
        val_step=10_000,
    )
    one = replace(paper, **OBJECTIVE, batch_size=32, grad_accum=4, lr=1e-4, flip=True, save_step=2000)
    one = replace(one, checkpointing=True, mixed_precision="bf16")
    several = replace(one, batch_size=128, grad_accum=2, parallel=True, lr=2e-4)
    small = replace(
        one,
        patch_size=8,
        **CPU_NETWORK,
        lr=5e-4,
        lr_decay="cosine",
        warmup=50,
        ema_decay=0.99,
        batch_size=16,
        grad_accum=1,
        checkpointing=False,
        total_steps=500,
        save_step=100,
        sample_step=250,
        val_step=100,
        log_step=10,
    )
    return {"default": one, "multi": several, "paper": paper, "small": small}
