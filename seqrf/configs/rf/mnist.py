"""MNIST on a CPU: the teacher is the shipped class-conditional flow, its classifier measures. Our own settings."""


def get_config():
    """Nested mappings, as in options.Config; paths are relative to seqrf/."""
    return {
        "data": {
            "dataset": "torchvision:MNIST",
            "image_size": 28,
            "channels": 1,
            "random_flip": False,  # a mirrored digit is another one, or none
            "classifier": "../mnist/results/classifier.pt",
        },
        "model": {"ema_rate": 0.999, "variable_ema_rate": True},
        "training": {
            "import_torch": "../mnist/results/RF-0.0/flow_matching_mnist.pth",
            "n_reflow_data": 10_000,
            "batch_size": 64,
            "n_iters": 4000,
            "lr": 3e-4,
            "warmup": 100,
            "lr_decay": "cosine",
            "snapshot_freq": 1000,
        },
        "eval": {"num_samples": 2000},
    }
