"""`python faults_drive.py RUN.yaml MISCHIEF.pickle light|real`: `mvqkd extract RUN.yaml --json` with such workers."""

import pickle
import sys
from pathlib import Path

from faults_rig import working_with

from mvqkd.pipeline import cli

if __name__ == "__main__":
    run_file, mischief, workers = sys.argv[1:]
    with working_with(workers, pickle.loads(Path(mischief).read_bytes())):  # noqa: S301 (of the test itself)
        sys.argv = ["mvqkd", "extract", run_file, "--json"]
        cli.main()
