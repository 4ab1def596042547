"""What all workloads share: parameters, the model function, the evaluation loop.

A family (`workloads/<family>/workload.py`) subclasses `Workload` once, with its loss,
its metric and its data, and lists base, variants and scales as instances in a table
`WORKLOADS`; `derive` makes one from another.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import sharding, spec
from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import InputQueue
from algoperf.data.source import DataSource
from algoperf.records import Direction, reaches

EVAL_SPLITS = {"eval_train": "train", "validation": "validation", "test": "test"}
# Evaluation batches of all splits together are kept on the device up to this size.
EVAL_CACHE_BYTES = 512 * 2**20
EVAL_STEPS_IN_FLIGHT = 2

W = TypeVar("W", bound="Workload")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Workload(abc.ABC):
    """A fixed problem: facts as fields, behaviour as methods (see `spec.Workload`).

    A family overrides `loss_fn`, `measure` and `metrics`, and `example_batch`,
    `model_inputs` and `evaluation_step` where its batches are more than one array of
    inputs or its metric needs more than the logits. Instances are frozen and compare by
    identity, so they may be static arguments of `jax.jit`. The model is a Flax module
    called as `model(*model_inputs, train=bool, dropout_rate=...)`, with
    `use_running_average=bool` too if it keeps batch statistics.

    `pipeline(split, batch_size, seed, options)` gives the batches of 'train' (endless)
    or of one of EVAL_SPLITS (finite, every batch of one size, 'weights' 0 on padding).
    """

    base_workload: str
    variant: str  # the base's own name for the base
    scale: str  # 'full' or 'mini'
    model: nn.Module
    pipeline: Callable[[str, int, int, DataOptions], grain.MapDataset]
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    placement: sharding.Placement = dataclasses.field(
        default_factory=sharding.Placement
    )
    data_source: DataSource | None = None  # None: the data ship with the package
    input_shape: tuple[int, ...]  # of one example
    input_dtype: Any
    loss_type: spec.LossType
    target_metric_name: str
    # The metric as the official code computes it, where ours differs.
    official_metric_name: str | None = None
    target_direction: Direction
    validation_target_value: float
    test_target_value: float | None  # None where there is no test split
    num_train_examples: int
    num_eval_train_examples: int
    num_validation_examples: int
    num_test_examples: int
    default_batch_size: int
    max_batch_size: int | None = None  # a submission's wish is capped at this
    max_packs: int | None = None  # a batch of b is gcd(b, this) packs; None: examples
    eval_batch_size: int
    step_hint: int
    max_allowed_runtime_sec: float
    # As published: budgets (s) by version of the benchmark, and what a step of the
    # reference submission took (s) by hardware.
    published_budgets_sec: Mapping[str, float] = dataclasses.field(default_factory=dict)
    published_step_sec: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # An evaluation is due after so many seconds of submission time, or, where
    # `eval_period_steps` is given, after so many steps: then the same command gives
    # the same evaluations however fast the machine is.
    eval_period_time_sec: float = math.inf
    eval_period_steps: int | None = None
    default_dropout_rate: float = 0.0
    # Whether batch norm takes the batch's statistics in training mode, also where it
    # is not to update the running ones.
    batch_norm_follows_mode: bool = True
    train_mean: Any = None
    train_stddev: Any = None
    for_development: bool = False  # no held-out workload, no part of a suite
    output_params: tuple[str, ...] = ()  # top-level keys of the output layer
    metrics_logger: spec.MetricsLogger | None = None

    @property
    def name(self) -> str:
        """The name in records: the variant, with the scale unless it is 'full'."""
        return self.variant if self.scale == "full" else f"{self.variant}_{self.scale}"

    # What a family defines.

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
    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns what the metrics of a batch are made of; padding has weight 0.

        Scalars add up over the batches of a split; arrays are laid end to end.
        """

    @abc.abstractmethod
    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of a split, 'loss' among them, on the host.

        Args:
          measured: sums (floats) and joined arrays (NumPy) of what `measure` returned.
        """

    # What a family may redefine.

    def example_batch(self) -> spec.Batch:
        """Returns a batch of zeros that the model can be initialised with."""
        return {"inputs": jnp.zeros((1, *self.input_shape), self.input_dtype)}

    def model_inputs(self, batch: spec.Batch) -> tuple[Any, ...]:
        """Returns what of a batch the model is called with."""
        return (batch["inputs"],)

    def evaluation_step(
        self,
        params: spec.ParameterContainer,
        model_state: spec.ModelAuxiliaryState,
        batch: spec.Batch,
    ) -> dict[str, jax.Array]:
        """Returns what `measure` does, from the parameters; runs under `jax.jit`."""
        mode = spec.ForwardPassMode.EVAL
        logits, _ = self.model_fn(params, batch, model_state, mode, None, False)
        return self.measure(logits, batch)

    def trivial_logits(self, batch: spec.Batch) -> Any:
        """Returns logits that ignore the inputs: here, that all answers are alike."""
        params, state = jax.eval_shape(self.init_model_fn, jax.random.PRNGKey(0))
        logits = jax.eval_shape(
            lambda params, state: self.model_fn(
                params, batch, state, spec.ForwardPassMode.EVAL, None, False
            )[0],
            params,
            state,
        )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), logits)

    def trivial_measure(self, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns what `evaluation_step` does, for `trivial_logits`."""
        return self.measure(self.trivial_logits(batch), batch)

    # What they share.

    def trivial_metrics(self) -> dict[str, float]:
        """Returns the validation metrics of a predictor that learnt next to nothing.

        How far a target is from them says how much there is to learn.
        """
        parts = [self.trivial_measure(batch) for batch in self.batches("validation")]
        return self.metrics_of(parts)

    def metrics_of(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns the metrics of a split from what `measure` said of its batches.

        Sums are taken in float64: exact for counts, and the same in any order.
        """
        parts = jax.device_get(parts)
        measured = {
            name: math.fsum(float(part[name]) for part in parts)
            if np.ndim(first) == 0
            else np.concatenate([part[name] for part in parts])
            for name, first in parts[0].items()
        }
        return {name: float(x) for name, x in self.metrics(measured).items()}

    def batches(self, split: str) -> Iterator[spec.Batch]:
        """Yields the batches of one of EVAL_SPLITS, on the host."""
        dataset = self.dataset(split, self.eval_batch_size, seed=0)
        yield from (dataset[position] for position in range(len(dataset)))

    def dataset(self, split: str, batch_size: int, seed: int) -> grain.MapDataset:
        """Returns the batches of 'train' (endless), or of one of EVAL_SPLITS."""
        return self.pipeline(split, batch_size, seed, self.data)

    @functools.cached_property
    def skipped_in_preparation(self) -> int:
        """How many corrupt records were passed over when the data were prepared."""
        source = self.data_source
        return 0 if source is None else source.num_skipped(self.data.folder)

    def _init(self, rng: spec.RandomState) -> Any:
        inputs = self.model_inputs(self.example_batch())
        return self.model.init({"params": rng}, *inputs, train=False)

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
        """Returns fresh (params, model_state), placed as the run says."""
        places = self.placement.shardings(self._variable_shapes)
        initialise = jax.jit(self._init, out_shardings=places)
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
        if use_running_average_bn is None:
            follows = train and self.batch_norm_follows_mode
            use_running_average_bn = not (follows or update_batch_norm)
        if model_state:
            options["use_running_average"] = use_running_average_bn
        # Flax writes batch statistics whenever it computes them; unasked-for ones are
        # dropped below.
        mutable = list(model_state) if model_state else False
        out = self.model.apply(
            {"params": self.placement.gather(params), **(model_state or {})},
            *self.model_inputs(augmented_and_preprocessed_input_batch),
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
        if self.test_target_value is None:
            return True
        return self._reached(eval_result, "test", self.test_target_value)

    def _reached(self, eval_result, split: str, target: float) -> bool:
        value = eval_result[f"{split}/{self.target_metric_name}"]
        return reaches(value, target, self.target_direction)


def derive(base: W, *, model: Mapping[str, Any] | None = None, **facts: Any) -> W:
    """Returns a copy with other facts and other fields of the model.

    An unknown field is a TypeError.
    """
    if model:
        facts["model"] = base.model.clone(**model)
    return dataclasses.replace(base, **facts)


def variant(
    base: W,
    name: str,
    targets: tuple[float, float],
    facts: Mapping[str, Any] = MappingProxyType({}),
    **model: Any,
) -> W:
    """Returns a variant of a workload; one is one line of a family's table.

    `variant(FULL, "imagenet_resnet_silu", (0.75445, 0.6323), activation=nn.silu)`.

    Args:
      base: what it is a variant of.
      name: of the variant.
      targets: of validation and test.
      facts: other facts that differ.
      **model: fields of the model that differ.
    """
    validation, test = targets
    return derive(
        dataclasses.replace(base, **facts),
        model=model,
        variant=name,
        validation_target_value=validation,
        test_target_value=test,
    )


class Evaluator:
    """Evaluates a model on all splits; keeps compiled code and small data at hand."""

    def __init__(self, workload: Workload):
        self.skipped = 0  # corrupt examples, in all splits together
        self._workload = workload
        # Whole on every device, so that each host can read all of it.
        whole = sharding.get_replicate_sharding(workload.placement.mesh())
        self._step = jax.jit(workload.evaluation_step, out_shardings=whole)
        self._cache: dict[str, list[spec.Batch]] = {}
        self._cached_bytes = 0
        self._skipped_in: dict[str, int] = {}

    def _batches(self, split: str) -> Iterator[spec.Batch]:
        """Yields the batches of a split; keeps them if they are small."""
        if split in self._cache:
            yield from self._cache[split]
            return
        workload = self._workload
        dataset = workload.dataset(split, workload.eval_batch_size, seed=0)
        queue = InputQueue(
            dataset,
            workload.placement.batch_sharding(),
            workers=workload.data.workers,
            threads=workload.data.threads,
        )
        kept: list[spec.Batch] | None = []
        try:
            for batch in queue:
                if kept is not None:
                    kept.append(batch)
                    size = sum(a.nbytes for a in jax.tree.leaves(batch)) * len(dataset)
                    if self._cached_bytes + size > EVAL_CACHE_BYTES:
                        kept = None
                yield batch
        finally:
            queue.close()
        self._skipped_in[split] = queue.skipped
        self.skipped = sum(self._skipped_in.values())
        if kept is not None:
            self._cached_bytes += size
            self._cache[split] = kept

    def __call__(self, params: Any, model_state: Any) -> dict[str, float]:
        """Returns 'train/loss', 'validation/accuracy', ... on the host, as floats."""
        results: dict[str, float] = {}
        for split, prefix in EVAL_SPLITS.items():
            if split == "test" and self._workload.num_test_examples == 0:
                continue
            parts: list[dict[str, Any]] = []
            for batch in self._batches(split):
                parts.append(self._step(params, model_state, batch))
                if len(parts) > EVAL_STEPS_IN_FLIGHT:
                    parts[-1 - EVAL_STEPS_IN_FLIGHT] = jax.device_get(
                        parts[-1 - EVAL_STEPS_IN_FLIGHT]
                    )
            for name, value in self._workload.metrics_of(parts).items():
                results[f"{prefix}/{name}"] = value
        results["validation/num_examples"] = self._workload.num_validation_examples
        results["test/num_examples"] = self._workload.num_test_examples
        return results


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
    if role in ("scale", "probe"):  # a gain per layer or head, a learned query
        return types.WEIGHT
    raise ValueError(
        f"cannot tell the type of parameter {'/'.join(path)}; name its last key "
        "kernel, bias, scale, probe or embedding"
    )
