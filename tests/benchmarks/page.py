"""Size of the page of given logs, and how long a browser takes over it.

    python tests/benchmarks/page.py LOGS --benchmark v0.5 [--width 1400] [--json FILE]

Times are in milliseconds: until the first paint, until the first figure is there, the
median and the slowest of drawing each figure, and from a click on a switch of the
training curves until the next frame.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import scoring
from algoperf import hardware

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))
import chromium

_DRAW_ALL = """
const done = arguments[0];
(async () => {
  const times = [];
  for (const place of places) {
    const start = performance.now();
    await draw(place);
    times.push(performance.now() - start);
  }
  done(times);
})();
"""
_SWITCH = """
const done = arguments[1], start = performance.now();
document.querySelector(`input[value=${arguments[0]}]`).click();
setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(
  () => done(performance.now() - start))), 0);
"""


def measure(page: Path, width: int) -> dict[str, float]:
    """Returns milliseconds by name."""
    with tempfile.TemporaryDirectory() as folder:
        driver = chromium.start(Path(folder), Path(folder))
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1}
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": width < 600}
        )
        driver.get(page.as_uri())
        run = driver.execute_script
        run("document.getElementById('profile').scrollIntoView()")
        while not run("return document.querySelector('#profile .xtick')"):
            time.sleep(0.01)
        first_figure = run("return performance.now()")
        paint = run("return performance.getEntriesByType('paint')[0].startTime")
        draws = driver.execute_async_script(_DRAW_ALL)
        found = {
            "first paint": paint,
            "first figure": first_figure,
            "figure, median": statistics.median(draws),
            "figure, slowest": max(draws),
        }
        run("document.getElementById('curves').scrollIntoView()")
        for value in ("step", "near", "all"):
            time.sleep(1)
            found[f"switch to {value}"] = driver.execute_async_script(_SWITCH, value)
        driver.quit()
    return found


def main() -> None:
    """Writes the page, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--benchmark", default="v0.5")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rules = scoring.load_rules(arguments.benchmark)
    runs = scoring.read_runs([arguments.logs])
    assessment = scoring.assess(runs, scoring.score_runs(runs, rules))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        start = time.perf_counter()
        scoring.write_page(page, assessment)
        facts = {"writing": 1e3 * (time.perf_counter() - start)}
        size = page.stat().st_size
        facts |= measure(page, arguments.width)
    print(f"{len(runs.trials)} trials, {size / 1e6:.2f} MB")
    for name, milliseconds in facts.items():
        print(f"{milliseconds:8.0f} ms {name}")
    if arguments.json:
        values = {"host": hardware.describe_host(), "bytes": size, "ms": facts}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
