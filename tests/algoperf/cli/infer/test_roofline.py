"""`algoperf infer roofline` from outside."""

import csv
import json

import pytest

from algoperf import cli
from algoperf.inference.rooflines import peak_rates

SMALL = peak_rates.Ladder(widths=(64,), sizes=(2**14, 2**20), moved=2**20)
STATED = ("--no_measure", "--peak_flops=1e12", "--bandwidth=1e11")


def test_measured(tmp_path, monkeypatch, capsys):
    """All files, and an efficiency; its value is not judged here."""
    monkeypatch.setattr(peak_rates, "PROCESSOR", SMALL)
    command = ["infer", "roofline", "criteo1tb", "--program=forward", "--batch=8"]
    arguments = [f"--out={tmp_path}", "--rounds=3", "--seconds=0", "--json=-"]
    # A small product may be slow enough to make what is measured faster than ideal.
    assert cli.main([*command, *arguments]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["peak"]["flops"] > 0
    assert len(found["peak"]["levels"]) == 2
    (program,) = found["programs"]
    assert program["efficiency"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "roofline.csv",
        "roofline.md",
        "efficiency_gap.svg",
        "waterline_criteo1tb_mini_forward.svg",
    }
    (row,) = csv.DictReader((tmp_path / "roofline.csv").read_text().splitlines())
    assert float(row["efficiency"]) == program["efficiency"]


def test_stated_peak_rates(tmp_path, capsys):
    command = ["infer", "roofline", "criteo1tb", "--program=forward", "--batch=8"]
    assert cli.main([*command, f"--out={tmp_path}", *STATED, "--json=-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] == {"flops": 1e12, "bytes_per_second": 1e11, "levels": []}
    (program,) = found["programs"]
    assert program["measured_seconds"] is None
    slowest = max(program["flops"] / 1e12, program["bytes"] / 1e11)
    assert slowest <= program["ideal_seconds"] < 2 * slowest


@pytest.mark.slow
def test_full_size_without_running(tmp_path, capsys):
    command = ["infer", "roofline", "imagenet_resnet", "--scale=full", "--batch=2"]
    arguments = ["--program=forward", f"--out={tmp_path}", "--json=-"]
    assert cli.main([*command, *arguments, *STATED]) == 0
    (program,) = json.loads(capsys.readouterr().out)["programs"]
    # 4.09e9 multiply-adds an image: ResNet-50 with strides in its 3x3 convolutions.
    assert program["flops"] / 2 / 2 == pytest.approx(4.09e9, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["criteo"], "did you mean"),
        (["criteo1tb", "--peak_flops=1e12"], "together"),
        (["criteo1tb", *STATED[1:]], "--no_measure"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path):
    command = ["infer", "roofline", *arguments, f"--out={tmp_path}"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
