"""What all workloads share: parameters, the model function, the evaluation loop.

A family (`workloads/<family>/workload.py`) subclasses `Workload` once, with its loss,
its metric and its data, and lists base, variants and scales as instances in a table
`WORKLOADS`; `derive` makes one from another.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import sharding, spec
from algoperf.records import Direction, reaches

EVAL_SPLITS = {"eval_train": "train", "validation": "validation", "test": "test"}
# Evaluation batches of all splits together are kept on the device up to this size.
EVAL_CACHE_BYTES = 512 * 2**20

W = TypeVar("W", bound="Workload")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Workload(abc.ABC):
    """A fixed problem: facts as fields, behaviour as methods (see `spec.Workload`).

    A family overrides `dataset`, `loss_fn`, `metric_sums` and `metrics`. Instances
    are frozen and compare by identity, so they may be static arguments of `jax.jit`.
    The model is a Flax module called as `model(inputs, train=bool, dropout_rate=...)`,
    with `use_running_average=bool` too if it keeps batch statistics.
    """

    base_workload: str
    variant: str  # the base's own name for the base
    scale: str  # 'full' or 'mini'
    model: nn.Module
    input_shape: tuple[int, ...]  # of one example
    input_dtype: Any
    loss_type: spec.LossType
    target_metric_name: str
    target_direction: Direction
    validation_target_value: float
    test_target_value: float
    num_train_examples: int
    num_eval_train_examples: int
    num_validation_examples: int
    num_test_examples: int
    default_batch_size: int
    max_batch_size: int | None = None  # a submission's wish is capped at this
    eval_batch_size: int
    step_hint: int
    max_allowed_runtime_sec: float
    # An evaluation is due after so many seconds of submission time, or, where
    # `eval_period_steps` is given, after so many steps: then the same command gives
    # the same evaluations however fast the machine is.
    eval_period_time_sec: float = math.inf
    eval_period_steps: int | None = None
    default_dropout_rate: float = 0.0
    train_mean: Any = None
    train_stddev: Any = None
    output_params: tuple[str, ...] = ()  # top-level keys of the output layer
    metrics_logger: spec.MetricsLogger | None = None

    @property
    def name(self) -> str:
        """The name in records: the variant, with the scale unless it is 'full'."""
        return self.variant if self.scale == "full" else f"{self.variant}_{self.scale}"

    # What a family defines.

    @abc.abstractmethod
    def dataset(self, split: str, batch_size: int, seed: int) -> grain.MapDataset:
        """Returns the batches of 'train' (endless), or of one of EVAL_SPLITS.

        Evaluation splits are finite, every batch of one size, 'weights' 0 on padding.
        """

    @abc.abstractmethod
    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """See `spec.Workload.loss_fn`."""

    @abc.abstractmethod
    def metric_sums(self, logits: jax.Array, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns scalars that add up over batches; padding has weight 0."""

    @abc.abstractmethod
    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics, 'loss' among them, from the sums over a split."""

    # What they share.

    def _init(self, rng: spec.RandomState) -> Any:
        inputs = jnp.zeros((1, *self.input_shape), self.input_dtype)
        return self.model.init({"params": rng}, inputs, train=False)

    @functools.cached_property
    def _variable_shapes(self) -> Any:
        return jax.eval_shape(self._init, jax.random.PRNGKey(0))

    @functools.cached_property
    def param_shapes(self) -> spec.ParameterShapeTree:
        """The params' tree with `ShapeTuple` leaves; costs no memory."""
        return jax.tree.map(
            lambda leaf: spec.ShapeTuple(leaf.shape), self._variable_shapes["params"]
        )

    @functools.cached_property
    def model_params_types(self) -> spec.ParameterTypeTree:
        """The params' own tree with `ParameterType` leaves."""
        return parameter_types(self._variable_shapes["params"])

    @functools.cached_property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        leaves = jax.tree.leaves(self._variable_shapes["params"])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    def is_output_params(self, param_key: spec.ParameterKey) -> bool:
        """Whether this top-level key of the params is the output layer."""
        return param_key in self.output_params

    def init_model_fn(self, rng: spec.RandomState) -> spec.ModelInitState:
        """Returns fresh (params, model_state), replicated on the devices."""
        initialise = jax.jit(
            self._init, out_shardings=sharding.get_replicate_sharding()
        )
        variables = dict(initialise(rng))
        return variables.pop("params"), variables

    def model_fn(
        self,
        params: spec.ParameterContainer,
        augmented_and_preprocessed_input_batch: spec.Batch,
        model_state: spec.ModelAuxiliaryState,
        mode: spec.ForwardPassMode,
        rng: spec.RandomState,
        update_batch_norm: bool,
        use_running_average_bn: bool | None = None,
        dropout_rate: float | None = None,
    ) -> tuple[spec.Tensor, spec.ModelAuxiliaryState]:
        """See `spec.Workload.model_fn`; `dropout_rate` may be traced."""
        train = mode is spec.ForwardPassMode.TRAIN
        if dropout_rate is None:
            dropout_rate = self.default_dropout_rate
        options: dict[str, Any] = {"train": train, "dropout_rate": dropout_rate}
        if model_state:
            options["use_running_average"] = (
                not train if use_running_average_bn is None else use_running_average_bn
            )
        # Flax writes batch statistics whenever it computes them; unasked-for ones are
        # dropped below.
        mutable = list(model_state) if model_state else False
        out = self.model.apply(
            {"params": params, **(model_state or {})},
            augmented_and_preprocessed_input_batch["inputs"],
            rngs={"dropout": rng} if train else None,
            mutable=mutable,
            **options,
        )
        if not mutable:
            return out, model_state
        logits, new_state = out
        return logits, new_state if update_batch_norm else model_state

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        """Whether the metrics of one evaluation reach the validation target."""
        return self._reached(eval_result, "validation", self.validation_target_value)

    def has_reached_test_target(self, eval_result: Mapping[str, float]) -> bool:
        """Whether the metrics of one evaluation reach the test target."""
        return self._reached(eval_result, "test", self.test_target_value)

    def _reached(self, eval_result, split: str, target: float) -> bool:
        value = eval_result[f"{split}/{self.target_metric_name}"]
        return reaches(value, target, self.target_direction)


def derive(base: W, *, model: Mapping[str, Any] | None = None, **facts: Any) -> W:
    """Returns a copy with other facts and other fields of the model.

    An unknown field is a TypeError. This is how a variant or a scale is one line:
    `derive(BASE, variant="imagenet_resnet_silu", model={"activation": nn.silu}, ...)`.
    """
    if model:
        facts["model"] = base.model.clone(**model)
    return dataclasses.replace(base, **facts)


class Evaluator:
    """Evaluates a model on all splits; keeps compiled code and small data at hand."""

    def __init__(self, workload: Workload):
        self._workload = workload
        self._sums = jax.jit(self._batch_sums)
        self._cache: dict[str, list[Any]] = {}
        self._cached_bytes = 0

    def _batch_sums(self, params, model_state, batch) -> dict[str, jax.Array]:
        logits, _ = self._workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.EVAL,
            rng=None,
            update_batch_norm=False,
        )
        return self._workload.metric_sums(logits, batch)

    def _batches(self, split: str) -> Iterable[Any]:
        if split in self._cache:
            return self._cache[split]
        dataset = self._workload.dataset(split, self._workload.eval_batch_size, seed=0)
        size = len(dataset) * sum(array.nbytes for array in dataset[0].values())
        batches = (
            sharding.shard_along_batch_dim(dataset[i]) for i in range(len(dataset))
        )
        if self._cached_bytes + size > EVAL_CACHE_BYTES:
            return batches
        self._cached_bytes += size
        self._cache[split] = list(batches)
        return self._cache[split]

    def __call__(self, params: Any, model_state: Any) -> dict[str, float]:
        """Returns 'train/loss', 'validation/accuracy', ... on the host, as floats."""
        results: dict[str, float] = {}
        for split, prefix in EVAL_SPLITS.items():
            per_batch = jax.device_get(
                [self._sums(params, model_state, b) for b in self._batches(split)]
            )
            # Added in float64 on the host: exact for counts, order-independent.
            sums = {
                name: math.fsum(float(part[name]) for part in per_batch)
                for name in per_batch[0]
            }
            for name, value in self._workload.metrics(sums).items():
                results[f"{prefix}/{name}"] = float(value)
        results["validation/num_examples"] = self._workload.num_validation_examples
        results["test/num_examples"] = self._workload.num_test_examples
        return results


def softmax_cross_entropy(
    labels: jax.Array,
    logits: jax.Array,
    mask: jax.Array | None,
    label_smoothing: float | jax.Array,
) -> dict[str, jax.Array]:
    """Cross-entropy of integer labels, in nats, as `spec.Workload.loss_fn` returns it.

    Args:
      labels: (...,) integer classes.
      logits: (..., classes).
      mask: (...,) weights, 0 on padding; None counts everything.
      label_smoothing: share of the probability spread over all classes (Szegedy et
        al. 2016, section 7); may be traced.
    """
    logits = logits.astype(jnp.float32)
    logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    # The log-probabilities themselves are never formed: on CPU the gradient of a
    # small language model's step is twice as fast so.
    normaliser = jnp.log(jnp.exp(logits).sum(axis=-1))
    true = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    smooth = logits.mean(axis=-1)
    losses = normaliser - (1 - label_smoothing) * true - label_smoothing * smooth
    valid = jnp.ones(labels.shape, jnp.float32) if mask is None else mask
    losses = losses * valid
    return {
        "summed": losses.sum(),
        "n_valid_examples": valid.sum(),
        "per_example": losses.reshape(labels.shape[0], -1).sum(-1),
    }


# Names of a parameter's nearest modules that decide its type, most telling first.
_ATTENTION = {
    "query": spec.ParameterType.ATTENTION_Q,
    "key": spec.ParameterType.ATTENTION_K,
    "value": spec.ParameterType.ATTENTION_V,
    "out": spec.ParameterType.ATTENTION_OUT,
    "qkv": spec.ParameterType.ATTENTION_QKV,
    "kv": spec.ParameterType.ATTENTION_KV,
}


def parameter_types(params: spec.ParameterContainer) -> spec.ParameterTypeTree:
    """Returns the type of each parameter, in the params' own tree.

    Read off the path: module names follow Flax's ('BatchNorm', 'LayerNorm', 'Conv',
    'Embed', 'query', ...), the last key names the role ('kernel', 'bias', 'scale').

    Raises:
      ValueError: a parameter whose type the names do not tell.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _parameter_type([key.key for key in path], leaf), params
    )


def _parameter_type(path: list[str], leaf: Any) -> spec.ParameterType:
    *modules, role = path
    module = modules[-1].lower() if modules else ""
    types = spec.ParameterType
    if "norm" in module or module.startswith(("bn", "ln")):
        batch = "batch" in module or module.startswith("bn")
        if role == "scale":
            return types.BATCH_NORM_SCALE if batch else types.LAYER_NORM_SCALE
        if role == "bias":
            return types.BATCH_NORM_BIAS if batch else types.LAYER_NORM_BIAS
    attention = any("attention" in name.lower() for name in modules)
    if role == "bias":
        return types.ATTENTION_BIAS if attention else types.BIAS
    if role == "embedding":
        return types.EMBEDDING
    if role == "kernel":
        if attention and module in _ATTENTION:
            return _ATTENTION[module]
        return (
            types.CONV_WEIGHT if np.ndim(leaf) > 2 and not attention else types.WEIGHT
        )
    if role == "scale":  # a learned scale outside a norm: a gain per layer or head
        return types.WEIGHT
    raise ValueError(
        f"cannot tell the type of parameter {'/'.join(path)}; name its last key "
        "kernel, bias, scale or embedding"
    )
