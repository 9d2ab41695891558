"""A real browser for tests of pages: one that is installed, never one that is fetched."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "microsoft-edge",
)  # fmt: skip


def browser_path() -> str | None:
    """`MVQKD_TEST_BROWSER`, or the first Chromium on the path."""
    named = os.environ.get("MVQKD_TEST_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser of playwright; MVQKD_REQUIRE_BROWSER=1 makes its absence an error."""
    refuse = pytest.fail if os.environ.get("MVQKD_REQUIRE_BROWSER") == "1" else pytest.skip
    path = browser_path()
    if path is None:
        refuse(
            "no Chromium on the path: install one (Debian: chromium-headless-shell) or set MVQKD_TEST_BROWSER"
        )
    elif not Path(path).is_file():
        refuse(f"MVQKD_TEST_BROWSER={path}: no such file")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        refuse("playwright is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()
