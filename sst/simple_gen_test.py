"""One ensemble forecast from the shipped weights, or from any: its maps, and its score beside the baselines.

python simple_gen_test.py
python simple_gen_test.py --start 5 --members 100 --out forecast.png
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from sst.config import DrawOptions


def main() -> None:
    """Parse the command line and draw."""
    options = parse(DrawOptions, description=__doc__ or "")
    from sst.sst_pipeline import draw

    draw(options)


if __name__ == "__main__":
    run_main(main)
