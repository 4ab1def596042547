"""The page in a real browser: what a reader sees, clicks, types and downloads."""

import csv
import re
import time
from pathlib import Path

import pytest

from algoperf import records
from scoring import (
    assess,
    load_rules,
    predict_runs,
    read_runs,
    score_runs,
    write_page,
)

pytest.importorskip("selenium", reason="needs selenium, of the extra 'dev'")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

RULES = load_rules("mini_fast")


def _wait(browser, condition, seconds=30):
    return WebDriverWait(browser, seconds, 0.1).until(lambda _: condition())


def _drawn(browser, anchor):
    """Scrolls to a figure and waits until it is drawn and still."""
    place = browser.find_element(By.ID, anchor)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    _wait(browser, lambda: place.find_elements(By.CSS_SELECTOR, ".xtick"))
    time.sleep(0.3)
    return place


def _column(browser, table, index):
    rows = browser.find_elements(By.CSS_SELECTOR, f"{table} tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[index].text for row in rows]


def _downloaded(browser, button, name):
    path: Path = browser.downloads / name
    path.unlink(missing_ok=True)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    _wait(browser, path.exists)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _button(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, f"button{selector}")


def test_needs_no_network_and_logs_no_error(browser, open_page, requested, small):
    _, page = small
    open_page(page)
    for anchor in ("profile", "curves-0", "curves-1"):
        _drawn(browser, anchor)
    assert [url for url in requested() if not url.startswith(("file:", "blob:"))] == []
    # Level WARNING is what a refused style, script or request is logged with too.
    assert browser.get_log("browser") == []


def test_a_click_sorts_and_another_turns_the_order(browser, open_page, small):
    open_page(small[1])
    assert _column(browser, "#scores", 0) == ["adamw", "momentum", "shampoo"]
    header = browser.find_elements(By.CSS_SELECTOR, "#scores th button")[1]
    heading = header.find_element(By.XPATH, "..")
    assert heading.get_attribute("aria-sort") == "descending"
    header.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert _column(browser, "#scores", 0) == ["shampoo", "momentum", "adamw"]
    header.click()
    assert _column(browser, "#scores", 0) == ["adamw", "momentum", "shampoo"]


def test_the_keyboard_alone_sorts_opens_and_switches(browser, open_page, small):
    open_page(small[1])

    def tab_to(wanted):
        for _ in range(80):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            if browser.execute_script(
                f"return document.activeElement.matches({wanted!r})"
            ):
                return browser.switch_to.active_element
        raise AssertionError(f"no way by Tab to {wanted}")

    first = tab_to(".skip")
    assert first.is_displayed()
    header = tab_to("#scores th:nth-child(2) button")
    outline = "return getComputedStyle(arguments[0]).outlineStyle"
    assert browser.execute_script(outline, header) == "solid"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert _column(browser, "#scores", 0) == ["shampoo", "momentum", "adamw"]
    tab_to("input[name=abscissa]")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    place = _drawn(browser, "curves-0")
    _wait(browser, lambda: "steps" in place.text)
    summary = tab_to("details[data-trials=shampoo] summary")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert summary.find_element(By.XPATH, "..").get_attribute("open") is None


def test_misses_stay_last_whatever_the_order(browser, open_page, small):
    open_page(small[1])
    table = "details[data-trials=shampoo]"
    _wait(browser, lambda: _column(browser, table, 0))
    headers = browser.find_elements(By.CSS_SELECTOR, f"{table} th button")
    names = [header.text.strip() for header in headers]
    index = next(i for i, name in enumerate(names) if name.startswith("seconds to"))
    for order in (1, -1):
        headers[index].click()
        seconds = _column(browser, table, index)
        numbers = [float(text) for text in seconds if text != "miss"]
        assert numbers == sorted(numbers, key=lambda x: order * x)
        assert seconds[len(numbers) :] == ["miss"] * (len(seconds) - len(numbers))
    assert "miss" in seconds


def test_only_a_target_can_be_missed(browser, open_page, write_trial, tmp_path):
    facts = {"speed": 1, "metric": "accuracy", "shape": lambda x: x / 99}
    write_trial(tmp_path, "adamw", "imagenet_resnet_mini", 1, **facts)
    folder = records.trial_folder(tmp_path, "adamw", 0, "imagenet_resnet_mini", 1)
    records.write_json(folder / records.HPARAMS_FILE, {"clip": "inf", "rate": 0.5})
    rows = records.read_measurements(folder / records.EVAL_FILE)
    rows[-1]["validation/accuracy"] = -float("inf")
    records.write_measurements(folder / records.EVAL_FILE, rows)
    runs = read_runs([tmp_path])
    write_page(tmp_path / "page.html", assess(runs, score_runs(runs, RULES)))
    open_page(tmp_path / "page.html")
    table = "details[data-trials=adamw]"
    _wait(browser, lambda: _column(browser, table, 0))
    headers = browser.find_elements(By.CSS_SELECTOR, f"{table} th button")
    shown = {
        header.text.strip(): _column(browser, table, index)
        for index, header in enumerate(headers)
    }
    assert shown["seconds to target"] == ["miss"]
    assert shown["last"] == ["-inf"]
    assert shown["clip"] == ["inf"]


def test_downloads_have_the_numbers_of_the_records(browser, open_page, small):
    root, page = small
    open_page(page)
    runs = read_runs([root])
    result = score_runs(runs, RULES)

    rows = _downloaded(browser, _button(browser, "[data-csv=scores]"), "scores.csv")
    assert {row["submission"]: float(row["score"]) for row in rows} == dict(
        zip(result.submissions, result.scores.tolist(), strict=True)
    )
    rows = _downloaded(browser, _button(browser, "[data-csv=times]"), "times.csv")
    for row in rows:
        s = result.submissions.index(row["submission"])
        w = result.workloads.index(row["workload"])
        assert float(row["seconds"]) == result.times[s, w]
        assert float(row["ratio"]) == result.ratios[s, w]
    rows = _downloaded(browser, _button(browser, "[data-csv=profile]"), "profile.csv")
    taus, rho = result.profile()
    assert [float(row["tau"]) for row in rows] == taus.tolist()
    for s, name in enumerate(result.submissions):
        assert [float(row[name]) for row in rows] == rho[s].tolist()


def test_downloads_of_trials_and_curves_equal_the_records(browser, open_page, small):
    root, page = small
    open_page(page)
    rows = _downloaded(browser, _button(browser, "[data-csv=trials]"), "trials.csv")
    assert len(rows) == 13
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["message"] == 'out of "memory", 9 GiB'
    assert failed["seconds to target"] == "inf"
    assert {row["learning_rate"] for row in rows} == {"0.001", "0.002", ""}

    everything = _button(browser, "[data-csv=curves]:not([data-number])")
    rows = _downloaded(browser, everything, "curves.csv")
    found = {}
    for row in rows:
        key = (row["submission"], row["workload"], int(row["trial"]))
        numbers = [float(row[name]) for name in ("step", "seconds", "value")]
        found.setdefault(key, []).append(numbers)
    assert len(found) == 12
    for (submission, workload, trial), curve in found.items():
        folder = records.trial_folder(root, submission, 0, workload, trial)
        metric = RULES.goals[workload].column
        columns = (records.GLOBAL_STEP, records.SUBMISSION_TIME, metric)
        written = records.read_measurements(folder / records.EVAL_FILE)
        assert curve == [[row[column] for column in columns] for row in written]


@pytest.mark.parametrize("abscissa", ["time", "step"])
def test_a_tooltip_tells_the_number_of_the_record(browser, open_page, small, abscissa):
    root, page = small
    open_page(page)
    browser.find_element(By.CSS_SELECTOR, f"input[value={abscissa}]").click()
    place = _drawn(browser, "curves-0")
    # The fourth evaluation of the first trial of the first submission.
    x, y = browser.execute_script(
        """const place = arguments[0], {xaxis, yaxis} = place._fullLayout;
        const box = place.getBoundingClientRect(), trace = place.data[0];
        return [box.left + xaxis._offset + xaxis.d2p(trace.x[3]),
                box.top + yaxis._offset + yaxis.d2p(trace.y[3])];""",
        place,
    )
    ActionChains(browser).move_by_offset(0, 0).perform()
    mouse = {"type": "mouseMoved", "x": x, "y": y}
    for _ in range(2):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", mouse)
        time.sleep(0.3)
    hover = "#curves-0 .hoverlayer .hovertext"
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, hover))
    text = browser.find_element(By.CSS_SELECTOR, hover).text
    workload = next(iter(RULES.workloads))
    folder = records.trial_folder(root, "adamw", 0, workload, 1)
    row = records.read_measurements(folder / records.EVAL_FILE)[3]
    value = row[RULES.goals[workload].column]
    number, at, step = re.search(
        r"([\d.]+) at ([\d.]+) seconds, step (\d+)", text
    ).groups()
    assert float(number) == pytest.approx(value, rel=1e-5)
    assert float(at) == pytest.approx(row[records.SUBMISSION_TIME], rel=1e-3)
    assert int(step) == row[records.GLOBAL_STEP]
    assert "study 0 trial 1" in text
    assert "adamw" in text


def test_switches_of_the_curves(browser, open_page, small):
    open_page(small[1])
    place = _drawn(browser, "curves-0")

    def switch(value):
        found = browser.find_element(By.CSS_SELECTOR, f"#curves input[value={value}]")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def of(script):
        return browser.execute_script(f"return arguments[0].{script}", place)

    # Lines end with a gap: two trials of twelve evaluations, then the better one.
    assert of("data[0].x.length") == 26
    switch("best")
    _wait(browser, lambda: of("data[0].x.length") == 13)
    whole = of("_fullLayout.yaxis.range")
    switch("near")
    _wait(browser, lambda: of("_fullLayout.yaxis.range") != whole)
    low, high = of("_fullLayout.yaxis.range")
    assert whole[0] < low < RULES.goals[next(iter(RULES.workloads))].target < high


def test_a_key_of_the_legend_hides_a_submission_everywhere(browser, open_page, small):
    open_page(small[1])
    place = _drawn(browser, "profile")
    assert len(place.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace")) == 3
    key = browser.find_element(By.CSS_SELECTOR, "#curves [data-rank='1']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", key)
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    _drawn(browser, "profile")
    _wait(
        browser,
        lambda: len(place.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace")) == 2,
    )


def _rgb(text):
    return [float(number) for number in re.findall(r"[\d.]+", text)][:3]


def _luminance(rgb):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    """Contrast ratio by WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _style(browser, selector, name):
    script = (
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    )
    return browser.execute_script(script, selector, name)


def test_the_theme_follows_the_system_and_the_button(browser, open_page, small):
    open_page(small[1], scheme="dark")
    place = _drawn(browser, "profile")
    assert _luminance(_rgb(_style(browser, "body", "backgroundColor"))) < 0.05
    theme = browser.find_element(By.ID, "theme")
    assert theme.text == "Light theme"
    before = _style(browser, "#profile .xtick text", "fill")
    browser.execute_script("scrollTo(0, 0)")
    theme.click()
    assert theme.text == "Dark theme"
    assert _luminance(_rgb(_style(browser, "body", "backgroundColor"))) > 0.9
    _wait(browser, lambda: _style(browser, "#profile .xtick text", "fill") != before)
    assert place.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser, open_page, small, scheme):
    open_page(small[1], scheme=scheme)
    paper = _rgb(_style(browser, "body", "backgroundColor"))
    for selector in ("body", ".soft", "a:not(.skip)", ".reached", ".failed"):
        assert _contrast(_rgb(_style(browser, selector, "color")), paper) >= 4.5, (
            selector
        )
    # Painted, since the browser gives mixed colours in other notations.
    cells = browser.execute_script(
        """const pen = document.createElement("canvas").getContext("2d");
        const paint = (color) => {
          pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
          return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const found = document.querySelectorAll(".heat .counted, .heat .first-place");
        return [...found].map((cell) => {
          const style = getComputedStyle(cell);
          return [paint(style.color), paint(style.backgroundColor)];
        });"""
    )
    assert len(cells) >= 4
    for text, background in cells:
        assert _contrast(text, background) >= 4.5


@pytest.mark.parametrize("width", [320, 400, 1400])
def test_no_screen_scrolls_sideways(browser, open_page, small, width):
    open_page(small[1], width=width)
    for anchor in ("profile", "curves-0", "curves-1"):
        _drawn(browser, anchor)
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "details table"))
    scroll = browser.execute_script("return document.documentElement.scrollWidth")
    assert scroll <= width


def test_evidence_is_drawn_and_downloads(browser, open_page, small, tmp_path):
    root, _ = small
    runs = read_runs([root])
    result = score_runs(runs, RULES)
    found = assess(
        runs,
        result,
        reference=result.submissions[0],
        budget=15,
        forecasts=predict_runs(runs, RULES),
    )
    path = tmp_path / "page.html"
    write_page(path, found)
    open_page(path, width=400)
    for anchor in ("left-out", "sensitivity", "forest-1", "forest-2"):
        place = _drawn(browser, anchor)
        assert place.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace")
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    names = {link.get_attribute("href").rpartition("#")[2] for link in links}
    assert names >= {"sure", "comparison", "budget", "predictions"}
    button = _button(browser, "[data-csv=comparison]")
    rows = _downloaded(browser, button, "comparison.csv")
    assert len(rows) == 2 * (len(result.workloads) + 1)
    for row in rows:
        s = result.submissions.index(row["submission"])
        if row["workload"] == "geometric mean":
            expected = found.comparison.mean_speedup_S[s]
        else:
            w = result.workloads.index(row["workload"])
            expected = result.times[0, w] / result.times[s, w]
        assert float(row["speedup"]) == pytest.approx(expected, rel=1e-12)
    rows = _downloaded(browser, _button(browser, "[data-csv=budget]"), "budget.csv")
    assert len(rows) == 3
    button = _button(browser, "[data-csv=predictions]")
    rows = _downloaded(browser, button, "predictions.csv")
    assert len(rows) == len(found.forecasts)
    scroll = browser.execute_script("return document.documentElement.scrollWidth")
    assert scroll <= 400
    assert browser.get_log("browser") == []


EVIL = "<img src=x onerror=alert(1)>&\"'{}$title%{x}"


def test_hostile_names_stay_text(browser, open_page, write_trial, tmp_path):
    root = tmp_path / "runs"
    for number, submission in enumerate(("adamw", EVIL), start=1):
        facts = {"speed": number, "metric": "accuracy", "shape": lambda x: x / 20}
        write_trial(root, submission, "imagenet_resnet_mini", 1, **facts)
    runs = read_runs([root])
    path = tmp_path / "page.html"
    write_page(path, assess(runs, score_runs(runs, RULES)))
    open_page(path)
    for anchor in ("profile", "curves-0"):
        _drawn(browser, anchor)
    table = f'[aria-label="table of trials of {EVIL}"]'.replace("\"'", "\\\"'")
    _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, f"{table} tbody tr"))
    rows = _downloaded(browser, _button(browser, "[data-csv=scores]"), "scores.csv")
    assert {row["submission"] for row in rows} == {"adamw", EVIL}
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert browser.get_log("browser") == []
