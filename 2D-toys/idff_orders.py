"""IDFF's second- and third-order samplers in the plane, beside the plain flow at the same number of calls.

    python idff_orders.py
    python idff_orders.py --source moons --orders 2 --calls 20 --gammas 0.2 -0.5

One network x1_hat(x, t) is trained on optimal-transport pairs. With g1 = grad_x sum(x1_hat), g2 = grad_x sum(g1) and
g3 = grad_x sum(g2) the published drift of order k is

    sqrt(1 - (gam1 + .. + gamk) s^2) (x1_hat - x) / (1 - t) + [(gam1 - 1/2) g1 + gam2 g2 + gam3 g3] s^2 / sigma^2,

s^2 = sigma^2 t (1 - t). At gamma = 0 it still holds -g1/2: the plain flow, (x1_hat - x) / (1 - t), is the drift without
any gradient, and not a case of it. The gammas are chosen by the MMD to validation points; what is printed is measured
on test points. A call is an evaluation of the network or a backward pass. One CPU core, about a minute.
Source: Rezaei et al. 2409.14599, as in the authors' later code.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from higher_orders import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
