"""The short form of the soak: every fault once, in one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


def test_everything_goes_wrong_in_one_run() -> None:
    options = ["--shards", "40", "--chance", "0.025", "--storage", "s3", "--workers", "light", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    happened = report["happened"]
    assert happened == dict.fromkeys(happened, 1) and len(happened) == 14
    assert report["set_aside"] >= 1 and report["commands"] >= 3
