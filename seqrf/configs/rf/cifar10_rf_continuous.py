"""CIFAR-10 by the paper's recipe (Yoon & Lee 2402.06461, the authors' code): give the teacher by import_torch."""


def get_config():
    """Nested mappings, as in options.Config."""
    return {
        "data": {"dataset": "torchvision:CIFAR10", "image_size": 32, "channels": 3, "random_flip": True},
        "model": {
            "condition": "heads",  # k time embeddings, each a copy of the teacher's at first
            "ema_rate": 0.9999,
            "variable_ema_rate": False,
        },
        "training": {
            "n_reflow_data": 1_000_000,
            "gen_reflow_size": 2048,  # the authors' batches on a v3-8 TPU: 512 in training, 2048 without gradients
            "batch_size": 512,
            "n_iters": 100_001,
            "lr": 2e-4,
            "warmup": 5000,
            "lr_decay": "none",
            "grad_clip": 1.0,
            "snapshot_freq": 10_000,
        },
        "sampling": {"method": "ode", "tol": 1e-4},
        "eval": {"num_samples": 50_000, "batch_size": 2048},
    }
