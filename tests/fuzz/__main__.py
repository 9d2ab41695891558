"""`python -m tests.fuzz --cases 20000`: random manifests, transcripts, run files and table files.

Every case ends in a refusal that names its place, or in the right answer; the first that does not ends the run with the
case that hypothesis has made as small as it can.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_corpus
import fuzz_plan_lines
import fuzz_run_file
import fuzz_storage

PARTS = {
    "corpus": fuzz_corpus,
    "plan_lines": fuzz_plan_lines,
    "run_file": fuzz_run_file,
    "storage": fuzz_storage,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="in all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    arguments = parser.parse_args()
    each = -(-arguments.cases // len(arguments.parts))
    for name in arguments.parts:
        began = time.monotonic()
        PARTS[name].run(each, arguments.seed)
        print(f"{name}: {each} cases in {time.monotonic() - began:.0f} s", flush=True)


main()
