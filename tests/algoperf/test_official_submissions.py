"""Submissions from the official repositories, if there are any on this machine.

ALGOPERF_OFFICIAL_SUBMISSIONS names a folder of theirs (see
tests/benchmarks/official_submissions.py); none is part of this repository.
"""

import os
from pathlib import Path

import pytest
import scripts

from algoperf import records

official = scripts.load("tests/benchmarks/official_submissions.py")

ROOT = os.environ.get("ALGOPERF_OFFICIAL_SUBMISSIONS")
FOLDERS = official.official_folders(Path(ROOT)) if ROOT else []
STEPS = 10


@pytest.mark.slow
@pytest.mark.timeout(900)
# Two of them donate what no output can take the place of, which is no fault of ours.
@pytest.mark.filterwarnings("default:Some donated buffers were not usable:UserWarning")
@pytest.mark.skipif(not FOLDERS, reason="ALGOPERF_OFFICIAL_SUBMISSIONS names none")
@pytest.mark.parametrize("workload", official.WORKLOADS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_runs(tmp_path, folder, workload):
    outcome = official.run(folder, workload, STEPS, tmp_path)
    assert outcome.stopped == ""
    first, last = outcome.losses
    assert last < 1.01 * first  # some have only begun to warm up


def test_the_script_says_what_stopped_one(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "submission.py").write_text("import torch\n")
    (folder / "SOURCE").write_text("someone/something a/path 0123abcd\n")
    text, ran = official.row(folder, ["finewebedu_lm"], STEPS)
    assert not ran
    start = "| theirs | someone/something a/path 0123abcd | algoperf: submission "
    assert text.startswith(start)
    assert "is written for PyTorch" in text
    assert official.official_folders(tmp_path) == [folder]


@pytest.mark.slow
def test_the_script_runs_one_as_the_command_line_does(tmp_path):
    folder = Path(__file__).parent / "submissions" / "official"
    outcome = official.run(folder, "imagenet_resnet", 2, tmp_path)
    assert outcome.stopped == ""
    assert all(loss > 0 for loss in outcome.losses)
    (record,) = tmp_path.rglob(records.RECORD_FILE)
    assert records.read_record(record.parent)["global_step"] == 2


def test_the_script_says_what_failed_before_the_first_evaluation(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    adam = Path(__file__).parent / "submissions" / "adam.py"
    text = adam.read_text() + "\ndef init_optimizer_state(*_): raise KeyError('lost')\n"
    (folder / "submission.py").write_text(text)
    outcome = official.run(folder, "imagenet_resnet", STEPS, tmp_path / "out")
    assert outcome.losses is None
    assert outcome.stopped.startswith("KeyError: 'lost'")
