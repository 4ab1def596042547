"""The models that `algoperf infer profile` measures, and how they are served."""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.inference.models.serving import Recipe
    from algoperf.inference.models.shapes import DecoderShape
    from algoperf.inference.timing.profiles import Setting
    from algoperf.workload import Workload

WORKLOAD = "finewebedu_lm"


@dataclasses.dataclass(frozen=True)
class Model:
    """One that is to be measured.

    Attributes:
      name: of its files, but for the recipe.
      shape: before a recipe changes it.
      load: (dtype, mesh) -> shape, parameters as they are served, facts about them.
      is_plain: whether its files are named without a recipe.
    """

    name: str
    shape: "DecoderShape"
    load: Callable[[str, Any], tuple["DecoderShape", Any, dict[str, Any]]]
    is_plain: bool = False

    def file_name(
        self, recipe: str, setting: "Setting", dtype: str | None = None
    ) -> str:
        """Returns the name of its files, without an ending.

        Args:
          recipe: its label, which has a dtype where weights are not packed.
          setting: what in it is not usual is named, so that another setting in the same
            folder does not take this one's place.
          dtype: that was asked for; None: the usual one.
        """
        parts = [self.name]
        if not self.is_plain:
            parts.append(re.sub("[^a-z0-9.]+", "-", recipe.lower()))
        if dtype is not None and dtype not in parts[-1]:
            parts.append(dtype)
        for name in ("batch_size", "capacity", "parallel"):
            value = getattr(setting, name)
            if value not in (None, 1):
                parts.append(f"{name}-{value}")
        return "_".join(parts)


def define_flags(values: flags.FlagValues) -> None:
    """Defines how weights are served."""
    flags.DEFINE_string(
        "weights", None, "Pack the weights in this format: nvfp4, mxfp4, mxfp8, int8, "
        "... as in docs/numerics.md. By default they are arrays of --dtype.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "pack_embedding", False, "Pack the embedding and the output layer too.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "rank", None, "Serve the kernels of blocks as two factors of this rank: a "
        "number, or a share of the smaller side as 0.25.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "prune", 0.0, "Leave out this share of the neurons of each MLP, those with the "
        "least weights.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "compact", True, "Serve a trial without neurons that do nothing, and kernels "
        "of low rank as factors, which changes no output.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "evaluate", True, "Measure the quality of a trial's model as it is served, on "
        "the validation data.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "data_dir", None, "Where the data of scale full is, to evaluate a trial or for "
        "speculate and first_token; by default $ALGOPERF_DATA_DIR, else ./data.",
        flag_values=values,
    )  # fmt: skip


def recipe_of(values: flags.FlagValues, is_trained: bool) -> "Recipe":
    """Returns how the flags want weights to be served.

    Raises:
      UserError: no model can be.
    """
    from algoperf.inference.models import serving

    recipe = serving.Recipe(
        weight_format=values.weights,
        packs_embedding=values.pack_embedding,
        rank=_rank(values.rank),
        pruned=values.prune,
        is_compact=values.compact and is_trained,
    )
    serving.check_recipe(recipe)
    if values.parallel == 1:
        return recipe
    if recipe.changes:
        raise UserError(
            "--parallel splits dense weights only; leave out --weights, --rank and "
            "--prune"
        )
    return serving.Recipe()


def _rank(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise UserError(
            f"--rank {text}: give a number as 16, or a share as 0.25"
        ) from error


def check_names(names: Sequence[str], shapes: Mapping[str, Any]) -> None:
    """Raises UserError for what is neither a shape, a workload nor a folder of runs."""
    if len(names) > 1 and any(_is_known(name, shapes) for name in names):
        raise UserError(f"give one NAME to profile, not {len(names)}")
    for name in names:
        if not _is_known(name, shapes) and not Path(name).is_dir():
            if "/" in name:
                raise UserError(f"{name} is no folder; give one of `algoperf run`")
            raise unknown_name("shape", name, [*shapes, WORKLOAD])


def _is_known(name: str, shapes: Mapping[str, Any]) -> bool:
    """Whether it names a model, even where a folder is called so."""
    return name in shapes or (name.startswith(WORKLOAD) and "/" not in name)


def what_is_timed(shape: "DecoderShape", params: Any) -> tuple[Any, ...]:
    """Returns what the time of a request depends on: all but the values of weights."""
    import jax

    leaves = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    plain = dataclasses.replace(shape, name="")
    return plain, jax.tree.structure(params), leaves


def models(values: flags.FlagValues, names: Sequence[str]) -> Iterator[Model]:
    """Yields what the names stand for; trials as many as their folders hold.

    Raises:
      UserError: an unknown name, a recipe or a folder that nothing is served from.
    """
    from algoperf.inference.models.shapes import SHAPES

    if not _is_known(names[0], SHAPES):
        yield from _trials(values, [Path(name) for name in names])
        return
    (name,) = names
    recipe = recipe_of(values, is_trained=False)
    if name in SHAPES:
        yield _of_shape(SHAPES[name], recipe)
    else:
        yield _of_workload(find_workload(name, values), recipe)


def _of_shape(shape: "DecoderShape", recipe: "Recipe") -> Model:
    def load(dtype: str, mesh: Any) -> Any:
        import jax.numpy as jnp

        from algoperf.inference.timing import measure

        _check_memory(shape, "float32" if recipe.changes else dtype, mesh)
        if not recipe.changes:
            params = measure.random_params(shape, jnp.dtype(dtype), mesh)
            return shape, params, _facts(recipe, dtype, params)
        params = measure.random_params(shape, jnp.float32)
        return _served(shape, params, recipe, dtype)

    return Model(shape.name, shape, load, is_plain=not recipe.changes)


def _check_memory(shape: "DecoderShape", dtype: str, mesh: Any) -> None:
    """Raises UserError where a model's weights do not fit the devices' memory."""
    import jax
    import jax.numpy as jnp
    import psutil

    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    sizes = [device.memory_stats() for device in devices]
    if devices[0].platform == "cpu":
        room = psutil.virtual_memory().available
    elif all(size and "bytes_limit" in size for size in sizes):
        room = sum(size["bytes_limit"] for size in sizes)
    else:
        return  # the device does not say
    needed = shape.num_parameters * jnp.dtype(dtype).itemsize
    if needed > room:
        raise UserError(
            f"the weights of {shape.name} take {needed / 1e9:.1f} GB in {dtype}, and "
            f"there are {room / 1e9:.1f} GB; take a smaller shape, a smaller --dtype, "
            "or more devices with --parallel"
        )


def _of_workload(workload: "Workload", recipe: "Recipe") -> Model:
    from algoperf.inference.models import trained

    shape = trained.trained_shape(workload.name, workload.model)

    def load(dtype: str, mesh: Any) -> Any:
        import jax

        fresh, _ = workload.init_model_fn(jax.random.PRNGKey(0))
        params = trained.trained_params(shape, fresh)
        return _served(shape, params, recipe, dtype, mesh)

    return Model(shape.name, shape, load, is_plain=not recipe.changes)


def _trials(values: flags.FlagValues, folders: list[Path]) -> Iterator[Model]:
    """Yields the language models that trials under some folders have left."""
    from algoperf.inference.models import trained, trial

    recipe = recipe_of(values, is_trained=True)
    found = [path for folder in folders for path in trial.find_trials(folder)]
    several = len(found) > 1
    count = 0
    for path in found:
        try:
            record = records.read_record(path)
            workload = find_workload(record["workload"], values, record["scale"])
            shape = trained.trained_shape(workload.name, workload.model)
            left = trial.read_trial(path)
        except UserError as error:
            if not several:
                raise
            print(f"{path} is passed over: {error}", file=sys.stderr)
            continue
        count += 1
        own = left.identity
        yield Model(
            f"{own['submission']}_{workload.name}_study{own['study']}"
            f"_trial{own['trial']}",
            shape,
            functools.partial(_load_trial, left, workload, recipe, values.evaluate),
        )
    if not count:
        raise UserError("none of these trials has a language model that can be served")


def _load_trial(
    left: Any,
    workload: "Workload",
    recipe: "Recipe",
    evaluates: bool,
    dtype: str,
    mesh: Any,
) -> tuple["DecoderShape", Any, dict[str, Any]]:
    from algoperf.inference.models import evaluation, trained

    shape = trained.trained_shape(workload.name, workload.model)
    params = trained.trained_params(shape, left.params)
    shape, params, facts = _served(shape, params, recipe, dtype, mesh)
    facts["trial"] = left.identity
    facts["metric"] = workload.target_metric_name
    facts["direction"] = str(workload.target_direction)
    facts["target"] = workload.validation_target_value
    name = f"validation/{workload.target_metric_name}"
    facts["trained_quality"] = (left.evaluation or {}).get(name)
    if evaluates and mesh is None:
        found = evaluation.evaluate(workload, shape, params)
        facts["quality"] = found[workload.target_metric_name]
    return shape, params, facts


def _served(
    shape: "DecoderShape", params: Any, recipe: "Recipe", dtype: str, mesh: Any = None
) -> tuple["DecoderShape", Any, dict[str, Any]]:
    import jax.numpy as jnp

    from algoperf.inference.models import parallel, serving

    shape, params = serving.served(shape, params, recipe, jnp.dtype(dtype))
    facts = _facts(recipe, dtype, params)
    if mesh is not None:
        params = parallel.shard_params(shape, params, mesh)
    return shape, params, facts


def _facts(recipe: "Recipe", dtype: str, params: Any) -> dict[str, Any]:
    from algoperf.inference.models import serving

    return {"recipe": recipe.label(dtype), **serving.described(params)}


def find_workload(name: str, values: flags.FlagValues, scale: str = "") -> "Workload":
    """Returns a workload that reads its data where the flags say."""
    from algoperf import registry
    from algoperf.data.examples import DataOptions

    workload = registry.find_workload(name, scale or values.scale)
    folder = Path(values.data_dir) if values.data_dir else None
    return dataclasses.replace(workload, data=DataOptions(folder=folder))
