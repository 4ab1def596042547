"""A headless Chromium, and pages of small records for it to open.

Without the browser, its driver or Selenium, these tests skip and say so.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest

from algoperf import records
from scoring import assess, load_rules, read_runs, score_runs, write_page


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Selenium driver whose downloads go to `browser.downloads`."""
    downloads = tmp_path_factory.mktemp("downloads")
    try:
        driver = chromium.start(tmp_path_factory.mktemp("profile"), downloads)
    except chromium.Missing as missing:
        pytest.skip(str(missing))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser) -> Callable[..., None]:
    """Opens a page and forgets what the browser logged before."""

    def open_it(
        path: Path, width: int = 1400, scheme: str = "light", height: int = 1000
    ) -> None:
        for log in ("browser", "performance"):
            browser.get_log(log)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": width < 600}
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(path.as_uri())

    return open_it


@pytest.fixture
def requested(browser) -> Callable[[], list[str]]:
    """Lists the addresses that the page has asked for since the last call."""

    def addresses() -> list[str]:
        messages = [
            json.loads(entry["message"])["message"]
            for entry in browser.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    return addresses


def _record(root: Path, submission: str, workload: str, trial: int, **facts) -> None:
    folder = records.trial_folder(root, submission, 0, workload, trial)
    folder.mkdir(parents=True)
    speed, metric, shape = facts["speed"], facts["metric"], facts["shape"]
    rows = [
        {
            records.GLOBAL_STEP: 7 * step,
            records.SUBMISSION_TIME: speed * (step + 1 / 3),
            f"validation/{metric}": float(shape(step / trial * (1 - 0.02 * speed))),
        }
        for step in range(12)
    ]
    records.write_measurements(folder / records.EVAL_FILE, rows)
    settings = {"learning_rate": 0.001 * trial, "schedule": "cosine"}
    records.write_json(folder / records.HPARAMS_FILE, settings)
    record: Mapping[str, Any] = {
        "schema_version": records.SCHEMA_VERSION,
        "status": "reached",
        "devices": {"device_kind": "test device"},
    }
    records.write_json(folder / records.RECORD_FILE, record)


def _accuracy(x: float) -> float:
    """Levels off a little above the target, wherever that is."""
    goal = load_rules("mini_fast").goals["imagenet_resnet_mini"]
    return 1.044 * goal.target * (1 - np.exp(-x / 2.7))


def _perplexity(x: float) -> float:
    goal = load_rules("mini_fast").goals["finewebedu_lm_mini"]
    return 0.78 * goal.target + 900 * np.exp(-x / 1.3)


@pytest.fixture
def write_trial() -> Callable[..., None]:
    """Writes the record of a trial of made-up numbers."""
    return _record


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder and page of three submissions on two workloads, one trial failed."""
    root = tmp_path_factory.mktemp("small") / "runs"
    for number, submission in enumerate(("adamw", "momentum", "shampoo"), start=1):
        for trial in (1, 2):
            speed = 1.7 * number + 0.01 * trial
            for workload, metric, shape in (
                ("imagenet_resnet_mini", "accuracy", _accuracy),
                ("finewebedu_lm_mini", "ppl", _perplexity),
            ):
                facts = {"speed": speed, "metric": metric, "shape": shape}
                _record(root, submission, workload, trial, **facts)
    failed = records.trial_folder(root, "shampoo", 0, "imagenet_resnet_mini", 3)
    failed.mkdir()
    facts = {
        "schema_version": 1,
        "status": "failed",
        "message": 'out of "memory", 9 GiB',
    }
    records.write_json(failed / records.RECORD_FILE, facts)
    path = root.parent / "page.html"
    rules = load_rules("mini_fast")
    runs = read_runs([root])
    write_page(path, assess(runs, score_runs(runs, rules)))
    return root, path
