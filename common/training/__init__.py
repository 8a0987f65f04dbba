"""Training: the loop (``loop``), its step (``trainer``), batches made ahead, reports; and a small loop (``small``)."""

from common.training.loop import train

__all__ = ["train"]
