"""The body of fit_sampler.py: samplers of few steps, fitted to a network's own fine trajectories."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

from common import cli
from common.cli.configs import FitConfig, SampleConfig, WeightsConfig
from common.runtime import number_of
from common.scripts.folder import Folder


def fit_main(folder: Folder, description: str, argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit samplers to the weights, test them on other noises, keep them beside the weights."""
    config, extra = cli.parse_with_extra(FitConfig, description=description, argv=argv)
    if config.smoke:
        config = replace(config, n_noises=2, n_test=2, fine_steps=2 * max(config.n_steps), search=0)
    from tqdm import tqdm

    from common.records.cards import commit
    from common.scripts.sampling import FIT_NOISE, TEST_NOISE, fitted_weights, make_sampler, teacher_of
    from common.solvers import fitted

    shared = {f.name: getattr(config, f.name) for f in fields(WeightsConfig)}
    asked = SampleConfig(**shared, solver="euler", grid="uniform")
    sampler, info = make_sampler(folder, asked, extra)
    weights = fitted_weights(info["path"], config.ema)
    teacher, velocity_for = teacher_of(
        sampler, config.n_noises, FIT_NOISE, config.fine_steps, "fine trajectories", config.seed
    )
    test, test_velocity = teacher_of(sampler, config.n_test, TEST_NOISE, config.fine_steps, "for the test", config.seed)

    error = partial(fitted.missed, test_velocity, test)
    results = []
    for n in config.n_steps:
        calls, title = (8 + config.search) * n, number_of(n, "step")
        with tqdm(total=calls, desc=title, unit="evaluation", dynamic_ncols=True) as bar:
            fit = fitted.fit_sampler(velocity_for, teacher, n, config.search, bar.update)
        euler = replace(sampler, n_steps=n).times()
        facts = {**fit.facts, "rms": error(fit, fit.times), "rms_euler": error("euler", euler)}
        facts |= {key: getattr(config, key) for key in ("n_noises", "n_test", "fine_steps", "search", "seed")}
        facts["commit"] = commit()
        results.append({"n_steps": n, **facts})
        print(f"{title}: RMS to the fine end {facts['rms']:.4f} on {config.n_test} other noises; ", end="")
        print(f"Euler {facts['rms_euler']:.4f}")
        if weights is not None and not (config.smoke and (not config.weights or folder.ships(weights))):
            key = fitted.key_of(n, config.cfg, sampler.landing, sampler.precision, sampler.guidance())
            path = fitted.keep_fitted(weights, fit, key, facts)
            print(f"kept in {path}: use it with --solver fitted --n_steps {fitted.flags_of(key)}")
    return results
