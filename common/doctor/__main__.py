"""Say what is wrong on this machine, each with the command that mends it.

    python -m common.doctor

Exit code 0: sampling and training work; 1: something that is marked "stop" is in their way. It needs no package, and
runs where torch cannot be imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence  # noqa: UP035  an old Python is to get as far as the line about it

OLDEST = (3, 10)


def main(argv: Optional[Sequence[str]] = None, root: Optional[Path] = None) -> int:  # noqa: UP045
    """Look at everything, print it, return the exit code; ``root`` is the repository, else this one."""
    parser = argparse.ArgumentParser("python -m common.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args(argv)
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        print("stop  Python %s is too old, %s or newer is needed" % (sys.version.split()[0], wanted))  # noqa: UP031
        print("      to mend: uv venv --python 3.12 .venv, or install it from python.org")
        return 1
    from common.doctor.checks import look

    stops = 0
    for level, text, mend in look(root or Path(__file__).resolve().parents[2]):
        print(f"{level:5} {text}" + (f"\n      to mend: {mend}" if mend else ""), flush=True)
        stops += level == "stop"
    print(f"{stops} thing(s) stop sampling or training" if stops else "sampling and training work")
    return min(stops, 1)


if __name__ == "__main__":
    sys.exit(main())
