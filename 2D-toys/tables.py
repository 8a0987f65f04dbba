"""The published tables of 2D toys, measured again: OT-CFM, CFM, FM, RF, SB-CFM and IDFF, and what improves OT-CFM.

    python tables.py                                     # everything; interrupted, the same command goes on
    python tables.py --pairs N-moons --seeds 42          # a part of it
    python tables.py --table                             # only writes tables/README.md again, from the rows

Every finished network is a row of tables/rows.jsonl. Hours on one core, see tables/README.md; --smoke takes seconds.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from table_rows import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
