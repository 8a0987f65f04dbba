"""A generative one-step propagator of a peptide's backbone dihedrals: train, forecast, roll out, compare, draw.

python MD_simulation.py
python MD_simulation.py --weights results/md/CFM_MD_v1.pt
python MD_simulation.py --data dipeptide --weights results/dipeptide/CFM_MD_v1.pt
python MD_simulation.py --data FOLDER_OF_NPZ --split blocks

Without a GPU; README.md has times and figures. The data are the trajectories of make_md_data.py, shipped in
trajectories/: ten alanines, and one by ``--data dipeptide``. ``--weights`` evaluates and draws without training.
``--condition time`` is the way of the first IDFF program: the network sees the absolute time instead of the present
frame, which no other trajectory shares.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from timeseries_examples.md import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__ or "")))
