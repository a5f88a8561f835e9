"""A headless Chromium for tests: Debian's, through selenium, with an empty profile."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_MISSING = [n for n in ("chromium", "chromedriver") if shutil.which(n) is None]
_MISSING += ["selenium"] if importlib.util.find_spec("selenium") is None else []
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(_MISSING),
        reason=f"NOT TESTED IN A BROWSER: missing {', '.join(_MISSING)} "
        "(apt-get install chromium chromium-driver; pip install selenium)",
    ),
]
"""For a module's ``pytestmark``."""
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def started_chrome(profile: Path) -> Iterator[Chrome]:
    """A browser whose console is kept; ``profile`` is an empty folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in [*_FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait up to ten seconds until a condition holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"not within 10 s: {what}"
        time.sleep(0.05)
