"""Trial folders and profiles with numbers that are known, without training."""

import dataclasses
import json

from algoperf import records
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.timing import profiler
from algoperf.inference.timing.profiles import Profile, Setting

GRID = profiler.make_grid(64, prompts=(1, 16, 32), outputs=(1, 4, 16))
HERE = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "Some CPU"}
NAME = "finewebedu_lm_mini"
SETTING = Setting(clock="cpu", cores=1)
SHAPE = DecoderShape(NAME, 1024, 2, 96, 3, 192, 64)


def write_run(
    out,
    submission,
    trial,
    qualities,
    *,
    status="completed",
    cpu="Some CPU",
    target=20.0,
    devices=1,
):
    """A trial evaluated every 10 steps, 5 seconds each; its identity."""
    folder = records.trial_folder(out, submission, 0, NAME, trial)
    folder.mkdir(parents=True)
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "message": "",
        "submission": {"name": submission},
        "workload": NAME,
        "ruleset": "external",
        "study": 0,
        "trial": trial,
        "seeds": {"trial_seed": 100 + trial},
        "start_time": f"2026-01-0{trial}T00:00:00+00:00",
        "target": {"metric": "ppl", "direction": "minimize", "validation": target},
        "devices": {"platform": "cpu", "device_kind": "cpu", "device_count": devices},
        "host": {"cpu": cpu},
    }
    (folder / records.RECORD_FILE).write_text(json.dumps(record))
    rows = [
        {
            records.GLOBAL_STEP: 10 * number,
            records.SUBMISSION_TIME: 5.0 * number,
            "validation/ppl": quality,
        }
        for number, quality in enumerate(qualities)
    ]
    records.write_measurements(folder / records.EVAL_FILE, rows)
    return {
        "submission": submission,
        "trial_seed": 100 + trial,
        "step": 10 * (len(qualities) - 1),
        **{
            key: record[key]
            for key in ("workload", "ruleset", "study", "trial", "start_time")
        },
    }


def write_profile(
    path,
    recipe,
    prompt_seconds,
    token_seconds,
    *,
    cpu="Some CPU",
    setting=SETTING,
    uncertainty=0.0,
    **served,
):
    """A profile of constant F and g; `served` has trial, quality and bytes."""
    times = {
        cell: (prompt_seconds + token_seconds * (cell[1] - 1),) * 3
        for cell in (*GRID.cells, *GRID.held_out)
    }
    result = profiler.fit_result(times, GRID)
    profile = Profile(
        shape=SHAPE,
        setting=setting,
        result=dataclasses.replace(result, uncertainty=uncertainty),
        hardware=HERE | {"cpu": cpu},
        versions={},
        served={"recipe": recipe, **served},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.save(path)
    return profile
