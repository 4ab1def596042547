"""`reparam` never shows a record for what it is not of."""

from pathlib import Path

import pytest

from algoperf import cli, records, tuning
from algoperf.launch import local
from algoperf.records import Status

STUDY = ["reparam", "--study=rank", "--workload=finewebedu_lm", "--studies=1"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the command; trials leave what is given, unless they are there already."""

    def run(*more, code=0, **facts):
        def run_jobs(jobs, should_stop):
            for job in jobs:
                if not (job.folder / records.RECORD_FILE).exists():
                    _leave(job, **facts)
                yield job, code

        monkeypatch.setattr(local, "run_jobs", run_jobs)
        return cli.main([*STUDY, "--series=lora", f"--out={tmp_path}", *more])

    return run


def _leave(job, status=Status.COMPLETED):
    given = dict(argument[2:].split("=", 1) for argument in job.arguments)
    space = tuning.load_search_space(Path(given["tuning_search_space"]))
    job.folder.mkdir(parents=True)
    row = {records.GLOBAL_STEP: 3, records.SUBMISSION_TIME: 1.0, "validation/ppl": 9.0}
    records.write_measurements(job.folder / records.EVAL_FILE, [row])
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "message": "",
        "hyperparameters": tuning.trial_point(space, 0, int(given["trial_index"])),
    }
    records.write_json(job.folder / records.RECORD_FILE, record)


def test_a_record_of_another_rank_is_refused(call, capsys, tmp_path):
    assert call("--values=0.5", "--noplot") == 0
    table = (tmp_path / "rank.md").read_text()
    assert "| lora | 0.5 | 9 |" in table
    assert call("--values=0.25,0.5", "--noplot") == 1
    assert "holds a run of other --values" in capsys.readouterr().err
    assert (tmp_path / "rank.md").read_text() == table
    assert call("--values=0.5,0.25", "--noplot") == 0  # more of the same


def test_a_trial_that_was_refused_is_in_no_table(call, capsys, tmp_path):
    assert call("--values=0.5", "--noplot") == 0
    assert call("--values=0.5", "--noplot", "--max_steps=9", code=1) == 1
    assert "holds a run of another study" in capsys.readouterr().err


def test_a_failed_trial_is_shown(call, capsys):
    assert call("--values=0.5", status=Status.FAILED, code=1) == 1
    assert "| lora | 0.5 |" in capsys.readouterr().out
