"""CelebA-HQ at 256x256: presets (see ``common.scripts.presets256.large_image_presets``), data and names."""

from pathlib import Path

from common.scripts.folder import Folder
from common.scripts.presets256 import large_image_presets

HERE = Path(__file__).resolve().parent

FOLDER = Folder(
    here=HERE,
    presets=large_image_presets(batch_size=8),
    data="",
    places=("celebA_HQ.zip", "celebA_HQ.lmdb", "celebA_HQ"),
    advice="make celebA_HQ.zip of the 30,000 images at 256x256 with python -m common.prepare and put it there",
    weights="results/IDFF-2.0-0.2/IDFF_celeba_256_weights_step_final.pt",
    weights_name="{METHOD}_celeba_256_weights_step_final.pt",
    for_cpu="small",
)
