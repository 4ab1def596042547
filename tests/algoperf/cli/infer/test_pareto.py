"""`algoperf infer pareto` from outside, on runs and profiles with known numbers."""

import csv
import json
from pathlib import Path

import comparison
import pytest

from algoperf import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pareto")
    for name, quality in (("adamw", 18.0), ("<muon> & co", 24.0)):
        trial = comparison.write_run(out / "runs", name, 1, (90.0, quality))
        for recipe, seconds, size in (("float32", 0.01, 1000), ("nvfp4", 0.02, 200)):
            comparison.write_profile(
                out / "profiles" / f"{name[:3]}_{recipe}.json",
                recipe,
                seconds,
                seconds / 10,
                trial=trial,
                quality=quality + (recipe == "nvfp4"),
                weight_bytes=size,
            )
    return out


def pareto(folder, *flags):
    profiles = f"--profiles={folder / 'profiles'}"
    return cli.main(["infer", "pareto", str(folder / "runs"), profiles, *flags])


def test_four_files(folder, tmp_path, capsys):
    assert pareto(folder, f"--out={tmp_path}", "--dollars_per_hour=2") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pareto.csv", "pareto.html", "pareto.md", "pareto.svg"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "At a ppl of 20 or better training takes least with adamw (5 s)" in printed
    page = (tmp_path / "pareto.html").read_text()
    assert "&lt;muon&gt; &amp; co" in page
    assert "<muon>" not in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "light-dark(" in page  # the style of the page of scores
    assert len((tmp_path / "pareto.csv").read_text().splitlines()) == 5


def test_json_and_views(folder, tmp_path, capsys):
    flags = ("--budgets=weight_bytes=300", "--quality=25", "--json=-")
    assert pareto(folder, f"--out={tmp_path}", *flags) == 0
    found = json.loads(capsys.readouterr().out)
    (workload,) = found["workloads"]
    (view,) = (v for v in workload["views"] if v["cost"] == "weight_bytes")
    assert view["budget"] == 300
    assert view["best"] == ["adamw, nvfp4"]
    assert view["cheapest"] == ["<muon> & co, nvfp4", "adamw, nvfp4"]
    assert "total_dollars" not in {v["cost"] for v in workload["views"]}
    assert len(found["rows"]) == 4


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [
        (48, 2, "up to 32 tokens, 48 are extrapolated"),
        (8, 25, "up to 24 tokens, 25 are extrapolated"),
        (32, 24, "up to 48 tokens of prompt and output, 32 + 24 are extrapolated"),
        (32, 16, None),
    ],
)
def test_longer_requests_than_were_measured_are_noted(
    prompt, output, says, folder, tmp_path, capsys
):
    flags = (f"--prompt={prompt}", f"--output={output}")
    assert pareto(folder, f"--out={tmp_path}", *flags) == 0
    out = capsys.readouterr().out
    assert "extrapolated" not in out if says is None else says in out


def test_noisy_profiles_are_not_used_without_a_word(tmp_path, capsys):
    trial = comparison.write_run(tmp_path / "runs", "adamw", 1, (90.0, 18.0))
    for name, uncertainty in (("quiet", 0.0), ("noisy", 0.5)):
        comparison.write_profile(
            tmp_path / "profiles" / f"{name}.json", "float32", 0.01, 0.001,
            uncertainty=uncertainty, trial=trial, quality=18.0,
        )  # fmt: skip
    out = tmp_path / "out"
    assert pareto(tmp_path, f"--out={out}") == 0
    says = "noisy.json: not to be trusted: medians of 3 rounds are only known within 50"
    assert says in capsys.readouterr().out
    assert says in (out / "pareto.md").read_text()
    assert says in (out / "pareto.html").read_text()
    with open(out / "pareto.csv", newline="") as file:
        reasons = {
            Path(row["profile"]).stem: row["reason_not_to_trust"]
            for row in csv.DictReader(file)
        }
    assert reasons["quiet"] == ""
    assert "within 50.0 %" in reasons["noisy"]


def test_every_machine_is_named(tmp_path):
    for number, cpu in ((1, "One"), (2, "Two")):
        trial = comparison.write_run(
            tmp_path / "runs", "adamw", number, (90.0, 18.0), cpu=f"Trainer {cpu}"
        )
        comparison.write_profile(
            tmp_path / "profiles" / f"{number}.json", "float32", 0.01, 0.001,
            cpu=f"Server {cpu}", trial=trial, quality=18.0,
        )  # fmt: skip
    assert pareto(tmp_path, f"--out={tmp_path / 'out'}", "--any_hardware") == 0
    page = (tmp_path / "out" / "pareto.html").read_text()
    assert "Trained on Trainer One; Trainer Two." in page
    assert "Served on 1 core of Server One; 1 core of Server Two." in page
    assert "Seconds of training are of several machines." in page


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--budgets=weight_bytes",), "give a cost and a number"),
        (("--budgets=weight=3",), "did you mean weight_bytes"),
        (("--budgets=total_dollars=3",), "--dollars_per_hour"),
        (("--prompt=60", "--output=9"), "shorten one"),
        (("--profiles=none.json",), "cannot read none.json"),
        (("--profiles=.",), "no profile is in"),
    ],
)
def test_a_mistake_is_one_line(folder, flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pareto(folder, "--out=out", *flags) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "give RUNS"), (["none"], "is no folder"), (["."], "no trial with a result")],
)
def test_runs_that_are_not_there(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["infer", "pareto", *arguments]) == 1
    assert says in capsys.readouterr().err
