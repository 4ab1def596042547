"""Records with random damage: each is scored or named, none ends in a traceback."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from algoperf import cli, records

ROUNDS = 500
PER_TEST = 100
BIG = 10**400
STRANGE: list[Any] = [
    *(None, True, 0, -1, 2**63, BIG, 1e308, -0.5, float("nan"), float("inf")),
    *(
        "",
        "reached",
        "failed",
        "running",
        "\ud800",
        "<b>",
        "a\nb",
        "\x1b[2J",
        "9" * 5000,
    ),
    *(
        [],
        [1],
        {},
        {"a": {"b": [1, {"c": None}]}},
        [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]],
    ),
]
FACTS = {
    "schema_version": 1,
    "message": "target not reached: max_steps",
    "submission": {"name": "adamw", "file": "submission.py", "sha256": "15"},
    "workload": "imagenet_resnet_mini",
    "framework": "jax",
    "ruleset": "external",
    "study": 0,
    "trial": 1,
    "hyperparameters": {"learning_rate": 0.008, "beta2": 0.99},
    "seeds": {"seed": 0, "trial_seed": 447923887},
    "max_steps": 600,
    "target": {"metric": "accuracy", "direction": "maximize", "validation": 0.862},
    "budget_sec": 80.0,
    "budget_ratio": 0.995,
    "step_hint": 3000,
    "preemption_count": 0,
    "start_time": "2026-01-01T18:42:55+00:00",
    "host": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "python": "3.11.7"},
    "devices": {"platform": "cpu", "device_kind": "cpu", "device_count": 1},
    "versions": {"algoperf": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2"},
    "git_revision": None,
    "earlier_environments": [
        {"host": {"cores": 4}, "versions": {"jax": "0.10.1"}, "git_revision": None}
    ],
    "global_step": 600,
    "clock": {"submission": 12.3, "evaluation": 2.0, "logging": 0.2},
    "compile": {"submission": 4.4, "evaluation": 1.0, "logging": 0.0},
    "step_time": {
        "seconds": 0.0132,
        "windows": 40,
        "contended_windows": 1,
        "slowest_window": 0.02,
    },
    "end_time": "2026-01-01T18:43:11+00:00",
}


def _make_records(root: Path) -> None:
    """Two submissions on two workloads, as the harness leaves them."""
    for submission, pace in (("adamw", 1.0), ("momentum", 1.7)):
        for workload, metric in (
            ("imagenet_resnet", "accuracy"),
            ("finewebedu_lm", "ppl"),
        ):
            name = f"{workload}_mini"
            folder = records.trial_folder(root, submission, 0, name, 1)
            folder.mkdir(parents=True)
            values = [
                0.1 * i if metric == "accuracy" else 500 / 2**i for i in range(10)
            ]
            rows = [
                {
                    records.GLOBAL_STEP: 10 * i,
                    records.SUBMISSION_TIME: pace * (1 + i),
                    records.EVAL_TIME: 0.5 * i,
                    f"validation/{metric}": values[i],
                    "validation/loss": 3.0 / (1 + i),
                    "train/loss": 2.5 / (1 + i),
                }
                for i in range(10)
            ]
            records.write_measurements(folder / records.EVAL_FILE, rows)
            facts = {**FACTS, "workload": name, "status": "reached"}
            records.write_json(folder / records.RECORD_FILE, facts)
            hyperparameters = FACTS["hyperparameters"]
            records.write_json(folder / records.HPARAMS_FILE, hyperparameters)


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 30))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _delete(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randrange(1, 80) :]


def _lines(content: bytes, chance: random.Random) -> bytes:
    """Repeats a line, or swaps two."""
    lines = content.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    if chance.random() < 0.5:
        lines.insert(other, lines[one])
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def _cells(content: bytes, chance: random.Random) -> bytes:
    """Puts something strange into a cell, or swaps two columns of the header."""
    rows = [line.split(b",") for line in content.splitlines()]
    row = chance.choice(rows)
    one, other = chance.randrange(len(row)), chance.randrange(len(row))
    cells = [b"", b"nan", b"-inf", b"1e308", b"-1e308", b"1e-320", b"x", b'"', b"1_0"]
    row[one] = chance.choice([*cells, row[other]])
    return b"".join(b",".join(row) + b"\n" for row in rows)


def _json(content: bytes, chance: random.Random) -> bytes:
    """Changes the value or the name of some field, at any depth."""
    try:
        value = json.loads(content)
    except ValueError:
        return _flip(content, chance)
    place = value
    while True:
        key = chance.choice(list(place))
        if not isinstance(place[key], dict) or not place[key] or chance.random() < 0.3:
            break
        place = place[key]
    kind = chance.random()
    if kind < 0.7:
        place[key] = chance.choice(STRANGE)
    elif kind < 0.85:
        del place[key]
    else:
        place[chance.choice(["", "x", "status", "\ud800"])] = place.pop(key)
    return json.dumps(value).encode()


def _replace(content: bytes, chance: random.Random) -> bytes:
    return chance.choice([b"", b"\n", b"\xff\xfe", b"[" * 9999, b"null", b"\x00" * 99])


ANY: list[Callable[[bytes, random.Random], bytes]] = [
    *(_flip, _cut, _delete, _lines, _replace)
]


def _damage(root: Path, chance: random.Random) -> str:
    """Damages one to three files; returns which and how."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    done = []
    for path in chance.sample(files, chance.choice((1, 1, 2, 3))):
        special = _cells if path.suffix == ".csv" else _json
        change = chance.choice([*ANY, special, special, special])
        path.write_bytes(change(path.read_bytes() or b"x", chance))
        done.append(f"{change.__name__} {path}")
    if chance.random() < 0.1:
        path = chance.choice(files)
        path.unlink()
        if chance.random() < 0.5:
            path.mkdir()
        done.append(f"gone {path}")
    return ", ".join(done)


@pytest.mark.parametrize("first", range(0, ROUNDS, PER_TEST))
def test_damaged_records(tmp_path, capsys, monkeypatch, first):
    # 4 MB a page
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    whole = tmp_path / "whole"
    _make_records(whole)
    for seed in range(first, first + PER_TEST):
        chance = random.Random(seed)
        root = tmp_path / str(seed)
        shutil.copytree(whole, root)
        damage = f"seed {seed}: {_damage(root, chance)}"
        page = tmp_path / "page.html"
        arguments = ["score", str(root), f"--report={page}", f"--csv={tmp_path}/csv"]
        if chance.random() < 0.5:
            arguments.append("--allow_mixed")
        if chance.random() < 0.3:
            arguments.append("--rules=official")
        try:
            status = cli.main(arguments)
        except Exception as error:
            raise AssertionError(damage) from error
        captured = capsys.readouterr()
        assert status in (0, 1, 2), damage
        for line in captured.err.splitlines():
            assert line.startswith("algoperf: "), damage
        assert (captured.out + captured.err).replace("\n", "").isprintable(), damage
        assert bool(captured.out) or status == 1, damage
        shutil.rmtree(root)


def test_whole_records_score_without_a_word_of_complaint(tmp_path, capsys):
    _make_records(tmp_path)
    assert cli.main(["score", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "skipped" not in captured.out
    # Of the workloads that nobody ran, and of intervals: each has one trial alone.
    assert captured.out.count("warning") == captured.out.count("warning: No ") + 1 == 2
    assert "adamw ranks first" in captured.out
