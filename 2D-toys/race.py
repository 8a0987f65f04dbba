"""Race all methods on one pair of distributions: same network, same number of steps, one page to look at.

    python race.py
    python race.py --source moons --target 8gaussians

About 150 s of CPU time, which two free cores share. The folder printed at the end holds race.html, which needs neither
a network nor a server, and race.csv with the same numbers.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from racing import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
