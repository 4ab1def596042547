"""`algoperf infer` from outside."""

import json
import signal
import subprocess
import sys
import time

import comparison
import pytest

from algoperf import cli

# Two prompt lengths and two output lengths: what fits in seconds, not what is right.
SMALL = (
    "--prompts=4,8",
    "--outputs=1,8",
    "--rounds=3",
    "--seconds=0",
    "--accept_noise",
    "--cores=0",
)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The folder after a profile of the mini language model."""
    out = tmp_path_factory.mktemp("inference")
    assert cli.main(["infer", "profile", f"--out={out}", *SMALL]) == 0
    return out


def test_profile_writes_json_and_a_page(profiled):
    value = json.loads((profiled / "finewebedu_lm_mini.json").read_text())
    assert value["shape"]["vocab_size"] == 1024
    assert value["hardware"]["platform"] == "cpu"
    assert value["versions"]["jax"]
    assert {len(cell["seconds"]) for cell in value["cells"]} == {3}
    page = (profiled / "finewebedu_lm_mini.html").read_text()
    assert "<svg" in page
    assert "283,106 parameters" in page


def test_predict(profiled, capsys):
    file = str(profiled / "finewebedu_lm_mini.json")
    request = ["--prompt=6", "--output=20", "--dollars_per_hour=3.6", "--watts=10"]
    assert cli.main(["infer", "predict", file, *request, "--json=-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    both = found["prompt_seconds"] + found["decode_seconds"]
    assert found["seconds"] == pytest.approx(both)
    assert found["dollars"] == pytest.approx(found["seconds"] * 3.6 / 3600)
    assert found["joules"] == pytest.approx(found["seconds"] * 10 * 1.1)
    assert found["power_usage_effectiveness"] == 1.1
    assert cli.main(["infer", "predict", file, *request]) == 0
    out = capsys.readouterr().out
    assert "tokens_per_second" in out
    assert "power_usage_effectiveness" in out


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [
        (32, 16, None),
        (1, 24, None),
        (33, 1, "prompts were measured up to 32 tokens, 33 are extrapolated"),
        (1, 25, "outputs were measured up to 24 tokens, 25 are extrapolated"),
        (
            32,
            24,
            "requests were measured up to 48 tokens of prompt and output, 32 + 24 are "
            "extrapolated",
        ),
    ],
)
def test_beyond_what_was_measured_is_said(prompt, output, says, tmp_path, capsys):
    """Of cells up to 32 + 16 tokens, and 24 + 24 held out."""
    file = tmp_path / "profile.json"
    comparison.write_profile(file, "float32", 0.01, 0.001)
    command = ["infer", "predict", str(file), "--any_hardware"]
    command += [f"--prompt={prompt}", f"--output={output}"]
    assert cli.main([*command, "--json=-"]) == 0
    found = json.loads(capsys.readouterr().out)["is_extrapolated"]
    assert found is (says is not None)
    assert cli.main(command) == 0
    notes = [s for s in capsys.readouterr().out.splitlines() if s.startswith("Note")]
    assert notes == ([] if says is None else [f"Note: {says}."])


def test_flops_and_dollars_are_of_one_request(profiled, capsys, tmp_path):
    """Whatever the batch that it was measured in."""
    value = json.loads((profiled / "finewebedu_lm_mini.json").read_text())
    found = []
    for batch in (1, 4):
        value["setting"]["batch_size"] = batch
        file = tmp_path / f"{batch}.json"
        file.write_text(json.dumps(value))
        command = ["infer", "predict", str(file), "--prompt=6", "--output=20"]
        assert cli.main([*command, "--dollars_per_hour=3.6", "--json=-"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    one, four = found
    assert four["flops"] == one["flops"]
    assert four["dollars"] == pytest.approx(one["dollars"] / 4)


def test_a_profile_of_other_hardware_needs_to_be_asked_for(profiled, capsys, tmp_path):
    value = json.loads((profiled / "finewebedu_lm_mini.json").read_text())
    value["hardware"]["cpu"] = "Another"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(value))
    command = ["infer", "predict", str(file), "--prompt=6", "--output=2"]
    assert cli.main(command) == 1
    assert "other hardware" in capsys.readouterr().err
    assert cli.main([*command, "--any_hardware"]) == 0


@pytest.mark.parametrize(
    ("uncertainty", "flags", "says"),
    [
        (0.0, [], None),
        (0.5, [], "only known within 50.0 % (limit 3 %)"),
        (0.0, ["--rule=affine"], "R2 of the fit is"),  # that of the new fit
    ],
)
def test_a_noisy_profile_is_not_used_without_a_word(
    uncertainty, flags, says, tmp_path, capsys
):
    file = tmp_path / "profile.json"
    comparison.write_profile(file, "float32", 0.01, 0.001, uncertainty=uncertainty)
    value = json.loads(file.read_text())
    for cell in value["cells"]:  # F is no line, and the stored fit knows nothing of it
        if cell["prompt"] == 16:
            cell["seconds"] = [10 * seconds for seconds in cell["seconds"]]
    file.write_text(json.dumps(value))
    command = ["infer", "predict", str(file), "--prompt=6", "--output=2"]
    command += ["--any_hardware", *flags]
    assert cli.main([*command, "--json=-"]) == 0
    reason = json.loads(capsys.readouterr().out)["reason_not_to_trust"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    if says is None:
        assert reason is None
        assert "trust" not in out
    else:
        assert says in reason
        assert f"Not to be trusted: {reason}." in out


def test_shapes(capsys):
    assert cli.main(["infer", "shapes", "--json=-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (found,) = [row for row in rows if row["name"] == "qwen3-32b"]
    assert found["parameters"] == 32_762_123_264


def test_a_noisy_machine_is_refused(tmp_path, capsys, monkeypatch):
    from algoperf.inference.timing import profiler

    monkeypatch.setattr(profiler, "refusal", lambda result: "it is loud")
    command = ["infer", "profile", f"--out={tmp_path}"]
    assert cli.main([*command, *SMALL[:-2], "--cores=0"]) == 1
    assert "it is loud" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["infr"], "did you mean infer"),
        (["infer", "profil"], "did you mean profile"),
        (["infer", "profile", "gpt22"], "did you mean gpt2"),
        (["infer", "profile", "gpt2", "x"], "give one NAME"),
        (["infer", "profile", "gpt2", "--prompts=a"], "--prompts a"),
        (["infer", "profile", "finewebedu_lm", "--prompts=64"], "shorter prompts"),
        (["infer", "profile", "finewebedu_lm", "--outputs=2,4"], "begin with 1"),
        (["infer", "profile", "finewebedu_lm", "--parallel=99"], "devices"),
        (["infer", "predict"], "give one PROFILE"),
        (["infer", "predict", "none.json"], "give --prompt"),
        (["infer", "predict", "none.json", "--prompt=1", "--output=1"], "cannot read"),
        (["infer", "shapes", "x"], "unexpected argument"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (("--prompt=0", "--output=1"), "--prompt=0: 0 is not a positive integer"),
        (("--prompt=4", "--output=-1"), "--output=-1: -1 is not a non-negative"),
        (("--prompt=60", "--output=9"), "shorten"),
    ],
)
def test_a_request_that_makes_no_sense(request_, says, profiled, capsys):
    file = str(profiled / "finewebedu_lm_mini.json")
    is_flag = says.startswith("--")
    assert cli.main(["infer", "predict", file, *request_]) == (2 if is_flag else 1)
    assert says in capsys.readouterr().err


def test_a_shape_that_does_not_fit_is_an_error_before_it_is_made(tmp_path, capsys):
    assert cli.main(["infer", "profile", "gpt3-175b", f"--out={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "the weights of gpt3-175b take" in error
    assert "take a smaller shape" in error


@pytest.mark.slow
def test_an_interrupted_profile_ends_in_one_line(tmp_path):
    # A shell in the background has its children ignore SIGINT.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from algoperf import cli; cli.run()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "infer", f"--out={tmp_path}"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "warmed up 1 of" in process.stderr.readline()
        time.sleep(2)  # compiling and the first runs of programs take 20 s
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert error.splitlines()[-1] == "algoperf: interrupted"
    assert process.returncode == 130  # XLA did not crash
    assert not list(tmp_path.iterdir())
