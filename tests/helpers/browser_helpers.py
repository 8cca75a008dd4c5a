"""A headless Chromium that tells which requests pages made; see `README.md` for what it needs."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WAIT = 20.0  # seconds, for a busy machine


def program(*names: str) -> str:
    """The path of a program; without it tests are skipped, but fail in CI."""
    for name in names:
        if found := shutil.which(name):
            return found
    reason = f"{names[0]} is not installed: apt-get install chromium chromium-driver"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser of 1400 × 1000 pixels, without a screen."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def until(seen: Any, what: str) -> Any:
    """Wait until a function gives something true; returns that."""
    deadline = time.monotonic() + WAIT
    while not (found := seen()):
        assert time.monotonic() < deadline, f"not within {WAIT} s: {what}"
        time.sleep(0.02)
    return found


def requests_of(browser: webdriver.Chrome) -> set[str]:
    """Schemes of what was asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    return {url.split(":")[0] for url in urls}
