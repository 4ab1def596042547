"""Recipes: what each operand of the three products of a layer is rounded to.

A layer y = x w has three products: forward, the gradient of its input g w^T, and the
gradient of its weight x^T g. Each operand of each has a slot, and each product may have
a rotation of both its operands.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType

from algoperf import spec
from algoperf.errors import UserError, unknown_name
from algoperf.numerics.formats import FORMATS, Format
from algoperf.numerics.transforms import hadamard_matrix

ESTIMATORS = ("straight_through", "clipped", "exact", "dge")
SLOTS = (
    "forward_x",
    "forward_w",
    "input_gradient_g",
    "input_gradient_w",
    "weight_gradient_g",
    "weight_gradient_x",
)
ROTATIONS = ("forward_rotation", "input_gradient_rotation", "weight_gradient_rotation")


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A block Hadamard transform of both operands along the contracted axis.

    Attributes:
      block: a power of two; an axis is padded to whole blocks.
      random: whether with random signs, drawn anew for each product and key.
    """

    block: int = 32
    random: bool = False

    def __post_init__(self) -> None:
        hadamard_matrix(self.block)


@dataclasses.dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that grows while gradients are finite (arXiv:1710.03740, section 3).

    After `period` finite steps in a row the scale is doubled. Where a gradient is not
    finite, the step is skipped and the scale halved.

    Attributes:
      initial: the first scale.
      period: finite steps until it is doubled.
      smallest, largest: its bounds.
    """

    initial: float = 2.0**15
    period: int = 2000
    smallest: float = 1.0
    largest: float = 2.0**24

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest <= self.initial <= self.largest:
            raise UserError(
                f"a loss scale of {self.initial} between {self.smallest} and "
                f"{self.largest}: give 0 < smallest <= initial <= largest"
            )
        if self.period < 1:
            raise UserError(f"a period of {self.period} steps: give at least 1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What replaces the numerics of matrix products and convolutions.

    A product of two activations (attention scores) has them as x, left, and w, right.
    A slot that is None keeps its operand.

    Attributes:
      name: for messages and records.
      forward_x, forward_w: formats of the forward product.
      input_gradient_g, input_gradient_w: of the gradient of x.
      weight_gradient_g, weight_gradient_x: of the gradient of w.
      forward_rotation, input_gradient_rotation, weight_gradient_rotation: of both
        operands of the product.
      backward_from: 'original': the backward products quantise w and x as they were;
        'quantised': as the forward product had them, rotated and rounded.
      estimator: what stands for the derivative of rounding in the forward product.
        'straight_through': 1.
        'clipped': 1 where the value was rounded, 0 where it was clipped (QuEST).
        'exact': as 'clipped', and the derivative of the block's scale, which reaches
          the block's largest element (arXiv:2509.17791, proposition 1). For scales that
          follow from the operand's own largest magnitudes, and rounding to nearest.
        'dge': straight through for x; for w the derivative of a power law between two
          neighbouring values, at most 3 (Wang et al. 2025, arXiv:2501.17116, eq. 8).
      outliers: share of the elements of x and w in the forward product, the largest,
        that keep their precision.
      keep: regular expressions; products whose module path one of them finds are left
        in high precision.
      keep_types: names of `spec.ParameterType`; so are products with such a parameter.
      keep_first, keep_last: so are this many of the products with a parameter.
      weights_only: so are products without a parameter.
      loss_scale: what gradients are multiplied by on their way back; divided out of
        the result. A power of two, or a `DynamicLossScale`: then the recipe has state.
      amax_history: steps whose largest magnitudes scale an operand, instead of its own
        (delayed scaling: the scale is known before the operand is); what is larger is
        clipped. For formats with one float32 scale for a tensor. With 0 there is none;
        otherwise the recipe has state.

    Raises:
      UserError: a field that makes no sense.
    """

    name: str = "custom"
    forward_x: Format | None = None
    forward_w: Format | None = None
    input_gradient_g: Format | None = None
    input_gradient_w: Format | None = None
    weight_gradient_g: Format | None = None
    weight_gradient_x: Format | None = None
    forward_rotation: Rotation | None = None
    input_gradient_rotation: Rotation | None = None
    weight_gradient_rotation: Rotation | None = None
    backward_from: str = "original"
    estimator: str = "straight_through"
    outliers: float = 0.0
    keep: tuple[str, ...] = ()
    keep_types: tuple[str, ...] = ()
    keep_first: int = 0
    keep_last: int = 0
    weights_only: bool = False
    loss_scale: float | DynamicLossScale = 1.0
    amax_history: int = 0

    def __post_init__(self) -> None:
        for slot in SLOTS:
            value = getattr(self, slot)
            if value is not None and not isinstance(value, Format):
                raise UserError(
                    f"recipe {self.name}: {slot} is {value!r}; give a Format, such as "
                    "FORMATS['mxfp8']"
                )
        if self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ESTIMATORS)
        if self.backward_from not in ("original", "quantised"):
            raise UserError(
                f"recipe {self.name}: backward_from is {self.backward_from!r}; give "
                "'original' or 'quantised'"
            )
        if not 0.0 <= self.outliers < 1.0:
            raise UserError(
                f"recipe {self.name}: outliers is {self.outliers}, a share from 0 to 1"
            )
        scale = self.loss_scale
        if not isinstance(scale, DynamicLossScale) and scale <= 0.0:
            raise UserError(f"recipe {self.name}: loss_scale must be positive")
        for name in self.keep_types:
            if name not in spec.ParameterType.__members__:
                raise unknown_name(
                    "parameter type", name, spec.ParameterType.__members__
                )
        self._check_history()
        self._check_estimator()
        for pattern in self.keep:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"recipe {self.name}: {pattern!r} is no regular expression: {error}"
                ) from error

    def _check_history(self) -> None:
        if not self.amax_history:
            return
        wrong = [
            slot
            for slot, fmt in self.formats.items()
            if (fmt.group, fmt.scale) != ("tensor", "float32")
        ]
        if wrong or self.amax_history < 0:
            raise UserError(
                f"recipe {self.name}: amax_history={self.amax_history} asks for a "
                "positive number of steps and formats with one float32 scale for a "
                f"tensor, such as fp8{'; not so: ' if wrong else ''}{', '.join(wrong)}"
            )
        rotations = [name for name in ROTATIONS if getattr(self, name) is not None]
        if rotations or self.outliers:
            raise UserError(
                f"recipe {self.name}: amax_history goes with neither rotations nor "
                "outliers"
            )

    def _check_estimator(self) -> None:
        """'exact' and 'dge' compute the scales anew, from the operand alone."""
        if self.estimator not in ("exact", "dge"):
            return
        wrong = [name for name in ("amax_history", "outliers") if getattr(self, name)]
        for slot in ("forward_x", "forward_w"):
            fmt = getattr(self, slot)
            if self.estimator == "dge" or fmt is None or fmt.scale is None:
                continue
            if fmt.scale in ("fixed", "e8m0_quest"):
                wrong.append(f"the scale {fmt.scale} of {slot}")
            if fmt.is_stochastic:
                wrong.append(f"the stochastic rounding of {slot}")
        if wrong:
            raise UserError(
                f"recipe {self.name}: the estimator {self.estimator!r} does not know "
                f"{', '.join(wrong)}; take 'clipped' or 'straight_through'"
            )

    def replace(self, **changes: object) -> "Recipe":
        """Returns a copy with other fields."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def has_state(self) -> bool:
        """Whether something is handed on from step to step; see `State`."""
        return self.amax_history > 0 or isinstance(self.loss_scale, DynamicLossScale)

    @property
    def formats(self) -> dict[str, Format]:
        """The formats of the slots that have one."""
        slots = {slot: getattr(self, slot) for slot in SLOTS}
        return {slot: fmt for slot, fmt in slots.items() if fmt is not None}

    @property
    def needs_key(self) -> bool:
        """Whether anything in it is random."""
        rotations = [getattr(self, name) for name in ROTATIONS]
        return any(fmt.is_stochastic for fmt in self.formats.values()) or any(
            rotation is not None and rotation.random for rotation in rotations
        )


def uniform(name: str, fmt: str | Format, **fields: object) -> Recipe:
    """Returns the recipe with one format in all six slots."""
    fmt = FORMATS[fmt] if isinstance(fmt, str) else fmt
    return Recipe(name).replace(**dict.fromkeys(SLOTS, fmt)).replace(**fields)


def find_recipe(name_or_recipe: str | Recipe) -> Recipe:
    """Returns the recipe of this name, or the recipe itself.

    Raises:
      UserError: no such name, with the nearest ones.
    """
    if isinstance(name_or_recipe, Recipe):
        return name_or_recipe
    if name_or_recipe not in RECIPES:
        raise unknown_name("recipe", name_or_recipe, RECIPES)
    return RECIPES[name_or_recipe]


# Linear layers only, the output layer and embeddings as they are: the setting in which
# the papers on training in 4 bits tried their recipes.
_FOUR_BITS = {
    "keep_last": 1,
    "keep_types": ("EMBEDDING",),
    "weights_only": True,
}


def _with_gradients(fmt: Format) -> dict[str, Format]:
    """The slots that hold a gradient."""
    return {"input_gradient_g": fmt, "weight_gradient_g": fmt}


def _presets() -> dict[str, Recipe]:
    random = Rotation(32, random=True)
    mxfp4 = FORMATS["mxfp4"]
    unbiased = FORMATS["mxfp4_stochastic"]
    ue5m3 = FORMATS["ue5m3_fp4"]
    stochastic_nv = FORMATS["nvfp4"].replace(rounding="stochastic")
    e5m2 = FORMATS["fp8_e5m2"]
    recipes = [
        Recipe("identity"),
        uniform("bf16", "bf16"),
        # Micikevicius et al. 2022, arXiv:2209.05433: E4M3 forward, E5M2 for gradients,
        # scaled by the current largest value of the tensor.
        uniform("fp8", "fp8", **_with_gradients(e5m2)),
        # The same with scales of earlier steps, as NVIDIA's Transformer Engine has it;
        # products with a parameter, so that state follows from the model alone.
        uniform(
            "fp8_delayed",
            "fp8",
            **_with_gradients(e5m2),
            weights_only=True,
            amax_history=16,
        ),
        # Micikevicius et al. 2018, arXiv:1710.03740.
        uniform("fp16", "fp16", loss_scale=DynamicLossScale()),
        # arXiv:2107.13490: weights are fixed-point words. Those that training begins
        # with; `submissions/adapt_sgd` changes them, and rounds gradients too.
        Recipe(
            "adapt",
            forward_w=FORMATS["fixed_8_4"],
            backward_from="quantised",
            weights_only=True,
        ),
        uniform("mxfp8", "mxfp8_ceil"),  # arXiv:2510.25602
        uniform("mxint8", "mxint8_ceil"),
        uniform("int8", "int8"),
        uniform("mxfp6", "mxfp6_ceil"),
        uniform("mxfp4", mxfp4, **_FOUR_BITS),  # nothing but the format: a baseline
        # arXiv:2509.17791: randomised Hadamard, tensor scaling, stochastic rounding
        # backwards. With 3/4, so that rounding stays unbiased.
        uniform(
            "mxfp4_design_space",
            mxfp4.replace(tensor_scale=True),
            input_gradient_g=unbiased.replace(tensor_scale=True),
            input_gradient_w=unbiased.replace(tensor_scale=True),
            weight_gradient_g=unbiased.replace(tensor_scale=True),
            weight_gradient_x=unbiased.replace(tensor_scale=True),
            forward_rotation=random,
            input_gradient_rotation=random,
            weight_gradient_rotation=random,
            **_FOUR_BITS,
        ),
        # The same paper's other scale: needs tensor scaling and stochastic gradients.
        uniform(
            "ue5m3_fp4",
            ue5m3.replace(tensor_scale=True),
            **_with_gradients(ue5m3.replace(tensor_scale=True, rounding="stochastic")),
            **_FOUR_BITS,
        ),
        # arXiv:2505.14669, algorithm 1.
        uniform(
            "quartet",
            unbiased,
            forward_x=FORMATS["quest_fp4"],
            forward_w=FORMATS["quest_fp4"],
            forward_rotation=Rotation(32),
            input_gradient_rotation=random,
            weight_gradient_rotation=random,
            backward_from="quantised",
            estimator="clipped",
            **_FOUR_BITS,
        ),
        # arXiv:2509.25149, without its two-dimensional scales of weights: rotation of
        # 16 for the gradient of weights only, stochastic rounding of gradients only.
        uniform(
            "nvfp4",
            "nvfp4",
            **_with_gradients(stochastic_nv),
            weight_gradient_rotation=Rotation(16, random=True),
            **_FOUR_BITS,
        ),
        # arXiv:2510.25602: with a rotation, integers beat floats in blocks of 16.
        uniform(
            "nvint4_hadamard",
            "nvint4",
            **_with_gradients(FORMATS["nvint4"].replace(rounding="stochastic")),
            forward_rotation=Rotation(16),
            input_gradient_rotation=Rotation(16, random=True),
            weight_gradient_rotation=Rotation(16, random=True),
            **_FOUR_BITS,
        ),
        # arXiv:2112.10769, but for its clipping of the integers: 4-bit integers, and
        # gradients that are powers of two, the small ones pruned at random.
        uniform(
            "luq",
            FORMATS["int4"].replace(group="tensor"),
            **_with_gradients(FORMATS["luq_fp4"]),
            **_FOUR_BITS,
        ),
    ]
    return {recipe.name: recipe for recipe in recipes}


RECIPES: Mapping[str, Recipe] = MappingProxyType(_presets())
