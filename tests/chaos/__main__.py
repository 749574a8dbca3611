"""`make chaos`: minutes of faults, and the table of what they did."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos import faults
from tests.chaos.driver import Driver, deployed
from tests.services import services_running


def main() -> int:
    """Returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="how long faults are injected (240)")
    parser.add_argument("--workflows", type=int, default=200, help="start at least so many (200)")
    parser.add_argument("--at-once", type=int, default=12, help="keep so many under way (12)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of order and choices")
    parser.add_argument("--only", action="append", help="a kind of fault, instead of all; may be repeated")
    parser.add_argument("--folder", type=Path, help="where logs and effects are kept (a temporary folder)")
    options = parser.parse_args()
    chosen = [each for each in faults.ALL if not options.only or each.name in options.only]
    if not chosen:
        parser.error(f"there are only: {', '.join(each.name for each in faults.ALL)}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="stabilize-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, logs in {folder}", flush=True)
    with services_running() as (postgres, rabbit), deployed(postgres, rabbit, folder) as chaos:
        driver = Driver(chaos, chosen, options.seed, lambda line: print(line, flush=True))
        report = driver.run(options.workflows, options.seconds, options.at_once)
    print(f"\n{report}")
    for deserter in report.deserters:
        print(f"\n{deserter}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
