"""The quality of a served model: its workload's metric, by the decoder's own program.

What is evaluated is what is timed, packed weights, thin products and all, so that the
quality of a recipe is no estimate.
"""

from typing import Any

import jax

from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import DecoderShape
from algoperf.workload import Workload


def evaluate(
    workload: Workload,
    shape: DecoderShape,
    params: decoder.Params,
    split: str = "validation",
) -> dict[str, float]:
    """Returns the workload's metrics of a served model, 'loss' and 'ppl' say.

    Args:
      workload: a language model's; its data must be there.
      shape: of the served model.
      params: as they are served.
      split: 'validation', 'test' or 'eval_train'.
    """

    @jax.jit
    def measured(params: Any, batch: Any) -> Any:
        return workload.measure(decoder.forward(shape, params, batch["inputs"]), batch)

    dataset = workload.dataset(split, workload.eval_batch_size, seed=0)
    parts = [jax.device_get(measured(params, dataset[i])) for i in range(len(dataset))]
    return workload.metrics_of(parts)
