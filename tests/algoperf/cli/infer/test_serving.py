"""`algoperf infer profile` of trained models, and of packed and factorised weights."""

import json
import shutil

import comparison
import pytest

from algoperf import cli, records
from algoperf.cli.infer import profile, serving
from algoperf.inference.models.shapes import SHAPES
from algoperf.inference.timing.profiles import Setting

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
def runs(tmp_path_factory):
    """Four steps of a submission that trains factors, and checkpoints of two."""
    out = tmp_path_factory.mktemp("runs")
    arguments = (
        "--submission=factorised",
        "--workload=finewebedu_lm",
        "--max_steps=4",
        "--eval_period_steps=2",
        "--checkpoint_period_sec=0",
    )
    assert cli.main(["run", *arguments, f"--out={out}"]) == 0
    return out


def profiled(runs, out, *flags):
    assert (
        cli.main(["infer", "profile", str(runs), f"--out={out}", *SMALL, *flags]) == 0
    )
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_trial_is_served_with_its_own_parameters(runs, tmp_path):
    """The decoder's own quality is the one that the record has; factors are found."""
    served = profiled(runs, tmp_path)["served"]
    (folder,) = (path.parent for path in runs.rglob(records.RECORD_FILE))
    rows = records.read_measurements(folder / records.EVAL_FILE)
    assert served["trained_quality"] == rows[-1]["validation/ppl"]
    assert served["quality"] == pytest.approx(rows[-1]["validation/ppl"], rel=1e-5)
    assert served["trial"]["submission"] == "factorised"
    assert served["trial"]["step"] == 4
    assert served["ranks"] == [24, 24]
    assert served["weight_bytes"] < 0.6 * served["dense_bytes"]
    page = next(tmp_path.glob("*.html")).read_text()
    assert "factorised, study 0, trial 1, step 4" in page


@pytest.mark.slow
def test_trials_of_one_name_have_files_of_their_own(runs, tmp_path):
    """Two seeds of one submission, in folders of their own; called twice."""
    for seed in (1, 2):
        shutil.copytree(runs, tmp_path / f"seed{seed}")
        (path,) = (tmp_path / f"seed{seed}").rglob(records.RECORD_FILE)
        record = json.loads(path.read_text())
        record["seeds"]["trial_seed"] = seed
        path.write_text(json.dumps(record))
    out = tmp_path / "profiles"
    folders = [str(tmp_path / f"seed{seed}") for seed in (1, 2)]
    command = ["infer", "profile", *folders, f"--out={out}", "--noevaluate", *SMALL]
    name = "factorised_finewebedu_lm_mini_study0_trial1_float32"
    for _ in range(2):
        assert cli.main(command) == 0
        found = {
            path.stem: json.loads(path.read_text())["served"]["trial"]["trial_seed"]
            for path in out.glob("*.json")
        }
        assert found == {name: 1, f"{name}_2": 2}
    assert {path.stem for path in out.glob("*.html")} == set(found)


def test_a_profile_takes_the_place_of_its_own_trial_alone(tmp_path):
    trial = {"submission": "adamw", "trial_seed": 1, "step": 10}
    base = tmp_path / "adamw_rank-0.5"
    assert profile._place(base, trial) == base
    path = base.with_name("adamw_rank-0.5.json")
    path.write_text("no profile")
    assert profile._place(base, trial) == base
    comparison.write_profile(path, "float32", 0.01, 0.001, trial=trial)
    assert profile._place(base, trial | {"step": 20}) == base
    other = trial | {"trial_seed": 2}
    assert profile._place(base, other).name == "adamw_rank-0.5_2"
    assert profile._place(base, None).name == "adamw_rank-0.5_2"


@pytest.mark.slow
def test_packed_weights_have_a_quality_and_bytes_of_their_own(runs, tmp_path):
    value = profiled(
        runs, tmp_path, "--weights=mxfp4", "--nocompact", "--pack_embedding"
    )
    served = value["served"]
    assert served["recipe"] == "mxfp4 + embedding"
    assert served["weight_bytes"] < 0.14 * served["dense_bytes"]
    assert served["quality"] != served["trained_quality"]
    assert served["quality"] == pytest.approx(served["trained_quality"], rel=0.05)
    assert served["step_bytes"] > served["weight_bytes"]


@pytest.mark.slow
def test_fresh_weights_can_be_packed(tmp_path):
    command = ["infer", "profile", f"--out={tmp_path}", *SMALL]
    assert cli.main([*command, "--weights=int8", "--prune=0.5"]) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.stem == "finewebedu_lm_mini_int8-pruned-0.5"
    value = json.loads(path.read_text())
    assert value["shape"]["mlp_width"] == 96
    assert value["served"]["recipe"] == "int8 + pruned 0.5"
    assert "quality" not in value["served"]


@pytest.mark.parametrize(
    ("is_plain", "dtype", "setting", "name"),
    [
        (True, None, Setting(), "tiny"),
        (True, "bfloat16", Setting(), "tiny_bfloat16"),
        (False, "bfloat16", Setting(), "tiny_int8-pruned-0.5_bfloat16"),
        (True, None, Setting(batch_size=8), "tiny_batch_size-8"),
        (
            False,
            None,
            Setting(capacity=64, parallel=2),
            "tiny_int8-pruned-0.5_capacity-64_parallel-2",
        ),
    ],
)
def test_another_setting_has_files_of_its_own(is_plain, dtype, setting, name):
    model = serving.Model("tiny", next(iter(SHAPES.values())), lambda *_: (), is_plain)
    assert model.file_name("int8 + pruned 0.5", setting, dtype) == name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/such/runs"], "is no folder"),
        (["gpt2", "gpt2-large"], "give one NAME"),
        ([".", "gpt2"], "give one NAME"),
        (["."], "holds no record.json"),
        (["gpt2", "--weights=nvfp5"], "did you mean nvfp4"),
        (["gpt2", "--rank=x"], "--rank x"),
        (["gpt2", "--rank=0"], "--rank 0"),
        (["gpt2", "--prune=1"], "--prune 1"),
        (["gpt2", "--pack_embedding"], "needs a format"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["infer", "profile", *arguments]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_trial_without_a_checkpoint_says_what_to_do(tmp_path, capsys):
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": "budget",
        "workload": "finewebedu_lm_mini",
        "scale": "mini",
    }
    (tmp_path / records.RECORD_FILE).write_text(json.dumps(record))
    assert cli.main(["infer", "profile", str(tmp_path)]) == 1
    assert "--checkpoint_period_sec 0" in capsys.readouterr().err


def test_trials_of_other_workloads_are_passed_over(tmp_path, capsys):
    for name in ("imagenet_resnet_mini", "nonsense"):
        record = {
            "schema_version": records.SCHEMA_VERSION,
            "status": "completed",
            "workload": name,
            "scale": "mini",
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / records.RECORD_FILE).write_text(json.dumps(record))
    assert cli.main(["infer", "profile", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 3
    assert "no decoder-only language model" in error[0]
    assert "none of these trials" in error[-1]
