"""Training: a run (``loop``), its step (``trainer``), batches made ahead, reports; and a small loop (``small``)."""

from common.training.loop import run, train

__all__ = ["run", "train"]
