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
        "model": {"ema_rate": 0.995, "variable_ema_rate": True},
        "training": {
            "import_torch": "../mnist/results/RF-0.0/flow_matching_mnist.pth",
            "n_reflow_data": 6000,
            "gen_reflow_size": 100,
            "batch_size": 64,
            "n_iters": 1200,
            "lr": 5e-4,
            "warmup": 50,
            "lr_decay": "cosine",
            "snapshot_freq": 400,
            "adaptive_samples": 64,
            "adaptive_steps": 200,
        },
        # guided pairs: the student needs one evaluation where the guided teacher needs two
        "sampling": {"tol": 1e-3, "cfg": 1.5},
        "eval": {"num_samples": 2000, "batch_size": 250},
        "pipeline": {"segments": (4, 2, 1), "adaptive": (4,), "distill": (4, 1), "teacher_steps": (32,)},
        "mixed_precision": "bf16",
    }
