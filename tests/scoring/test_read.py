"""Reading records, whole and broken, ours and official."""

import json

import numpy as np
import pytest

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Status
from scoring.read import read_hyperparameters, read_runs

GOOD = (
    "accumulated_submission_time,global_step,train/loss,validation/accuracy\n"
    "1.5,0,2.0,0.1\n2.5,10,1.0,0.9\n"
)


def test_official_layout_and_ours_are_read_alike(tmp_path, write_trial):
    write_trial(tmp_path, "theirs", "wmt_pytorch", study=2, trial=5, metric="bleu")
    write_trial(tmp_path, "ours", "wmt_glu_tanh_jax", status="reached", message="x")
    ours, theirs = read_runs([tmp_path]).trials
    assert (ours.submission, ours.workload, ours.framework) == (
        "ours",
        "wmt_glu_tanh",
        "jax",
    )
    assert ours.status is Status.REACHED
    assert ours.record["message"] == "x"
    assert (theirs.study, theirs.workload, theirs.trial) == (2, "wmt", 5)
    assert theirs.framework == "pytorch"
    assert theirs.status is theirs.record is None
    np.testing.assert_array_equal(theirs.times, [1, 2])
    np.testing.assert_array_equal(theirs.columns["validation/bleu"], [0.1, 0.9])
    assert theirs.place == "study_2/wmt/trial_5"


def test_paths_with_spaces_and_hidden_or_loose_files(tmp_path, write_trial):
    root = tmp_path / "my runs"
    write_trial(root, "my adamw")
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("hello")
    (root / "my adamw" / "scores.csv").write_text("1")
    runs = read_runs([str(root)])
    assert runs.submissions == ("my adamw",)
    assert not runs.skipped


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (GOOD[:-6], "3 cells, the header has 4"),
        ("a,b\n1,2\n", "lacks the column 'global_step'"),
        (GOOD.replace("0.9", "good"), "could not convert"),
        (GOOD.replace("2.0", "1.2.3x"), "could not convert"),
        (GOOD.replace("\n2.5", "\n\n2.5"), "0 cells"),
        (GOOD.replace("1.5", "\xff"), "cannot be read"),
    ],
)
def test_broken_measurements_are_skipped_and_the_rest_is_read(
    tmp_path, write_trial, text, reason
):
    write_trial(tmp_path, trial=1)
    broken = write_trial(tmp_path, trial=2)
    (broken / records.EVAL_FILE).write_bytes(text.encode("latin-1"))
    runs = read_runs([tmp_path])
    assert [trial.trial for trial in runs.trials] == [1]
    (skipped,) = runs.skipped
    assert skipped.path == broken
    assert reason in skipped.reason


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 99, "status": "reached"}']
)
def test_broken_record_is_skipped(tmp_path, write_trial, text):
    write_trial(tmp_path, trial=1)
    broken = write_trial(tmp_path, trial=2, status="reached")
    (broken / records.RECORD_FILE).write_text(text)
    runs = read_runs([tmp_path])
    assert len(runs.trials) == 1
    assert runs.skipped[0].path == broken
    assert records.RECORD_FILE in runs.skipped[0].reason


def test_trial_that_failed_before_its_first_evaluation_is_read(tmp_path, write_trial):
    write_trial(tmp_path, times=[], values=[], status="failed", message="boom")
    (trial,) = read_runs([tmp_path]).trials
    assert trial.status is Status.FAILED
    assert trial.times.shape == (0,)
    assert not trial.columns


def test_official_trial_without_measurements_is_skipped(tmp_path, write_trial):
    write_trial(tmp_path, trial=1)
    empty = write_trial(tmp_path, trial=2, times=[], values=[])
    runs = read_runs([tmp_path])
    assert [item.path for item in runs.skipped] == [empty]
    assert "is missing" in runs.skipped[0].reason


def test_header_without_rows_is_a_trial_without_evaluations(tmp_path, write_trial):
    folder = write_trial(tmp_path)
    (folder / records.EVAL_FILE).write_text(GOOD.splitlines()[0] + "\n")
    (trial,) = read_runs([tmp_path]).trials
    assert trial.columns["validation/accuracy"].shape == trial.times.shape == (0,)


@pytest.mark.parametrize("quote", ["", '"'])
def test_empty_cells_and_nan_are_nan_plain_or_quoted(tmp_path, write_trial, quote):
    folder = write_trial(tmp_path)
    (folder / records.EVAL_FILE).write_text(
        f"accumulated_submission_time,{quote}global_step{quote},validation/wer\n"
        f"1,0,\n2,1,nan\n3,2,inf\n4,3,{quote}-1e-3{quote}\n"
    )
    (trial,) = read_runs([tmp_path]).trials
    wer = trial.columns["validation/wer"]
    np.testing.assert_array_equal(wer, [np.nan, np.nan, np.inf, -0.001])


def test_misnamed_folders_are_skipped_with_a_reason(tmp_path, write_trial):
    write_trial(tmp_path)
    study = tmp_path / "adamw" / "study_0"
    stray = [study / "trial_3", study / "imagenet_resnet_mini_jax" / "trial_x"]
    for folder in stray:
        folder.mkdir()
    runs = read_runs([tmp_path])
    assert len(runs.trials) == 1
    assert sorted(item.path for item in runs.skipped) == sorted(stray)
    assert all("not a folder named" in item.reason for item in runs.skipped)


def test_folders_of_one_submission_add_up_and_no_trial_counts_twice(
    tmp_path, write_trial
):
    write_trial(tmp_path / "a", workload="ogbg_jax")
    write_trial(tmp_path / "b", workload="wmt_jax")
    runs = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert [trial.workload for trial in runs.trials] == ["ogbg", "wmt"]
    assert "the same trial was read from" in runs.skipped[0].reason


def test_order_of_trials_is_by_number(tmp_path, write_trial):
    for trial in (10, 2, 1):
        write_trial(tmp_path, trial=trial)
    assert [trial.trial for trial in read_runs([tmp_path]).trials] == [1, 2, 10]


def test_missing_or_empty_dirs_are_errors(tmp_path, write_trial):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no DIR"):
        read_runs([])
    with pytest.raises(UserError, match=r"no such folder: .*none"):
        read_runs([tmp_path / "none"])
    with pytest.raises(UserError, match="is not a folder"):
        read_runs([tmp_path / "file"])
    with pytest.raises(UserError, match=r"no record in .*empty; expected DIR/<sub"):
        read_runs([tmp_path / "empty"])
    write_trial(tmp_path / "good")
    with pytest.raises(UserError, match=r"no record in .*empty"):
        read_runs([tmp_path / "good", tmp_path / "empty"])


def test_dir_of_unreadable_records_says_why(tmp_path, write_trial):
    folder = write_trial(tmp_path)
    (folder / records.EVAL_FILE).write_text("")
    with pytest.raises(UserError, match=r"can be read \(1 skipped; .*is empty"):
        read_runs([tmp_path])


def test_folder_of_one_submission_is_an_error_that_names_its_parent(
    tmp_path, write_trial
):
    write_trial(tmp_path)
    with pytest.raises(UserError, match="the folder of one submission") as caught:
        read_runs([tmp_path / "adamw"])
    assert str(caught.value).endswith(str(tmp_path))


def test_hyperparameters(tmp_path, write_trial):
    folder = write_trial(tmp_path)
    (trial,) = read_runs([tmp_path]).trials
    assert read_hyperparameters(trial) is None
    (folder / records.HPARAMS_FILE).write_text(json.dumps({"lr": 0.1}))
    assert read_hyperparameters(trial) == {"lr": 0.1}
    (folder / records.HPARAMS_FILE).write_text('{"lr":')
    assert read_hyperparameters(trial) is None
