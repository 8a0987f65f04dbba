"""Figures that others published for the pairs of ``protocols.PAIRS``. None: not given, or not known here.

Data and scale are those of the runner that Tong et al. published with their code. That Shi et al. used the same data is
inferred, not stated: of the scales tried only these give squared transport distances near their path energies of
OT-CFM on moons-8gaussians (30.5) and of SB-CFM on N-8gaussians (15.1); those on N-moons and N-scurve (1.65, 2.14) are a
fifth above what is measured here. How many test points they took is inferred from the floor: W2 of 1,000 real points is
about twice their figures, that of 10,000 not above them.
"""

from __future__ import annotations

# Tong et al. 2302.00482: (W2, normalised path energy), Euler with 100 steps, 1,000 test points.
TONG: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("N-8gaussians", "OT-CFM"): (1.262, 0.018),
    ("N-8gaussians", "CFM"): (1.284, 0.222),
    ("moons-8gaussians", "OT-CFM"): (1.923, 0.053),
    ("moons-8gaussians", "CFM"): (None, 2.738),
    ("N-moons", "OT-CFM"): (0.239, None),
    ("N-scurve", "OT-CFM"): (0.264, None),
}

# Shi et al. (DSBM) 2303.16852, table 2: (W2, path energy), Euler with 20 steps.
DSBM: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("N-8gaussians", "OT-CFM"): (0.253, None),
    ("N-8gaussians", "RF"): (0.267, None),
    ("N-8gaussians", "SB-CFM"): (None, 15.08),
    ("moons-8gaussians", "OT-CFM"): (0.716, 30.5),
    ("moons-8gaussians", "RF"): (1.522, None),
    ("moons-8gaussians", "CFM"): (None, 116.5),
    ("moons-8gaussians", "SB-CFM"): (0.843, 45.69),
    ("N-moons", "OT-CFM"): (0.111, None),
    ("N-moons", "RF"): (0.129, None),
    ("N-moons", "FM"): (0.212, None),
    ("N-moons", "CFM"): (0.215, None),
    ("N-moons", "SB-CFM"): (None, 1.649),
    ("N-scurve", "OT-CFM"): (0.102, None),
    ("N-scurve", "RF"): (0.126, None),
    ("N-scurve", "SB-CFM"): (None, 2.144),
}
