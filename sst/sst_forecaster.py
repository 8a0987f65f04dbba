"""Train a flow that forecasts sea surface temperature, draw ensembles of 7 leads, score them, draw figures.

python sst_forecaster.py                                  # a synthetic field whose exact forecast is known
python sst_forecaster.py --preset ersst --data sst.mnmean.nc
python sst_forecaster.py --mode forecast --init latest --preset ersst --data sst.mnmean.nc    # no training

Two CPU cores suffice. The run folder gets the weights, metrics.jsonl, scores.json and two figures; README.md says how
long it takes and which numbers to expect.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from sst.config import PRESETS, Options, smoke


def main() -> None:
    """Parse the command line and run."""
    options = parse(Options, PRESETS, __doc__ or "")
    from sst.sst_pipeline import run

    run(smoke(options) if options.smoke else options)


if __name__ == "__main__":
    run_main(main)
