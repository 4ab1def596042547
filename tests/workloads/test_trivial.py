"""What a predictor gets that learnt nothing, and how far targets are from it."""

import math

import numpy as np
import pytest

from algoperf import registry

MINI = registry.select_workloads(["all"], "mini")


@pytest.mark.parametrize("workload", MINI, ids=lambda workload: workload.name)
def test_targets_are_far_from_trivial(workload):
    trivial = workload.trivial_metrics()
    assert math.isfinite(trivial["loss"])
    value, target = (
        trivial[workload.target_metric_name],
        workload.validation_target_value,
    )
    prefixed = {f"validation/{name}": x for name, x in trivial.items()}
    assert not workload.has_reached_validation_target(prefixed)
    assert abs(value - target) > 0.1 * abs(target)


def test_images_by_hand():
    workload = registry.find_workload("imagenet_resnet", "mini")
    counts = np.zeros(10)
    for batch in workload.batches("eval_train"):
        np.add.at(counts, batch["targets"], batch["weights"])
    right = total = 0.0
    for batch in workload.batches("validation"):
        right += ((batch["targets"] == counts.argmax()) * batch["weights"]).sum()
        total += batch["weights"].sum()
    assert workload.trivial_metrics()["accuracy"] == pytest.approx(right / total)


def test_text_by_hand():
    workload = registry.find_workload("finewebedu_lm", "mini")
    dataset = workload.dataset("train", 16, seed=0)
    tokens = [dataset[i]["targets"].ravel() for i in range(200)]
    counts = 1 + np.bincount(np.concatenate(tokens), minlength=1024)
    wanted = np.concatenate(
        [b["targets"][b["weights"] > 0] for b in workload.batches("validation")]
    )
    loss = -np.log(counts / counts.sum())[wanted].mean()
    assert workload.trivial_metrics()["loss"] == pytest.approx(loss, rel=1e-5)


def test_half_of_the_flights_have_another_plane():
    workload = registry.find_workload("criteo1tb", "mini")
    assert workload.trivial_metrics()["loss"] == pytest.approx(math.log(2), rel=1e-3)


def test_the_trivial_image_is_the_input():
    workload = registry.find_workload("fastmri", "mini")
    differences = [
        np.abs(batch["inputs"] - batch["targets"]).mean((1, 2))[batch["weights"] > 0]
        for batch in workload.batches("validation")
    ]
    loss = np.concatenate(differences).mean()
    assert workload.trivial_metrics()["loss"] == pytest.approx(loss, rel=1e-5)
