"""`algoperf infer strategies` and `first_token` from outside."""

import csv
import json
from pathlib import Path

import pytest

from algoperf import cli
from algoperf.inference.models.shapes import find_shape
from algoperf.inference.timing import profiler
from algoperf.inference.timing.profiles import Profile, Setting, load_profile

HARDWARE = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "One"}
SETTINGS = {
    "batch": {"batch_size": 4},
    "split": {"parallel": 2},
    "four": {"cores": 4},
    "process": {"clock": "cpu"},
    "half": {"dtype": "bfloat16"},
}
REQUEST = ("--prompt=100", "--output=50", "--any_hardware")


def _write(path, name, first, further, hardware=HARDWARE, **setting):
    """A profile of which every cell took first + p / 10^5 + further (o - 1)."""
    grid = profiler.make_grid(1024)
    times = {
        (p, o): (first + p * 1e-5 + further * (o - 1),) * 3
        for p, o in (*grid.cells, *grid.held_out)
    }
    result = profiler.fit_result(times, grid)
    shape = find_shape(name)
    Profile(shape, Setting(**setting), result, hardware, {"jax": "0.10"}).save(path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    other = HARDWARE | {"cpu": "Two"}
    return {
        "base": _write(folder / "base.json", "small-30m", 0.05, 0.02),
        "draft": _write(folder / "draft.json", "tiny-4m", 0.01, 0.002),
        "other": _write(folder / "other.json", "tiny-4m", 0.01, 0.002, other),
    } | {
        name: _write(folder / f"{name}.json", "tiny-4m", 0.01, 0.002, **setting)
        for name, setting in SETTINGS.items()
    }


def _json(capsys, *arguments):
    assert cli.main(["infer", "strategies", *arguments, "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_way_is_on_one_axis(files, capsys):
    found = _json(
        capsys, files["base"], f"--draft={files['draft']}", *REQUEST,
        "--dollars_per_hour=3.6",
    )  # fmt: skip
    rows = {row["strategy"]: row for row in found["strategies"]}
    assert found["left_out"] == {}
    assert len(rows) == 9
    plain = load_profile(Path(files["base"])).runtime.predict(100, 50)
    assert rows["plain"]["seconds"] == pytest.approx(plain)
    assert rows["plain"]["times_plain"] == 1
    assert rows["plain"]["dollars"] == pytest.approx(plain * 1e-3)
    many = rows["best of 4"]
    assert many["times_plain"] == 1
    assert many["device_times_plain"] == pytest.approx(4)
    assert (many["tokens_in_a_row"], many["tokens_in_all"]) == (50, 200)
    guessed = [row for name, row in rows.items() if name.startswith("speculative")]
    assert guessed[0]["times_plain"] < 0.7
    assert rows["the draft alone"]["seconds"] < rows["KV prediction"]["seconds"] < plain


def test_a_way_that_asks_for_more_than_was_measured_is_told(files, capsys):
    """The base model was measured up to prompts of 768 tokens, 1024 in all."""
    both = (files["base"], f"--draft={files['draft']}", "--any_hardware")
    grid = load_profile(Path(files["base"]))
    longest = max(grid.runtime.prompt_seconds)
    request = (f"--prompt={longest - 20}", "--output=30", "--summary_tokens=4")
    found = _json(capsys, *both, *request, "--samples=2")["extrapolated"]
    judged = found["best of 2, judged"]
    assert f"up to {longest} tokens, {longest + 10} are extrapolated" in judged
    assert "plain" not in found
    assert "best of 2" not in found
    beyond = _json(capsys, *both, f"--prompt={longest + 1}", "--output=3")
    names = [row["strategy"] for row in beyond["strategies"]]
    assert list(beyond["extrapolated"]) == names
    assert cli.main(["infer", "strategies", *both, *request]) == 0
    assert "Note: best of 4, judged: prompts were measured" in capsys.readouterr().out


def test_every_device_of_a_split_model_counts(files, capsys):
    """The dollars of a plain answer are those of `infer predict`."""
    flags = (files["split"], *REQUEST, "--dollars_per_hour=3.6")
    rows = {row["strategy"]: row for row in _json(capsys, *flags)["strategies"]}
    plain, many = rows["plain"], rows["best of 4"]
    assert plain["device_seconds"] == pytest.approx(2 * plain["seconds"])
    assert many["device_seconds"] == pytest.approx(2 * 4 * plain["seconds"])
    assert many["device_times_plain"] == pytest.approx(4)
    assert cli.main(["infer", "predict", *flags, "--json=-"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert plain["seconds"] == pytest.approx(predicted["seconds"])
    assert plain["dollars"] == pytest.approx(predicted["dollars"])


def test_without_a_draft_there_are_fewer_ways(files, capsys):
    assert cli.main(["infer", "strategies", files["base"], *REQUEST]) == 0
    out = capsys.readouterr().out
    assert "sequential refinement, 3" in out
    assert "SpecReason" not in out
    long = ("--prompt=700", "--output=100", "--any_hardware")
    assert cli.main(["infer", "strategies", files["base"], *long]) == 0
    assert "Left out: parallel-distill-refine, 4:" in capsys.readouterr().out


def test_a_noisy_draft_is_not_used_without_a_word(files, tmp_path, capsys):
    value = json.loads(Path(files["draft"]).read_text())
    assert value["reason_not_to_trust"] is None
    noisy = tmp_path / "noisy.json"
    noisy.write_text(json.dumps(value | {"uncertainty": 0.5}))
    flags = (files["base"], f"--draft={noisy}", *REQUEST)
    ((name, reason),) = _json(capsys, *flags)["not_to_be_trusted"].items()
    assert name == str(noisy)
    assert "only known within 50.0 %" in reason
    assert cli.main(["infer", "strategies", *flags]) == 0
    assert f"Not to be trusted: {name}: {reason}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one PROFILE"),
        (["base"], "give --prompt"),
        (["base", "--prompt=1", "--output=1"], "other hardware"),
        (["base", "--draft=other", *REQUEST], "one machine"),
        (["batch", *REQUEST], "batches of 4, and an answer is one request"),
        (["base", "--draft=batch", *REQUEST], "batches of 4, and an answer is one"),
        (["base", "--draft=split", *REQUEST], "(parallel 2, not 1)"),
        (["base", "--draft=four", *REQUEST], "(cores 4, not None)"),
        (["base", "--draft=process", *REQUEST], "(clock cpu, not wall)"),
        (["base", "--draft=half", *REQUEST], "(dtype bfloat16, not float32)"),
        (["base", "--prompt=1000", "--output=100", "--any_hardware"], "shorten"),
        (["none.json", *REQUEST], "cannot read"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, files, capsys):
    named = []
    for argument in arguments:
        flag, equals, value = argument.rpartition("=")
        named.append(flag + equals + files.get(value, value))
    assert cli.main(["infer", "strategies", *named]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_first_token_measures_time_and_quality(tmp_path, capsys):
    command = ["infer", "first_token", f"--out={tmp_path}", "--train_steps=2"]
    command += ["--tune_steps=2", "--num_prompts=2", "--rounds=3", "--seconds=0"]
    command += ["--cores=0", "--prompt=24", "--json=-"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "training: prediction" in captured.err
    ways = {way["who_reads"]: way for way in found["ways"]}
    assert list(ways) == ["base", "predicted", "auxiliary"]
    assert ways["predicted"]["flops"] < ways["base"]["flops"]
    assert all(way["seconds"] > 0 and way["loss"] > 0 for way in ways.values())
    with open(
        tmp_path / "finewebedu_lm_mini_first_token" / "first_token.csv", newline=""
    ) as file:
        assert len(list(csv.DictReader(file))) == 3
    assert cli.main(command) == 0
    assert "training" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "y"], "give one workload"),
        (["--prompt=1"], "two tokens"),
        (["--prompt=64"], "shorten"),
        (["--draft_width=31"], "multiple"),
    ],
)
def test_a_mistake_about_first_tokens(arguments, says, tmp_path, capsys):
    command = ["infer", "first_token", f"--out={tmp_path / 'out'}", "--cores=0"]
    assert cli.main([*command, *arguments]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert not (tmp_path / "out").exists()
