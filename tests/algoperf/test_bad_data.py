"""Broken data end a run so that it can go on, or are skipped and counted."""

import numpy as np
import pytest
from synthetic import SPLITS, SYNTHETIC, examples, run_until

from algoperf import records
from algoperf.data.examples import (
    DataError,
    DataOptions,
    eval_examples,
    train_examples,
)
from algoperf.data.source import DataSource, write_manifest
from algoperf.records import Status
from algoperf.runner import run_trial
from algoperf.workload import derive

BROKEN = (3, 17, 40)


class Points:
    """The points of a split one by one; those of BROKEN cannot be read."""

    def __init__(self, split, broken):
        self._arrays = examples(split)
        self._broken = broken

    def __len__(self):
        return len(self._arrays["targets"])

    def __getitem__(self, index):
        if index in self._broken:
            raise DataError(f"points.bin, record {index}: it is cut short")
        return {name: array[index] for name, array in self._arrays.items()}


def _same(example, generator):
    return example


def _workload(broken=BROKEN, **options):
    def pipeline(split, batch_size, seed, options):
        source = Points(split, broken)
        if split == "train":
            return train_examples(source, batch_size, seed, options, _same)
        return eval_examples(source, batch_size, options, _same)

    return derive(SYNTHETIC, pipeline=pipeline, data=DataOptions(**options))


def test_a_broken_example_ends_the_run_and_it_can_go_on(make_config):
    config = make_config(workload=_workload())
    with pytest.raises(DataError, match=r"points\.bin, record"):
        run_trial(config)
    record = records.read_record(config.folder)
    assert record["status"] is Status.PREEMPTED
    assert "points.bin" in record["message"]
    mended = make_config(workload=_workload(broken=()))
    assert run_trial(mended, resume=True)["status"] is Status.COMPLETED


def test_skipped_examples_are_counted_in_the_record_also_after_a_resume(make_config):
    config = make_config(
        workload=_workload(skip_corrupt=True), max_steps=20, eval_period_steps=4
    )
    run_until(config, 9)
    record = run_trial(config, resume=True)
    assert record["status"] is Status.COMPLETED
    # Two epochs of 320 points in 20 steps of 32; the evaluation splits have 48, 50, 40.
    skipped = {"preparation": 0, "train": 6, "evaluation": 3 + 3 + 2}
    assert record["skipped_examples"] == skipped
    assert SPLITS["train"] == 320


def test_records_passed_over_in_preparation_are_in_the_record(make_config, tmp_path):
    source = DataSource("points", "", lambda *_: None, lambda _: {}, {})
    (tmp_path / "points").mkdir()
    write_manifest(tmp_path / "points", {}, skipped=5)
    options = DataOptions(folder=tmp_path)
    workload = derive(SYNTHETIC, data_source=source, data=options)
    record = run_trial(make_config(workload=workload, max_steps=2))
    assert record["skipped_examples"]["preparation"] == 5


def test_skipping_leaves_them_out_of_the_metrics(make_config):
    config = make_config(workload=_workload(skip_corrupt=True))
    from algoperf.workload import Evaluator

    params, state = config.workload.init_model_fn(np.zeros(2, np.uint32))
    got = Evaluator(config.workload)(params, state)
    good = [i for i in range(SPLITS["validation"]) if i not in BROKEN]
    batch = {name: array[good] for name, array in examples("validation").items()}
    logits = config.workload.model.apply({"params": params}, batch["inputs"], False)
    right = (np.argmax(logits, -1) == batch["targets"]).mean()
    assert got["validation/accuracy"] == pytest.approx(right)
