"""One, two and four evaluations in the plane: reflow, sequential reflow, consistency tuning, flow maps.

    python few_steps.py --seeds 0 1 2 3 4                          # W2 from 8 gaussians to moons
    python few_steps.py --pairs gaussian-moons --methods ect flowmap --steps 1000 4000 16000

All begin with the weights of the rectified flow that race.py trains, and take the steps given. Printed are W2 to fresh
points beside that of real points, and the root mean square distance of the samples to the ends of the teacher's own
fine solution (100 midpoint steps) from the same starts. About 10 s of one core for each 4,000 steps. Rows are kept in
tables/few_steps.jsonl; what is there already is not measured again.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from few_step_rows import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
