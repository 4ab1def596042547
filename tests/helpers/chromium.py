"""Starts Debian's Chromium, headless, with Selenium."""

import shutil
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


class Missing(Exception):
    """What this machine lacks."""


def start(profile: Path, downloads: Path) -> Any:
    """Returns a driver that keeps its settings and its downloads in these folders.

    Raises:
      Missing: no Selenium, no browser or no driver.
    """
    try:
        from selenium import webdriver
    except ImportError as error:
        raise Missing("no selenium, of the extra 'dev'") from error
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            raise Missing(f"no {name} (Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(executable_path=programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    behavior = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    return driver
