"""Molecular dynamics of capped polyalanine in implicit solvent: backbone dihedrals with their times, as npz.

python make_md_data.py
python make_md_data.py --residues 5 --n_trajectories 2 --nanoseconds 1 --out results/ala5

Needs two packages that nothing else here needs: pip install openmm PeptideBuilder. The first command made the files in
trajectories/. A run that was stopped goes on where it was when it is started again, and ends as if it had not been.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from timeseries_examples.md_data import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
