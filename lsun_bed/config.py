"""LSUN bedroom at 256x256: presets (see ``common.scripts.presets256.large_image_presets``), data and names."""

from pathlib import Path

from common.scripts.folder import Folder
from common.scripts.presets256 import large_image_presets

HERE = Path(__file__).resolve().parent

FOLDER = Folder(
    here=HERE,
    presets=large_image_presets(batch_size=16),
    data="",
    places=("lsun_bed.zip", "lsun_bed.lmdb", "bedroom_train_lmdb"),
    advice="fetch bedroom_train_lmdb.zip (43 GB) from dl.yf.io/lsun/scenes, unpack it and put the folder there",
    weights="results/IDFF-2.0-0.2/IDFF_lsun_bed_weights_step_final.pt",
    weights_name="{METHOD}_lsun_bed_weights_step_final.pt",
    for_cpu="small",
)
