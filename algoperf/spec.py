"""The contract between the harness, a workload and a submission, on one page.

A **submission** is a Python module with the five functions of `Submission`, at the end
of this file (`prepare_for_eval` may be left out). The harness calls them with the
workload, which offers what `Workload` lists. Names and signatures are those of the
MLCommons benchmark, so an official JAX submission runs here as it is.
`algoperf.submission` writes all five from an optax gradient transformation;
`algoperf check` tries them.

What counts: everything that runs inside `init_optimizer_state` is free; what runs
inside `data_selection`, `update_params` and `prepare_for_eval` is charged by the
clock, on the device and on the host, compilation included. Evaluation, checkpointing
and logging are not.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class LossType(enum.Enum):
    """What `Workload.loss_fn` computes."""

    SOFTMAX_CROSS_ENTROPY = 0
    SIGMOID_CROSS_ENTROPY = 1
    MEAN_SQUARED_ERROR = 2
    CTC_LOSS = 3
    MEAN_ABSOLUTE_ERROR = 4


class ForwardPassMode(enum.Enum):
    """Whether dropout and batch norm behave as in training."""

    TRAIN = 0
    EVAL = 1


class ParameterType(enum.Enum):
    """What a parameter is to the model, for rules by type (decay, rates, routing)."""

    WEIGHT = 0
    BIAS = 1
    CONV_WEIGHT = 2
    BATCH_NORM_SCALE = 3
    BATCH_NORM_BIAS = 4
    LAYER_NORM_SCALE = 5
    LAYER_NORM_BIAS = 6
    EMBEDDING = 7
    ATTENTION_Q = 8
    ATTENTION_K = 9
    ATTENTION_V = 10
    ATTENTION_OUT = 11
    ATTENTION_QKV = 12  # query, key and value fused in one matrix
    ATTENTION_KV = 13  # key and value fused in one matrix
    ATTENTION_BIAS = 14


class ShapeTuple:
    """A parameter's shape as one leaf of a pytree (a tuple would be a subtree)."""

    def __init__(self, shape_tuple: tuple[int, ...]):
        self.shape_tuple = tuple(shape_tuple)

    def __repr__(self) -> str:
        return f"ShapeTuple({self.shape_tuple})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShapeTuple) and self.shape_tuple == other.shape_tuple

    def __hash__(self) -> int:
        return hash(self.shape_tuple)


Tensor = Any  # a jax.Array, or a NumPy array before it is on the device
Shape = ShapeTuple
ParameterKey = str
ParameterContainer = Any  # nested dicts of arrays, the params of a Flax module
ParameterShapeTree = Any  # the same tree with ShapeTuple leaves
ParameterTypeTree = Any  # the same tree with ParameterType leaves
ModelAuxiliaryState = Any  # batch statistics; an empty dict where there are none
ModelInitState = tuple[ParameterContainer, ModelAuxiliaryState]
OptimizerState = Any  # any pytree; functions in it are kept, not checkpointed
Hyperparameters = Any  # a namedtuple; None under the self-tuning ruleset
RandomState = Any  # a raw JAX key: uint32[2]
Batch = dict[str, Tensor]  # 'inputs', 'targets', 'weights' (0 marks padding), ...
EvalResults = list[tuple[int, dict[str, float]]]  # (global step, metrics)
UpdateReturn = tuple[OptimizerState, ParameterContainer, ModelAuxiliaryState]
Timing = float  # seconds
Steps = int


class MetricsLogger(Protocol):
    """Where a submission may log scalars; costs it neither time nor a device sync."""

    def append_scalar_metrics(
        self, metrics: Mapping[str, Any], global_step: int
    ) -> None:
        """Keeps scalars (floats or 0-d arrays) for `measurements.csv`."""


class Workload(Protocol):
    """A fixed problem, as a submission sees it. Read-only and hashable.

    Hashable by identity, so it may be a static argument of `jax.jit`.
    """

    name: str  # as in records, with the scale: 'imagenet_resnet_mini'
    base_workload: str  # the family: 'imagenet_resnet'
    scale: str  # 'full' or 'mini'
    loss_type: LossType
    target_metric_name: str  # 'accuracy', 'ppl', ...
    validation_target_value: float
    test_target_value: float | None  # None where there is no test split
    num_train_examples: int
    num_eval_train_examples: int
    num_validation_examples: int
    num_test_examples: int
    default_batch_size: int  # used when get_batch_size knows no answer
    eval_batch_size: int
    step_hint: int  # steps that a submission may plan its schedule for
    max_allowed_runtime_sec: float
    eval_period_time_sec: float
    train_mean: Any  # statistics of the training inputs, where they are normalised
    train_stddev: Any
    metrics_logger: MetricsLogger | None
    placement: Any  # of arrays on devices: `algoperf.sharding.Placement`

    @property
    def param_shapes(self) -> ParameterShapeTree:
        """The params' tree with `ShapeTuple` leaves; costs no memory."""
        ...

    @property
    def model_params_types(self) -> ParameterTypeTree:
        """The params' own tree with `ParameterType` leaves."""
        ...

    def is_output_params(self, param_key: ParameterKey) -> bool:
        """Whether this top-level key of the params is the output layer."""
        ...

    def init_model_fn(self, rng: RandomState) -> ModelInitState:
        """Returns fresh (params, model_state) on the devices."""
        ...

    def model_fn(
        self,
        params: ParameterContainer,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: ModelAuxiliaryState,
        mode: ForwardPassMode,
        rng: RandomState,
        update_batch_norm: bool,
        use_running_average_bn: bool | None = None,
        dropout_rate: float | None = None,
    ) -> tuple[Tensor, ModelAuxiliaryState]:
        """Returns (logits, new model state); differentiable in `params`.

        Batch norm takes the batch's statistics in training mode and where
        `update_batch_norm` asks for new running ones, else the running ones; if the
        workload's `batch_norm_follows_mode` is False, as officially that of ResNet,
        `update_batch_norm` alone decides. `use_running_average_bn` overrules both.
        """
        ...

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Returns the loss without regularisation.

        Keys: 'summed' (scalar), 'n_valid_examples' (scalar: what to divide by),
        'per_example' (batch,).
        """
        ...

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        """Whether the metrics of one evaluation reach the validation target."""
        ...

    def has_reached_test_target(self, eval_result: Mapping[str, float]) -> bool:
        """Whether the metrics of one evaluation reach the test target."""
        ...


class TrainingCompleteError(Exception):
    """Raised by `update_params` to end the trial, with one last free evaluation.

    None follows if the parameters of this very step have been evaluated.
    """


class Submission(Protocol):
    """The functions of a submission's module, without `self`.

    The harness passes the arguments of update_params and prepare_for_eval by name,
    those of the other functions by position.
    """

    def get_batch_size(self, workload_name: str) -> int:
        """Returns the global batch size; must be divisible by the number of devices.

        Asked with the most exact name first ('imagenet_resnet_silu_mini', then
        'imagenet_resnet_silu', then 'imagenet_resnet'); raise ValueError for a name
        that the submission does not know. The harness then uses the workload's default.
        """
        ...

    def init_optimizer_state(
        self,
        workload: Workload,
        model_params: ParameterContainer,
        model_state: ModelAuxiliaryState,
        hyperparameters: Hyperparameters,
        rng: RandomState,
    ) -> OptimizerState:
        """Returns the initial state, often `(state, update_fn)`; not charged."""
        ...

    def update_params(
        self,
        workload: Workload,
        current_param_container: ParameterContainer,
        current_params_types: ParameterTypeTree,
        model_state: ModelAuxiliaryState,
        hyperparameters: Hyperparameters,
        batch: Batch,
        loss_type: LossType,
        optimizer_state: OptimizerState,
        eval_results: EvalResults,
        global_step: int,
        rng: RandomState,
        train_state: Mapping[str, Any] | None = None,
    ) -> UpdateReturn:
        """One step: returns (optimizer_state, params, model_state).

        `train_state` (read-only clock readings) is passed only to functions that name
        it. May donate the buffers that it was given. The params keep their shapes and
        dtypes; a trial whose first step changes them fails.
        """
        ...

    def prepare_for_eval(
        self,
        workload: Workload,
        current_param_container: ParameterContainer,
        current_params_types: ParameterTypeTree,
        model_state: ModelAuxiliaryState,
        hyperparameters: Hyperparameters,
        loss_type: LossType,
        optimizer_state: OptimizerState,
        eval_results: EvalResults,
        global_step: int,
        rng: RandomState,
    ) -> UpdateReturn:
        """Optional; called, and charged, before each evaluation.

        Training goes on from what it returns, of the same shapes and dtypes.
        """
        ...

    def data_selection(
        self,
        workload: Workload,
        input_queue: Iterator[Batch],
        optimizer_state: OptimizerState,
        current_param_container: ParameterContainer,
        model_state: ModelAuxiliaryState,
        hyperparameters: Hyperparameters,
        global_step: int,
        rng: RandomState,
    ) -> Batch:
        """Returns the batch of this step, usually `next(input_queue)`.

        The queue repeats for ever, shuffled, batches already on the devices; take as
        many as needed.
        """
        ...
