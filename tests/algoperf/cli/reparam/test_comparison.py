"""The rank and compression studies: recipes, rates that are tried, what is written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags

from algoperf import cli as cli_main
from algoperf import records, registry, reparam
from algoperf.cli import reparam as command
from algoperf.cli.reparam import comparison, training
from algoperf.training_step import Objective
from algoperf.tuning import as_namedtuple
from submissions.pruned import submission as pruned

KEY = jax.random.PRNGKey(0)
ADAM = ("learning_rate", "weight_decay", "one_minus_beta1", "beta2")


def _values(*arguments):
    values = flags.FlagValues()
    command.define_flags(values)
    values(["reparam", *arguments])
    return values


def _base(workload):
    return registry.find_workload(workload, "mini")


def _settings(study, workload, *more, axis=None):
    """Returns the run of each series and x of one seed."""
    given = [f"--study={study}", f"--workload={workload}", "--studies=1", *more]
    axis = axis or command.AXES[study][1]
    runs = comparison.runs_of(_values(*given), _base(workload), axis, {})
    return {(setting.series, setting.x): run for setting, _, run in runs}


def test_the_series_of_compression_are_what_they_are_called():
    names = "adamw,momentum,narrow,stable_rps,roast,hashed,stable_rps_sgd,magnitude,"
    names += "snip,grasp,lottery_ticket,synflow"
    found = _settings("compression", "imagenet_resnet", f"--series={names}")
    usual = _settings("compression", "imagenet_resnet")
    left_out = {series for series, _ in set(found) - set(usual)}
    assert left_out == set(comparison.ON_REQUEST)
    assert {x for series, x in found if series == "narrow"} == {4, 8, 16, 32, 64}
    assert {x for series, x in found if series == "roast"} == {1, 4, 8, 16, 32, 64}
    assert found["roast", 4.0].hyperparameters["layout"] == "tiles"
    assert found["hashed", 4.0].hyperparameters["layout"] == "elements"
    assert found["stable_rps", 4.0].hyperparameters["share"] == 0.25
    assert found["stable_rps", 4.0].hyperparameters["rule"] == "adam"
    assert found["stable_rps_sgd", 4.0].hyperparameters["rule"] == "sgd"
    assert found["momentum", None].submission.name == "momentum"
    assert found["lottery_ticket", 16.0].hyperparameters["density"] == 1 / 16
    assert found["synflow", 16.0].hyperparameters["score"] == "synflow"
    narrow = dict(found["narrow", 4.0].hyperparameters)
    assert narrow.pop("compression") == 4.0
    assert narrow == found["adamw", None].hyperparameters
    trials = [(run.submission.name, run.trial) for run in found.values()]
    assert len(set(trials)) == len(trials)


def test_what_is_compared_trains_by_one_recipe():
    """Whatever first points of search spaces become."""
    found = _settings("compression", "imagenet_resnet")
    sgd = {("momentum", None)} | {key for key in found if key[0] == "stable_rps_sgd"}
    adam = {
        tuple(run.hyperparameters[name] for name in ADAM)
        for key, run in found.items()
        if key not in sgd
    }
    assert adam == {(0.008, 0.17, 0.14, 0.999)}
    assert found["stable_rps", 4.0].hyperparameters["init_std"] == 0.1
    shared = ("learning_rate", "weight_decay", "one_minus_beta1", "grad_clip")
    assert len({tuple(found[k].hyperparameters[n] for n in shared) for k in sgd}) == 1
    assert found["momentum", None].hyperparameters["nesterov"]  # sharing's always is
    ranks = _settings("rank", "finewebedu_lm")
    others = {tuple(r.hyperparameters[n] for n in ADAM[1:]) for r in ranks.values()}
    assert others == {(0.17, 0.14, 0.999)}


def test_projections_are_as_often_and_as_large_as_the_papers():
    found = _settings("rank", "finewebedu_lm")
    for name in ("galore", "fira", "apollo"):
        run = found[name, 0.25]
        assert run.hyperparameters["gap"] == 50
        assert run.workload.step_hint >= 16 * 50
    scales = [found["apollo", x].hyperparameters["scale"] for x in (0.0625, 0.25, 1.0)]
    assert scales == [4.0, 1.0, 0.25]  # the update's norm is sqrt(rank scale)


def _masked_gradients(score, compression):
    """Returns masks after the first batch, and the gradients that pass them."""
    key = (score, compression)
    run = _settings("compression", "imagenet_resnet", f"--series={score}")[key]
    workload, point = run.workload, as_namedtuple(run.hyperparameters)
    params, model_state = workload.init_model_fn(KEY)
    batch = workload.dataset("train", 64, seed=0)[0]
    objective = Objective(workload, batch, model_state, KEY, None, 0.0, None)
    small = pruned.reparametrise(workload, point)
    training = reparam.start(small, optax.identity(), params, KEY)
    training = reparam.begin_step(small, training, objective)
    gradient = objective.gradient(small.materialise(training.small))
    masks = training.small.frozen
    found = {}
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        own = gradient
        for key in path:
            own = own[key.key]
        found[jax.tree_util.keystr(path)] = mask, jnp.where(mask, own, 0.0)
    return found


@pytest.mark.parametrize("compression", [4.0, 64.0])
def test_what_synflow_leaves_is_trained(compression):
    """With blocks that start at 0, no gradient passes where it takes a shortcut."""
    found = _masked_gradients("synflow", compression)
    live = {name for name, (mask, _) in found.items() if mask.any()}
    trained = {name for name, (_, gradient) in found.items() if gradient.any()}
    assert trained == live
    assert len(live) >= 8


def test_magnitude_leaves_an_output_layer():
    mask, gradient = _masked_gradients("magnitude", 4.0)["['head']['kernel']"]
    assert 0 < mask.sum() < mask.size
    assert gradient.any()


def _finish(run, ppl, status="completed"):
    """Writes the record that a run would leave."""
    folder = run.folder
    folder.mkdir(parents=True)
    facts = {"schema_version": records.SCHEMA_VERSION, "status": status}
    facts["hyperparameters"] = dict(run.hyperparameters)
    (folder / records.RECORD_FILE).write_text(json.dumps(facts))
    metric = run.workload.target_metric_name
    rows = [
        {"global_step": i, "accumulated_submission_time": i, f"validation/{metric}": x}
        for i, x in enumerate((1e9, ppl))
    ]
    records.write_measurements(folder / records.EVAL_FILE, rows)


def test_each_method_takes_the_best_rate_that_it_tried(tmp_path, monkeypatch, capsys):
    made, asked = [], []

    def announce(runs, unsettled=()):
        asked.append((len(runs), len(unsettled)))

    def make(runs):
        for run in runs:
            if training.is_done(run):
                continue
            rate = run.hyperparameters["learning_rate"]
            # AdamW is best at a third of its rate; three times LoRA's diverges.
            is_bad = run.submission.name == "lora" and rate > 0.02
            is_adamw = run.submission.name == "adamw"
            ppl = 10 + abs(rate - 0.008 / 3) if is_adamw else 10 - rate
            _finish(run, ppl, "diverged" if is_bad else "completed")
        made.append(list(runs))
        return True

    monkeypatch.setattr(training, "announce", announce)
    monkeypatch.setattr(training, "make", make)
    given = ["--study=rank", "--workload=finewebedu_lm", "--series=adamw,lora"]
    given += ["--values=0.125,0.25,0.5", "--studies=2", f"--out={tmp_path}"]
    assert cli_main.main(["reparam", *given, "--noplot"]) == 0
    tried, study = made
    assert len(tried) == 2 * 5
    assert len(study) == 2 * (1 + 3)
    assert {run.out for run in tried} == {tmp_path / "screening"}
    assert {run.seed for run in tried} == {1}
    assert {run.seed for run in study} == {0}
    assert {run.hyperparameters.get("rank", 0.25) for run in tried} == {0.25}
    rates = {(r.submission.name, r.hyperparameters["learning_rate"]) for r in study}
    assert rates == {("adamw", 0.008 / 3), ("lora", 0.01)}
    text = (tmp_path / "rank.md").read_text()
    assert "| 0.000889: 10 | **0.00267: 10** | 0.008: 10.01 |" in text
    assert "0.03: diverged |" in text
    assert "smallest or largest" not in text
    assert text in capsys.readouterr().out
    # What is known is known before anything runs, so a study that goes on checks out.
    values = _values(*given)
    base, axis = _base("finewebedu_lm"), (0.125, 0.25, 0.5)
    screened = comparison.screening(values, base, axis)
    assert comparison._factors(screened, base) == {"adamw": 1 / 3, "lora": 1.0}
    # Before rates are chosen, records of another choice are no mistake.
    assert cli_main.main(["reparam", *given, "--noplot"]) == 0
    assert asked == [(10, 8), (18, 0)]
    # A grid that ends too early is told.
    text = comparison._rates_text(screened, base, {"adamw": 1 / 9, "lora": 1.0})
    assert text.endswith(
        "The best of adamw is the smallest or largest that was tried.\n"
    )


def test_one_rate_is_not_tried_but_taken():
    given = ["--study=rank", "--workload=finewebedu_lm", "--rates=3", "--studies=1"]
    values, base = _values(*given), _base("finewebedu_lm")
    assert comparison.screening(values, base, [0.25]) == []
    (_, _, run), *_ = comparison.runs_of(values, base, [0.25], {})
    assert run.hyperparameters["learning_rate"] == pytest.approx(3 * 0.008)


def test_runs_that_end_as_a_constant_are_marked():
    workload = _base("imagenet_resnet")
    targets = np.concatenate(
        [
            batch["targets"][batch["weights"] > 0]
            for batch in workload.batches("validation")
        ]
    )
    constant = np.bincount(targets).max() / len(targets)
    assert 0.1 <= constant < 0.15
    rows = [{"final": x} for x in (constant, constant + 0.001, 0.05)] + [{}]
    comparison._mark_collapsed(rows, workload)
    assert [row.get("collapsed", False) for row in rows] == [True, False, True, False]
    rows = [{"final": 0.05}]
    comparison._mark_collapsed(rows, _base("finewebedu_lm"))
    assert rows == [{"final": 0.05}]


def test_compression_writes_verdicts_after_so_many_steps(tmp_path, monkeypatch, capsys):
    def make(runs):
        for run in runs:
            accuracy = 0.8 if run.submission.name == "stable_rps" else 0.1
            _finish(run, accuracy + 0.001 * run.study)
        return True

    monkeypatch.setattr(training, "announce", lambda *_, **__: None)
    monkeypatch.setattr(training, "make", make)
    given = ["--study=compression", "--workload=imagenet_resnet", "--values=4,16"]
    given += ["--series=stable_rps,snip", "--studies=2", f"--out={tmp_path}"]
    assert cli_main.main(["reparam", *given]) == 0
    text = (tmp_path / "compression.md").read_text()
    assert "| snip | 16 | 0.1005 |" in text
    assert "| 2 collapsed |" in text
    assert "| snip | 4 | +0.7000 | " in text
    wanted = "After 560 steps, at least as good as each at every compression: confirmed"
    assert wanted in text
    assert (tmp_path / "compression_stored.svg").exists()
    assert "after 560 steps" in (tmp_path / "compression.svg").read_text()
