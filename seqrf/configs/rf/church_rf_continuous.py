"""LSUN church at 256x256: give the teacher by import_torch, and the images as a folder or zip.

The batch sizes are the authors' (Yoon & Lee 2402.06461, on a v3-8 TPU). Optimiser and averaging are those of CIFAR-10.
"""


def get_config():
    """Nested mappings, as in options.Config."""
    return {
        "data": {"dataset": "data/lsun_church", "image_size": 256, "channels": 3, "random_flip": True},
        "model": {"condition": "heads", "ema_rate": 0.9999, "variable_ema_rate": False},
        "training": {
            "n_reflow_data": 100_000,  # our choice: up to 59 GB, 393 kB each for the end and 197 kB for the real image
            "gen_reflow_size": 256,
            "batch_size": 64,
            "n_iters": 100_001,
            "lr": 2e-4,
            "warmup": 5000,
            "lr_decay": "none",
            "grad_clip": 1.0,
            "snapshot_freq": 10_000,
        },
        "sampling": {"method": "ode", "tol": 1e-4},
        "eval": {"num_samples": 50_000, "batch_size": 256},
    }
