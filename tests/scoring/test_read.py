"""Reading records, whole and broken, ours and official."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Status
from scoring import parse
from scoring.read import read_hyperparameters, read_runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.words import skipped_lines

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
        (GOOD.replace("1.0,0.9", "1.0"), "3 cells, the header has 4"),
        (GOOD.replace("1.0,0.9", "1.0,0.9,"), "5 cells, the header has 4"),
        (GOOD.replace("train/loss", "global_step"), "the column 'global_step' twice"),
        (GOOD.replace("2.5", "0.5"), "accumulated_submission_time falls from 1.5 to 0"),
        (GOOD.replace(",0,", ",20,"), "global_step falls from 20 to 10"),
        (GOOD.replace("1.5", "-1.5"), "accumulated_submission_time cannot be -1.5"),
        (GOOD.replace("2.5", "1e300"), "accumulated_submission_time cannot be 1e+300"),
        (GOOD[:30], "was cut off in its first line"),
        (GOOD + "\n" * 2**18, "more than 200,000 lines"),
        (GOOD + "," * 2**23 + "\n", "more than 4,000,000 cells"),
        (GOOD.replace("0.1", "\x00"), "could not convert"),
        (GOOD + "9" * 2**16 + "\n", "1 cells"),
        (GOOD.replace("0.9", '"' + "9" * 2**18 + '"'), "field larger than field limit"),
        ("a,b\n1,2\n", "lacks the column 'global_step'"),
        (GOOD.replace("0.9", "good"), "could not convert"),
        (GOOD.replace("2.0", "1.2.3x"), "could not convert"),
        (GOOD.replace("2.0", "x" * 2**16), "could not convert"),
        (GOOD.replace("\n2.5", "\n\n2.5"), "0 cells"),
        (GOOD.replace("1.5", "\xff"), "cannot be read"),
    ],
    ids=range(20),
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
    assert str(broken) not in skipped.reason
    assert len(skipped.reason) < 250
    assert skipped.reason.isprintable()


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
    assert runs.skipped[0].reason == f"the same trial was read from {tmp_path / 'a'}"
    assert runs.warnings == ()  # it is the same DIR


def test_two_dirs_with_the_same_trials_are_a_warning_and_few_lines(
    tmp_path, write_trial
):
    one, two = tmp_path / "one", tmp_path / "two"
    for k in range(1, 9):
        write_trial(one, trial=k, times=(1, 2))
        write_trial(two, trial=k, times=(3, 4))
    write_trial(two, "momentum")
    runs = read_runs([one, two])
    assert [trial.times[-1] for trial in runs.trials] == [2] * 9
    assert runs.warnings == (
        f"trials of adamw were read from {one} and found again in {two}, where 8 were "
        "ignored",
    )
    assert runs.warnings[0] in score_runs(runs, load_rules("mini")).warnings
    lines = skipped_lines(runs)
    assert len(lines) == 4
    assert lines[-1] == f"skipped: 5 more: the same trial was read from {one}"


def test_a_dir_without_a_record_beside_a_good_one_is_a_warning(tmp_path, write_trial):
    write_trial(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    broken = write_trial(tmp_path / "bad", "momentum")
    (broken / records.EVAL_FILE).write_text("")
    runs = read_runs([tmp_path / name for name in ("empty", "good", "bad")])
    assert len(runs.trials) == 1
    assert runs.warnings == tuple(
        f"no record in {tmp_path / name} can be read: nothing of it counts"
        for name in ("empty", "bad")
    )
    with pytest.raises(UserError, match=r"no record in .*empty and .*bad can be"):
        read_runs([tmp_path / "empty", tmp_path / "bad"])


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


def _only_trial(folder):
    runs = read_runs([folder])
    (trial,) = runs.trials
    assert all(item.is_read != item.is_broken for item in runs.skipped)
    return trial, [item.reason for item in runs.skipped]


@pytest.mark.parametrize("status", [None, "running", "preempted"])
def test_a_last_line_that_was_cut_off_is_left_out_of_a_run_that_was_stopped(
    tmp_path, write_trial, status
):
    folder = write_trial(tmp_path, status=status)
    (folder / records.EVAL_FILE).write_text(GOOD[:-2])
    trial, reasons = _only_trial(tmp_path)
    np.testing.assert_array_equal(trial.times, [1.5])
    assert reasons == ["the last line was cut off and is left out"]


def test_a_last_line_without_an_end_counts_where_it_looks_whole(tmp_path, write_trial):
    (write_trial(tmp_path) / records.EVAL_FILE).write_text(GOOD[:-1])
    trial, reasons = _only_trial(tmp_path)
    assert trial.times.size == 2
    assert not reasons


@pytest.mark.parametrize("status", [s for s in Status if s.is_final])
def test_a_last_line_that_was_cut_off_costs_a_run_that_had_ended(
    tmp_path, write_trial, status
):
    write_trial(tmp_path, trial=1)
    folder = write_trial(tmp_path, trial=2, status=status)
    (folder / records.EVAL_FILE).write_text(GOOD[:-2])
    trial, reasons = _only_trial(tmp_path)
    assert trial.trial == 1
    assert "was cut off in its last line, after the trial had ended" in reasons[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system(tmp_path, write_trial, end):
    folder = write_trial(tmp_path)
    text = GOOD.replace("0.9", "").replace("\n", end)
    (folder / records.EVAL_FILE).write_bytes(text.encode())
    trial, _ = _only_trial(tmp_path)
    np.testing.assert_array_equal(trial.times, [1.5, 2.5])
    np.testing.assert_array_equal(trial.columns["validation/accuracy"], [0.1, np.nan])


def test_evaluations_without_a_place_are_left_out(tmp_path, write_trial):
    folder = write_trial(tmp_path)
    lines = ["nan,5,0,0.2", "2.0,,0,0.3", "2.0,7,0,0.4", "2.1,7,0,0.5", "2.5,10,1,0.9"]
    text = "\n".join([*GOOD.splitlines()[:2], *lines, ""])
    (folder / records.EVAL_FILE).write_text(text)
    trial, reasons = _only_trial(tmp_path)
    np.testing.assert_array_equal(trial.times, [1.5, 2.0, 2.5])
    np.testing.assert_array_equal(trial.columns["validation/accuracy"], [0.1, 0.4, 0.9])
    assert reasons == [
        "2 of 6 evaluations have no time or step",
        "1 evaluations repeat the step before and are left out",
    ]


def test_files_too_large_to_be_one_of_ours_are_not_opened(tmp_path, write_trial):
    write_trial(tmp_path, trial=1)
    line = write_trial(tmp_path, trial=2)
    record = write_trial(tmp_path, trial=3, status="reached")
    for path in (line / records.EVAL_FILE, record / records.RECORD_FILE):
        with open(path, "wb") as file:
            file.truncate(200 * 2**20)
    tracemalloc.start()
    runs = read_runs([tmp_path])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [trial.trial for trial in runs.trials] == [1]
    assert all("no such file is that big" in item.reason for item in runs.skipped)
    assert peak < 2**20


def test_what_is_no_file(tmp_path, write_trial):
    write_trial(tmp_path, trial=1)
    pipe, folder, dead, record = (write_trial(tmp_path, trial=t) for t in (2, 3, 4, 5))
    for broken in (pipe, folder, dead):
        (broken / records.EVAL_FILE).unlink()
    os.mkfifo(pipe / records.EVAL_FILE)
    (folder / records.EVAL_FILE).mkdir()
    (dead / records.EVAL_FILE).symlink_to(dead / records.EVAL_FILE)
    (record / records.RECORD_FILE).mkdir()
    runs = read_runs([tmp_path])
    assert [trial.trial for trial in runs.trials] == [1]
    reasons = [item.reason for item in runs.skipped]
    assert "is not an ordinary file" in reasons[0]
    assert "is a folder, not a file" in reasons[1]
    assert "symbolic links" in reasons[2]
    assert "is a folder, not a file" in reasons[3]


def test_links_that_lead_back_and_files_in_place_of_folders(tmp_path, write_trial):
    folder = write_trial(tmp_path)
    workload = folder.parent
    (workload / "trial_2").symlink_to(workload / "trial_2")
    (workload / "trial_3").symlink_to(workload)
    (workload / "trial_4").write_text("")
    (tmp_path / "adamw" / "study_1").symlink_to(tmp_path)
    runs = read_runs([tmp_path])
    assert [trial.trial for trial in runs.trials] == [1]
    reasons = {item.path.name: item.reason for item in runs.skipped}
    assert "not a folder" in reasons["trial_2"]
    assert "is missing" in reasons["trial_3"]
    assert "not a folder" in reasons["trial_4"]


def test_what_may_not_be_read_is_named(tmp_path, write_trial, monkeypatch):
    """Also where the tests run as root, who may read everything."""
    write_trial(tmp_path, trial=1)
    file = write_trial(tmp_path, trial=2) / records.EVAL_FILE
    folder = write_trial(tmp_path, study=1).parent
    _deny(monkeypatch, "builtins.open", open, file)
    _deny(monkeypatch, "os.scandir", os.scandir, folder)
    runs = read_runs([tmp_path])
    assert [trial.place for trial in runs.trials] == [
        "study_0/imagenet_resnet_mini/trial_1"
    ]
    broken = [(item.path, item.reason) for item in runs.skipped if item.is_broken]
    assert broken == [
        (folder, "cannot be listed: Permission denied"),
        (file.parent, f"{file.name} cannot be read: Permission denied"),
    ]


def _deny(monkeypatch, name, function, path):
    def denied(place, *args, **kwargs):
        if str(place) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return function(place, *args, **kwargs)

    monkeypatch.setattr(name, denied)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"message": 7}, "'message' must be text, not 7"),
        ({"target": []}, "'target' must be an object, not []"),
        ({"target": {"validation": "high"}}, "'target.validation' must be a number"),
        ({"step_time": {"seconds": "1"}}, "'step_time.seconds' must be a number"),
        ({"step_time": {"seconds": -1}}, "'step_time' has a number below zero"),
        ({"step_time": {"windows": True}}, "'step_time.windows' must be a number"),
        ({"host": "here"}, "'host' must be an object"),
        ({"versions": {"jax": 0.4}}, "'versions.jax' must be text, not 0.4"),
        ({"earlier_environments": {}}, "'earlier_environments' must be a list"),
        ({"earlier_environments": [{}, 1]}, "'earlier_environments[1]' must be an obj"),
        (
            {"earlier_environments": [None, {"versions": {"jax": 1}}]},
            "'earlier_environments[1].versions.jax' must be text",
        ),
        (
            {"earlier_environments": [{"git_revision": 1}]},
            "'earlier_environments[0].git_revision' must be text",
        ),
        ({"global_step": 1.5}, "'global_step' must be a whole number"),
        ({"global_step": 10**30}, "a number of 100 bits"),
        ({"budget_sec": -5}, "'budget_sec' is below zero"),
        ({"message": "\ud800"}, "half a character"),
        ({"host": {"a": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}}, "is nested too deep"),
    ],
    ids=range(17),
)
def test_records_with_fields_of_a_wrong_kind(tmp_path, write_trial, facts, reason):
    write_trial(tmp_path, trial=1, status="reached", message="", target=None)
    write_trial(tmp_path, trial=2, status="reached", **facts)
    trial, reasons = _only_trial(tmp_path)
    assert trial.trial == 1
    assert reason in reasons[0]


def test_the_record_of_another_workload_is_refused(tmp_path, write_trial):
    name = "imagenet_resnet_mini"
    write_trial(tmp_path, trial=1)
    broken = write_trial(tmp_path, trial=2, status="reached")
    facts = {"schema_version": 1, "status": "reached", "workload": "wmt_mini"}
    records.write_json(broken / records.RECORD_FILE, facts)
    _, reasons = _only_trial(tmp_path)
    assert reasons[0].endswith(f"is of wmt_mini, not of {name}")
    records.write_json(broken / records.RECORD_FILE, {**facts, "workload": name})
    assert len(read_runs([tmp_path]).trials) == 2


@pytest.mark.parametrize("text", ["[" * 10**5, "1" * 10**4, '{"a":NaN}', "\xff"])
def test_json_that_no_record_would_hold(tmp_path, write_trial, text):
    write_trial(tmp_path, trial=1)
    broken = write_trial(tmp_path, trial=2, status="reached")
    (broken / records.RECORD_FILE).write_bytes(text.encode("latin-1"))
    _, reasons = _only_trial(tmp_path)
    assert records.RECORD_FILE in reasons[0]
    assert "\n" not in reasons[0]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", os.fsdecode(b"a\xff")])
def test_names_that_would_garble_the_list(tmp_path, write_trial, name):
    write_trial(tmp_path, "good")
    write_trial(tmp_path, name)
    runs = read_runs([tmp_path])
    assert runs.submissions == ("good",)
    assert str(runs.skipped[0].path).isprintable()
    with pytest.raises(UserError, match="cannot be shown"):
        read_runs([tmp_path / name])


STAMP, LATER = "-2023-10-11-16-58-40", "-2024-01-02-03-04-05"


@pytest.mark.parametrize("level", range(4))
def test_of_several_runs_of_a_trial_the_newest_is_read(tmp_path, level):
    """A timestamp may end the name of any of its folders."""
    for place, (stamp, time) in enumerate([(LATER, 3), (STAMP, 2), ("", 1)]):
        names = ["adamw", "study_0", "wmt_jax", "trial_1"]
        names[level] += stamp
        folder = tmp_path.joinpath(*names)
        folder.mkdir(parents=True)
        text = f"accumulated_submission_time,global_step\n{time},{place}\n"
        (folder / records.EVAL_FILE).write_text(text)
    runs = read_runs([tmp_path])
    (trial,) = runs.trials
    assert (trial.submission, trial.workload, trial.times) == ("adamw", "wmt", [3])
    assert len(runs.skipped) == 2
    for item in runs.skipped:
        assert item.reason == f"an older run of a trial that was read from {tmp_path}"
    # Which run counts must not depend on how it went.
    (trial.path / records.EVAL_FILE).write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_runs([tmp_path])


def test_older_runs_without_studies_are_study_0(tmp_path, write_trial):
    write_trial(tmp_path, "new", study=1)
    old = write_trial(tmp_path, "old", study=0).parents[1]
    moved = tmp_path / f"older{STAMP}"
    old.rename(moved)
    runs = read_runs([tmp_path])
    assert [(trial.submission, trial.study) for trial in runs.trials] == [
        ("new", 1),
        ("older", 0),
    ]
    assert "holds no folder named study_<i>" in runs.skipped[0].reason
    with pytest.raises(UserError, match="the folder of one submission") as caught:
        read_runs([moved])
    assert str(caught.value).endswith(str(tmp_path))


def test_a_submission_may_be_named_like_a_workload(tmp_path, write_trial):
    write_trial(tmp_path, "adamw_jax")
    assert read_runs([tmp_path]).submissions == ("adamw_jax",)


def test_folder_of_one_study_is_an_error_that_names_the_right_folder(
    tmp_path, write_trial
):
    study = write_trial(tmp_path).parents[1]
    with pytest.raises(UserError, match="the folder of one submission") as caught:
        read_runs([study])
    assert str(caught.value).endswith(f" {tmp_path}")


@pytest.mark.parametrize("above", ["", "logs"])
def test_official_logs_of_both_rulesets(tmp_path, write_trial, above):
    logs = tmp_path / above
    write_trial(logs / "external_tuning", "tuned")
    write_trial(logs / "self_tuning", "free")
    assert read_runs([tmp_path], ruleset="external").submissions == ("tuned",)
    assert read_runs([tmp_path], ruleset="self").submissions == ("free",)
    with pytest.raises(UserError, match="holds external_tuning and self_tuning; give"):
        read_runs([tmp_path])
    shutil.rmtree(logs / "external_tuning")
    with pytest.raises(UserError, match=r"give .*self_tuning and --ruleset self"):
        read_runs([tmp_path], ruleset="external")


def test_logs_as_v06_leaves_them(tmp_path, write_trial):
    """Beside the trials stand the logs of each start, in them much that is not read."""
    trial = write_trial(tmp_path / "logs/self_tuning", "ademamix", "wmt_pytorch")
    (trial.parent / "wmt_pytorch_03-18-2025-06-17-33.log").write_text("trial_1")
    for name in ("flags_0.json", "meta_data_0.json", "measurements.csv"):
        (trial / name).write_text("{")
    (trial / "events.out.tfevents.1742313207.918f2014d619.44.0.v2").write_bytes(b"\0")
    (trial / "checkpoint_100").mkdir()
    (tmp_path / "logs" / "curve_plotting").mkdir()
    runs = read_runs([tmp_path], ruleset="self")
    assert [(trial.submission, trial.workload) for trial in runs.trials] == [
        ("ademamix", "wmt")
    ]
    assert runs.skipped == ()


def test_a_dir_of_duplicates_alone_is_no_error(tmp_path, write_trial):
    write_trial(tmp_path / "a")
    write_trial(tmp_path / "b")
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    assert len(runs.trials) == len(runs.skipped) == 1


CELLS = st.one_of(
    st.just(""),
    st.floats(width=32).map(str),
    st.sampled_from(["1_0", "x", " 1", "nan", "-inf", "1e5", '"2"', "0x1"]),
)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4))
@settings(max_examples=60)
def test_the_fast_parser_agrees_with_the_csv_module(rows):
    names = [records.GLOBAL_STEP, records.SUBMISSION_TIME, "validation/x"]
    content = "\n".join([",".join(names), *map(",".join, rows), ""]).encode()
    fast = parse._parse_plain(content)
    if fast is not None:
        slow = parse._parse_unusual(Path("x"), content)
        for name in (names[0], names[1], *slow):
            np.testing.assert_array_equal(fast[name], slow[name])
