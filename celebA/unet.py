"""The network by the Flow Image Generator's name: ``from unet import ConditionalUNet``."""

from _repo import HERE  # noqa: F401
from common.unet import ConditionalUNet

__all__ = ["ConditionalUNet"]
