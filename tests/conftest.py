"""Fixtures for all tests. Nothing here needs a network."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["s3_server", "run_fixtures", "ray_head", "browser"]

# No test goes to the network, not even to be told that there is none.
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MVQKD_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with a real corpus and a real teacher; MVQKD_REQUIRE_SHARED=1 makes its absence an error."""
    if not (SHARED / "corpora" / "an4").is_dir():
        message = f"no development data at {SHARED}"
        if os.environ.get("MVQKD_REQUIRE_SHARED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED
