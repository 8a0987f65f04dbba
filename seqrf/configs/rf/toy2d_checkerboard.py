"""A gaussian to the checkerboard in the plane, otherwise as toy2d.py; --config.model.rf_phase=1 trains the teacher."""


def get_config():
    """Nested mappings, as in options.Config."""
    return {
        "data": {"dataset": "toy2d:checkerboard", "source": "gaussian", "random_flip": False},
        "training": {
            "n_reflow_data": 20_000,
            "gen_reflow_size": 2048,
            "batch_size": 512,
            "n_iters": 5000,
            "lr": 1e-3,
            "warmup": 0,
            "lr_decay": "cosine",
            "snapshot_freq": 5000,
        },
        "eval": {"num_samples": 2000, "batch_size": 2000},
        "pipeline": {"segments": (1, 2, 4, 6, 8, 12)},
    }
